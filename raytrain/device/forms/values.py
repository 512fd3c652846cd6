"""Forms of the stages in `data/stages/images.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from raytrain.data.samples.fields import Kind
from raytrain.data.stages.images import TOPS
from raytrain.device.forms.moves import bordered
from raytrain.device.forms.taps import BITS, fixed_taps, gaussian_taps, taps_in_a_row
from raytrain.device.forms.tensors import exact, name_of, rounded, to_device


def gaussian_blur(value: torch.Tensor, drawn: np.ndarray, kind: Kind, kernel_size: int, **_: Any) -> torch.Tensor:
    taps = gaussian_taps(kernel_size, drawn)
    planes = value.permute(0, 3, 1, 2)
    if value.dtype.is_floating_point:
        return _blurred(planes.to(exact(value.dtype)), taps_in_a_row(taps)).to(value.dtype).permute(0, 2, 3, 1)
    planes = planes.to(torch.float32 if value.dtype == torch.uint8 else torch.float64)  # which hold the sums exactly
    if value.dtype in BITS:
        taps = fixed_taps(taps, BITS[value.dtype])
    for number in range(taps.shape[1]):
        planes = _blurred(planes, taps[:, number]).add(0.5).floor()
    return planes.to(value.dtype).permute(0, 2, 3, 1)


def _blurred(planes: torch.Tensor, taps: np.ndarray) -> torch.Tensor:
    """(samples, channels, height, width) with the taps, (samples, odd), of each sample along both axes."""
    samples, channels, height, width = planes.shape
    made = to_device(taps, planes.device, planes.dtype).repeat_interleave(channels, dim=0)
    flat = planes.reshape(1, samples * channels, height, width)
    for axis, shape in ((2, (-1, 1, taps.shape[1], 1)), (3, (-1, 1, 1, taps.shape[1]))):
        side, length = taps.shape[1] // 2, flat.shape[axis]
        places = bordered(np.arange(-side, length + side), length, "reflect")
        wider = flat.index_select(axis, to_device(places, planes.device))
        flat = torch.nn.functional.conv2d(wider, made.reshape(shape), groups=samples * channels)
    return flat.reshape(planes.shape)


def random_erasing(
    image: torch.Tensor, drawn: np.ndarray, kind: Kind, /, *, value: float = 0, **_: Any
) -> torch.Tensor:
    return torch.where(in_boxes(image, drawn), image.new_full((), value), image)


def in_boxes(image: torch.Tensor, boxes: np.ndarray) -> torch.Tensor:
    """Bool (samples, height, width, 1): which pixels are in the sample's box of top, left, height and width."""
    top, left, height, width = boxes.T[:, :, None]
    rows, columns = np.arange(image.shape[1]), np.arange(image.shape[2])
    is_row = to_device((rows >= top) & (rows < top + height), image.device)
    is_column = to_device((columns >= left) & (columns < left + width), image.device)
    return (is_row[:, :, None] & is_column[:, None, :])[..., None]


def to_dtype(
    value: torch.Tensor, drawn: np.ndarray | None, kind: Kind, dtype: str, scale: bool = False
) -> torch.Tensor:
    """Raises TypeError where values of this type cannot be scaled."""
    wanted, old = getattr(torch, dtype), name_of(value.dtype)
    if not scale or value.dtype == wanted:
        return value.to(wanted)
    if old not in TOPS:
        raise TypeError(f"values of {old} cannot be scaled; those can of {', '.join(TOPS)}")
    if value.dtype.is_floating_point and not wanted.is_floating_point:
        return (value.double() * (TOPS[dtype] + 1.0 - 1e-3)).clamp(0, TOPS[dtype]).to(wanted)
    if not wanted.is_floating_point:
        whole = value.to(torch.int32)
        return (whole << 8 if dtype == "uint16" else whole >> 8).to(wanted)
    return (value.float() * (TOPS[dtype] / TOPS[old])).to(wanted)


def to_uint8(value: torch.Tensor, drawn: np.ndarray | None, kind: Kind) -> torch.Tensor:
    if value.dtype == torch.uint8:
        return value
    return rounded(value if value.dtype.is_floating_point else value.to(torch.int64), torch.uint8)
