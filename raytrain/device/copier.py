"""Copies to the device, beside its computation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from raytrain.data.samples.block import Header
from raytrain.data.samples.collate import Form


@dataclass
class Arriving:
    """A batch on its way.

    Attributes:
        fields: by name, a tensor on the host or, with `copied_between`, on the device; text and bytes stay lists. Of a
            ragged field the values.
        forms: of the fields.
        offsets: of the ragged fields.
        lengths: of the ragged fields, on the host.
        drawn: for stages on the device (see device.stages.Drawn).
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

    def tensors(self) -> list[torch.Tensor]:
        """All that is copied."""
        found = [value for value in self.fields.values() if isinstance(value, torch.Tensor)]
        return found + list(self.offsets.values())


PINNED_BYTES = 64 << 10  # a tensor below this is pinned by itself each time


class Copier:
    """Host-to-device copies through pinned buffers on a stream of their own."""

    def __init__(self, device: torch.device):
        self._device, self._stream = device, torch.cuda.Stream(device)
        self._buffers: dict[str, list[tuple[torch.Tensor, Any]]] = {}

    def copy(self, arriving: Arriving) -> Arriving:
        pinned = {name: self._filled(name, value) for name, value in arriving.fields.items()}
        offsets = {name: value.pin_memory() for name, value in arriving.offsets.items()}
        began, copied = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        with torch.cuda.stream(self._stream):
            began.record()
            arriving.fields = {name: self._sent(value) for name, value in pinned.items()}
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
