"""What becomes of a field on the device: its type, the order of its axes, and normalisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from raytrain.config.data import Arrival, Normalize
from raytrain.data.samples.fields import Schema

IMAGE_DTYPE = "float32"
MOST_LOOKED_UP = 128  # channels, OpenCV's most


@dataclass(frozen=True)
class Arrived:
    """How a field is made ready.

    Attributes:
        dtype: None as it was sent.
        channels_first: (size, height, width, channels) becomes (size, channels, height, width).
        normalize: `(x * scale - mean) / std`, by channel: along the last axis as it was sent.
    """

    dtype: torch.dtype | None = None
    channels_first: bool = False
    normalize: Normalize | None = None


AS_SENT = Arrived()


def arrivals(schema: Schema, fields: Mapping[str, Arrival], normalize: Normalize | None) -> dict[str, Arrived]:
    """By field of those that are changed.

    Args:
        schema: of what is sent.
        fields: what the job says of single ones.
        normalize: of all images for which it says nothing.
    """
    found = {}
    for name in {*schema, *fields}:
        is_image = name in schema and schema[name].kind == "image" and schema[name].may_be_array
        own = fields.get(name, Arrival())
        dtype = own.dtype or (IMAGE_DTYPE if is_image else None)
        first = is_image if own.channels_first is None else own.channels_first
        by = own.normalize or (normalize if is_image else None)
        made = Arrived(None if dtype is None else getattr(torch, dtype), first, by)
        if made != AS_SENT:
            found[name] = made
    return found


class Receiver:
    """Makes the fields of batches ready, on one device. On the CPU, bytes become float32 by a table of what each of
    their 256 values becomes: one pass over the memory, where arithmetic takes four."""

    def __init__(self, arrived: Mapping[str, Arrived], device: torch.device):
        self._arrived = arrived
        self._affine = {
            name: _affine(each.normalize, device) for name, each in arrived.items() if each.normalize is not None
        }
        self._tables: dict[str, np.ndarray] = {}
        if device.type == "cpu":
            levels = torch.arange(256, dtype=torch.uint8)[:, None]
            for name, each in arrived.items():
                if each.normalize is not None or each.dtype == torch.float32:
                    table = self._normalized(name, levels).to(torch.float32).numpy()[None]
                    if table.shape[2] <= MOST_LOOKED_UP:
                        self._tables[name] = table

    def ready(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """
        Args:
            value: (size, ...) on the device.
        """
        made = self._arrived.get(name)
        if made is None:
            return value
        table = self._tables.get(name) if value.dtype == torch.uint8 and value.numel() else None
        if table is not None and table.shape[2] in (1, value.shape[-1]):
            value = _looked_up(value, table)
        else:
            value = self._normalized(name, value)
        if made.dtype is not None:
            value = value.to(made.dtype)
        return value.permute(0, 3, 1, 2) if made.channels_first and value.ndim == 4 else value

    def _normalized(self, name: str, value: torch.Tensor) -> torch.Tensor:
        if name not in self._affine:
            return value
        scale, shift = self._affine[name]
        return value.to(torch.float32) * scale + shift


def _looked_up(value: torch.Tensor, table: np.ndarray) -> torch.Tensor:
    """
    Args:
        value: uint8 (...) or (..., channels).
        table: (1, 256, 1 or channels) float32.
    """
    import cv2

    if not value.is_contiguous() and value.ndim == 4 and value.permute(0, 3, 1, 2).is_contiguous():  # and stays so
        planes = value.permute(0, 3, 1, 2).numpy()
        found = np.empty(planes.shape, np.float32)
        by_channel = np.broadcast_to(table[0], (256, planes.shape[1])).T.copy()
        for place in np.ndindex(planes.shape[:2]):
            cv2.LUT(planes[place], by_channel[place[1]][None], found[place])
        return torch.from_numpy(found).permute(0, 2, 3, 1)
    found = cv2.LUT(value.numpy().reshape(1, -1, table.shape[2]), table)
    return torch.from_numpy(found).reshape(value.shape)


def _affine(normalize: Normalize, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """`(x * scale - mean) / std` as `x * a + b`, each (channels,) float32."""
    mean, std = torch.tensor(normalize.mean), torch.tensor(normalize.std)
    scale, shift = normalize.scale / std, -mean / std
    a, b = (t.to(torch.float32).to(device) for t in (scale, shift))
    return a, b
