"""Copies to the device, beside its computation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from raytrain.data.samples.block import Header
from raytrain.data.samples.collate import Form
from raytrain.device.decoding import Decoded
from raytrain.errors import named
from raytrain.record.status import Failure


@dataclass
class Arriving:
    """A batch on its way.

    Attributes:
        fields: by name, a tensor on the host or, with `copied_between`, on the device; text and bytes stay lists. Of a
            ragged field the values. What has been decoded here lies on the device: a tensor, or a list of them.
        forms: of the fields.
        offsets: of the ragged fields.
        lengths: of the ragged fields, on the host.
        drawn: for stages on the device (see device.stages.Drawn).
        decoded: what decoding took here.
        copied_between: CUDA events around the copy.
    """

    segment: int
    header: Header
    fields: dict[str, Any]
    forms: dict[str, Form]
    offsets: dict[str, torch.Tensor]
    lengths: dict[str, np.ndarray]
    drawn: dict[str, np.ndarray]
    key: np.ndarray
    part: np.ndarray | None
    wire_bytes: int
    copied_between: tuple[Any, Any] | None = None
    decoded: Decoded | None = None

    def take(self, decoded: Decoded, where: list[str], num_ids: int | None) -> None:
        """Take the fields that have been decoded in, and out what could not be, which is counted as a worker does it.

        Args:
            where: what to call each sample.
            num_ids: of an epoch, where keys may be of several.
        """
        self.decoded = decoded
        if decoded.errors:
            self._leave_out(decoded, where, num_ids)
        fields = {**self.fields, **decoded.fields}
        self.fields = {name: fields[name] for name in self.forms if name in fields}  # in their order
        self.forms = {**self.forms, **dict.fromkeys(decoded.fields, "dense")}

    def _leave_out(self, decoded: Decoded, where: list[str], num_ids: int | None) -> None:
        keep, key, header = decoded.keep, self.key, self.header
        by_key = {int(key[place]): (place, error) for place, error in sorted(decoded.errors.items(), reverse=True)}
        failures = [
            Failure(each if num_ids is None else each % num_ids, where[place], named(error)[:300])
            for each, (place, error) in reversed(by_key.items())
        ]
        fresh = len(key) - header.repeated
        left_out = np.unique(key[:fresh][np.isin(key[:fresh], [*by_key])]).tolist()
        for name, value in self.fields.items():
            if name in self.offsets:
                parts = value.split(self.lengths[name].tolist())
                lengths = self.lengths[name] = self.lengths[name][keep]
                self.fields[name] = torch.cat([value[:0], *(parts[place] for place in keep.tolist())])
                self.offsets[name] = torch.from_numpy(np.append(0, np.cumsum(lengths)))
            elif isinstance(value, torch.Tensor):
                self.fields[name] = value[torch.from_numpy(keep)]
            else:
                self.fields[name] = [value[place] for place in keep.tolist()]
        self.drawn = {name: value[keep] for name, value in self.drawn.items()}
        self.key, self.part = key[keep], None if self.part is None else self.part[keep]
        self.header = replace(
            header,
            failures=[*header.failures, *failures],
            left_out=[*header.left_out, *left_out],
            repeated=int(np.count_nonzero(keep >= fresh)),
        )

    def tensors(self) -> list[torch.Tensor]:
        """All that is on the device."""
        each = [value if isinstance(value, list) else [value] for value in self.fields.values()]
        found = [value for values in each for value in values if isinstance(value, torch.Tensor)]
        return found + list(self.offsets.values())


PINNED_BYTES = 64 << 10  # a tensor below this is pinned by itself each time


class Copier:
    """Host-to-device copies through pinned buffers on a stream of their own."""

    def __init__(self, device: torch.device):
        self._device, self.stream = device, torch.cuda.Stream(device)
        self._buffers: dict[str, list[tuple[torch.Tensor, Any]]] = {}

    def copy(self, arriving: Arriving) -> Arriving:
        here = arriving.decoded.fields if arriving.decoded is not None else {}
        pinned = {name: self._filled(name, value) for name, value in arriving.fields.items() if name not in here}
        offsets = {name: value.pin_memory() for name, value in arriving.offsets.items()}
        began, copied = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        with torch.cuda.stream(self.stream):
            began.record()
            arriving.fields = {**arriving.fields, **{name: self._sent(value) for name, value in pinned.items()}}
            arriving.offsets = {name: self._sent(value) for name, value in offsets.items()}
            copied.record()
        for name, value in pinned.items():
            if isinstance(value, torch.Tensor) and value.nbytes >= PINNED_BYTES:
                self._buffers.setdefault(name, []).append((value, copied))
        arriving.copied_between = (began, copied)
        return arriving

    def _sent(self, value: Any) -> Any:
        return value.to(self._device, non_blocking=True) if isinstance(value, torch.Tensor) else value

    def _filled(self, name: str, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if value.nbytes < PINNED_BYTES:
            return value.pin_memory()
        pinned = self._pinned(name, value)
        pinned.copy_(value)
        return pinned

    def _pinned(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """A pinned buffer whose last copy has ended, or a new one."""
        kind = (like.shape, like.stride(), like.dtype)
        buffers = self._buffers.get(name, [])
        buffers = [b for b in buffers if (b[0].shape, b[0].stride(), b[0].dtype) == kind or not b[1].query()]
        self._buffers[name] = buffers
        for position, (buffer, copied) in enumerate(buffers):
            if (buffer.shape, buffer.stride(), buffer.dtype) == kind and copied.query():
                del buffers[position]
                return buffer
        return torch.empty_like(like, pin_memory=True)  # with the same strides
