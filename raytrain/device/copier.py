"""Copies to the device, beside its computation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from raytrain.data.block import Header


@dataclass
class Arriving:
    """A batch on its way: tensors on the host or, with `copied_between`, on the device."""

    segment: int
    header: Header
    image: torch.Tensor
    label: torch.Tensor
    key: np.ndarray
    wire_bytes: int
    copied_between: tuple[Any, Any] | None = None  # CUDA events around the copy


class Copier:
    """Host-to-device copies through pinned buffers on a stream of their own."""

    def __init__(self, device: torch.device):
        self._device, self._stream = device, torch.cuda.Stream(device)
        self._buffers: list[tuple[torch.Tensor, Any]] = []

    def copy(self, arriving: Arriving) -> Arriving:
        pinned = self._pinned(arriving.image)
        pinned.copy_(arriving.image)
        label = arriving.label.pin_memory()
        began, copied = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        with torch.cuda.stream(self._stream):
            began.record()
            arriving.image = pinned.to(self._device, non_blocking=True)
            arriving.label = label.to(self._device, non_blocking=True)
            copied.record()
        self._buffers.append((pinned, copied))
        arriving.copied_between = (began, copied)
        return arriving

    def _pinned(self, like: torch.Tensor) -> torch.Tensor:
        """A pinned buffer whose last copy has ended, or a new one."""
        kind = (like.shape, like.stride(), like.dtype)
        self._buffers = [b for b in self._buffers if (b[0].shape, b[0].stride(), b[0].dtype) == kind]
        for position, (buffer, copied) in enumerate(self._buffers):
            if copied.query():
                del self._buffers[position]
                return buffer
        return torch.empty_like(like, pin_memory=True)  # with the same strides
