"""Resizing as two matrix products: of what `data/stages/resampling.py` does along one axis, a matrix."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from raytrain.data.samples.fields import np_dtype
from raytrain.data.stages.resampling import MOST_BLURRED, Interpolation, blur_before, check_resizable
from raytrain.device.forms.taps import BITS, fixed_taps, gaussian_taps
from raytrain.device.forms.tensors import exact, name_of, rounded, to_device

_CUBIC = -0.75  # OpenCV's
_LAID_AT_ONCE = 32  # images: fewer leave less of the canvases empty, more take fewer kernels
_AT_ONCE = 64  # samples, whose matrices take tens of megabytes


def resized(value: torch.Tensor, height: int, width: int, interpolation: Interpolation) -> torch.Tensor:
    """(samples, height, width, channels) of another size."""
    check_resizable(np_dtype(name_of(value.dtype)))
    options = interpolation, value.dtype, value.device
    return _product(value, _whole(value.shape[1], height, *options), _whole(value.shape[2], width, *options))


def boxes_resized(
    value: torch.Tensor, boxes: np.ndarray, height: int, width: int, interpolation: Interpolation
) -> torch.Tensor:
    """What lies within a box, (samples, 4) of top, left, height, width, of each sample."""
    check_resizable(np_dtype(name_of(value.dtype)))
    options = interpolation, value.dtype, value.device
    parts = []
    for at in range(0, len(value), _AT_ONCE):
        some, (top, left, old_height, old_width) = value[at : at + _AT_ONCE], boxes[at : at + _AT_ONCE].T
        rows = weights(top, old_height, value.shape[1], height, *options)
        parts.append(_product(some, rows, weights(left, old_width, value.shape[2], width, *options)))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def boxes_of_many_resized(
    values: list[torch.Tensor], boxes: np.ndarray, height: int, width: int, interpolation: Interpolation
) -> torch.Tensor:
    """The same of images of many sizes, each (height, width, channels): the boxes are cut out, and those of like size
    are laid on canvases of one size, of which what is left weighs nothing."""
    order = np.argsort(boxes[:, 2] * boxes[:, 3], kind="stable")
    parts = []
    for at in range(0, len(values), _LAID_AT_ONCE):
        some = order[at : at + _LAID_AT_ONCE]
        inner = np.concatenate([np.zeros((len(some), 2), np.int64), boxes[some, 2:]], axis=1)
        canvases = values[0].new_zeros((len(some), *inner[:, 2:].max(axis=0).tolist(), values[0].shape[2]))
        for canvas, place in zip(canvases, some.tolist(), strict=True):
            top, left, old_height, old_width = boxes[place].tolist()
            canvas[:old_height, :old_width] = values[place][top : top + old_height, left : left + old_width]
        parts.append(boxes_resized(canvases, inner, height, width, interpolation))
    return torch.cat(parts).index_select(0, to_device(np.argsort(order, kind="stable"), values[0].device))


def _product(value: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    planes = value.permute(0, 3, 1, 2).to(rows.dtype)
    made = torch.matmul(torch.matmul(rows[:, None], planes), columns[:, None].transpose(2, 3))
    return rounded(made, value.dtype).permute(0, 2, 3, 1)


@lru_cache(maxsize=64)
def _whole(old: int, new: int, interpolation: Interpolation, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return weights(np.zeros(1, np.int64), np.array([old]), old, new, interpolation, dtype, device)


def weights(
    starts: np.ndarray,
    lengths: np.ndarray,
    old: int,
    new: int,
    interpolation: Interpolation,
    dtype: torch.dtype,
    device: torch.device,
) -> torch.Tensor:
    """(samples, new, old): of each old pixel in each new one, where the new ones are of `length` pixels from `start`.

    A side has three steps: its pixels are averaged in cells, the cells are blurred, and the new pixels interpolated
    from these. Of all together a new pixel has a few weights on cells that follow each other. What one old pixel gets
    is the difference of their running sums at its two ends; cells beyond a border count as the one at the border.

    Args:
        dtype: of the values.
    """
    cells, taps = _steps(lengths, new, interpolation, dtype)
    places = (np.arange(new) + 0.5) * (cells / new)[:, None] - 0.5
    first = np.floor(places).astype(np.int64)
    ends = np.clip(np.arange(old + 1) - starts[:, None], 0, lengths[:, None]) * cells[:, None] / lengths[:, None]
    whole = np.floor(ends).astype(np.int64)

    float_type = exact(dtype)
    shares = to_device(places - first, device, float_type)[:, :, None]
    if interpolation == "bicubic":
        each, reach = _cubic(shares), 1
    else:
        blurs = to_device(taps, device, float_type)[:, None, :]
        pad, reach = torch.nn.functional.pad, taps.shape[1] // 2
        each = pad(blurs, (0, 1)) * (1 - shares) + pad(blurs, (1, 0)) * shares
    sums = torch.nn.functional.pad(each.cumsum(dim=2), (1, 0))

    begins = to_device(first - reach, device)[:, :, None]
    last = to_device(cells, device)[:, None, None]
    at = to_device(whole, device)[:, None, :]
    below = _sum_before(sums, begins, at, last)
    if (ends != whole).any():
        parts = to_device(ends - whole, device, float_type)[:, None, :]
        below = torch.lerp(below, _sum_before(sums, begins, at + 1, last), parts.expand_as(below))
    return below.diff(dim=2)


def _steps(
    lengths: np.ndarray, new: int, interpolation: Interpolation, dtype: torch.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """Cells (samples,), and the taps of the blur (samples, odd)."""
    if interpolation == "bicubic":
        return np.minimum(lengths, new), np.ones((len(lengths), 1))
    cells = np.where(lengths > MOST_BLURRED * new, 2 * new, lengths)
    blurs = [_blur(each, new, dtype) for each in cells.tolist()]
    longest = max(len(each) for each in blurs)
    taps = np.zeros((len(lengths), longest))
    for number, each in enumerate(blurs):
        side = (longest - len(each)) // 2
        taps[number, side : longest - side] = each
    return cells, taps


@lru_cache(maxsize=4096)
def _blur(old: int, new: int, dtype: torch.dtype) -> np.ndarray:
    kernel, sigma = blur_before(max(old / new, 1.0))
    taps = gaussian_taps(kernel, np.array(sigma))
    return fixed_taps(taps, BITS[dtype]) if dtype in BITS else taps


def _sum_before(sums: torch.Tensor, begins: torch.Tensor, cell: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """(samples, new, ends): of the weights of the cells before `cell`."""
    most = sums.shape[2] - 1
    place = (cell - begins).clamp(0, most)
    place = torch.where(cell <= 0, 0, torch.where(cell >= last, most, place))
    return sums.gather(2, place)


def _cubic(share: torch.Tensor) -> torch.Tensor:
    """The weights of the four pixels around a place, which is `share` behind the second."""

    def near(x: torch.Tensor) -> torch.Tensor:
        return ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1

    def far(x: torch.Tensor) -> torch.Tensor:
        return ((_CUBIC * x - 5 * _CUBIC) * x + 8 * _CUBIC) * x - 4 * _CUBIC

    return torch.cat([far(share + 1), near(share), near(1 - share), far(2 - share)], dim=2)
