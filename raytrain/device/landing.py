"""From a block's batch to fields that are ready on a device: for a training rank, and for a stream that predicts."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from raytrain.data.order import Split
from raytrain.data.samples.block import Batch, RaggedArray
from raytrain.data.samples.fields import BFLOAT16
from raytrain.data.stages.settling import DevicePart
from raytrain.data.stages.stage import DRAWN, WHERE
from raytrain.device.arrival import Arrived, Receiver
from raytrain.device.batch import Ragged
from raytrain.device.clock import StageTimer
from raytrain.device.copier import Arriving, Copier
from raytrain.device.decoding import Decoding
from raytrain.device.stages import DeviceStages


class Landing:
    """
    Args:
        arrived: by field, what becomes of it there.
        stages: of each split, those that may run there, before that (see device.stages).

    Attributes:
        copier: None on the CPU.
    """

    def __init__(
        self,
        device: torch.device,
        arrived: Mapping[str, Arrived],
        stages: Mapping[Split, DevicePart],
        timer: StageTimer,
    ):
        self._device = device
        self._receiver = Receiver(arrived, device)
        self._stages = DeviceStages(stages, timer, device)
        self.decoding = Decoding(stages, device)
        self.copier = Copier(device) if device.type == "cuda" else None

    def arriving(self, split: Split, batch: Batch, num_ids: int | None = None) -> Arriving:
        """On its way: what is encoded is decoded, and the copy to the device has begun.

        Args:
            num_ids: of an epoch, where keys may be of several.
        """
        fields: dict[str, Any] = {}
        offsets: dict[str, torch.Tensor] = {}
        lengths: dict[str, np.ndarray] = {}
        drawn: dict[str, np.ndarray] = {}
        encoded = {name: batch.fields.pop(name) for name in self.decoding.names(split) & {*batch.fields}}
        where: Any = batch.fields.pop(WHERE, [])
        for name, value in batch.fields.items():
            if name.startswith(DRAWN):
                assert isinstance(value, np.ndarray)
                drawn[name] = value
            elif isinstance(value, RaggedArray):
                fields[name], lengths[name] = as_tensor(value.values), value.lengths
                offsets[name] = torch.from_numpy(np.append(0, np.cumsum(value.lengths)))
            else:
                fields[name] = as_tensor(value) if isinstance(value, np.ndarray) else value
        arriving = Arriving(
            batch.header.segment,
            batch.header,
            fields,
            batch.forms,
            offsets,
            lengths,
            drawn,
            batch.key,
            batch.part,
            batch.nbytes,
        )
        if encoded:
            with contextlib.nullcontext() if self.copier is None else torch.cuda.stream(self.copier.stream):
                arriving.take(self.decoding.decoded(split, encoded, batch.key), where, num_ids)
        return self.copier.copy(arriving) if self.copier is not None and len(arriving.key) else arriving

    def await_copy(self, arriving: Arriving) -> None:
        """Have the compute stream wait for the batch; the host goes on."""
        if arriving.copied_between is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(arriving.copied_between[1])
            for tensor in arriving.tensors():
                tensor.record_stream(stream)

    def ready(
        self, split: Split, arriving: Arriving, fields: Mapping[str, Any], drawn: Mapping[str, np.ndarray], about: str
    ) -> dict[str, Any]:
        """The fields as a loop or a model takes them, behind the stages on the device.

        Args:
            fields: of `arriving`, or blank ones in their place; `drawn` likewise.
            about: the batch, for messages.
        """
        made: dict[str, Any] = {}
        for name, value in self._stages.run(split, fields, drawn, about, arriving.header.cut).items():
            ready = self._receiver.ready(name, value) if isinstance(value, torch.Tensor) else value
            made[name] = (
                Ragged(ready, arriving.offsets[name], arriving.lengths[name]) if name in arriving.offsets else ready
            )
        return made


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor over the array's memory, which is read-only; nothing here writes to it."""
    is_bfloat16 = array.dtype.name == BFLOAT16
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        tensor = torch.from_numpy(array.view(np.uint16) if is_bfloat16 else array)
    return tensor.view(torch.bfloat16) if is_bfloat16 else tensor
