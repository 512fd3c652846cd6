"""Forms of the stages in `data/stages/geometry.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from raytrain.data.samples.fields import Kind
from raytrain.data.stages.draws import Size, both_sides, sides_around
from raytrain.data.stages.geometry import PaddingMode, resized_canvas
from raytrain.data.stages.resampling import MOST_CHANNELS, Interpolation, nearest_places
from raytrain.device.forms.resizing import boxes_of_many_resized, boxes_resized, resized
from raytrain.device.forms.tensors import per_sample, to_device


def resize(
    value: torch.Tensor,
    drawn: np.ndarray | None,
    kind: Kind,
    size: Size,
    interpolation: Interpolation = "bilinear",
    max_size: int | None = None,
) -> torch.Tensor:
    old = value.shape[1], value.shape[2]
    height, width = resized_canvas(old, size, max_size)
    if (height, width) == old:
        return value
    if kind == "mask" or interpolation == "nearest":
        return _picked(value, nearest_places(old[0], height)[None], nearest_places(old[1], width)[None])
    return resized(value, height, width, interpolation)


def center_crop(value: torch.Tensor, drawn: np.ndarray | None, kind: Kind, size: Size) -> torch.Tensor:
    height, width = both_sides(size)
    return _within(value, _middle(value.shape[1], height)[None], _middle(value.shape[2], width)[None], 0)


def _middle(old: int, new: int) -> np.ndarray:
    """Where the pixels come from; some from outside of the image where it is smaller."""
    short = max(new - old, 0)
    return np.arange(new) + round((old + short - new) / 2) - short // 2


def random_crop(
    value: torch.Tensor,
    drawn: np.ndarray,
    kind: Kind,
    size: Size,
    padding: int | tuple[int, int] | tuple[int, int, int, int] = 0,
    pad_if_needed: bool = False,
    fill: float = 0,
    padding_mode: PaddingMode = "constant",
) -> torch.Tensor:
    height, width = both_sides(size)
    canvas = value.shape[1], value.shape[2]
    left, top, _, _ = sides_around(canvas, size, padding, pad_if_needed)
    starts = drawn.astype(np.int64) - (top, left)
    rows, columns = starts[:, :1] + np.arange(height), starts[:, 1:] + np.arange(width)
    if padding_mode == "constant":
        return _within(value, rows, columns, 0 if kind == "mask" else _fill(value, fill))
    return _picked(value, bordered(rows, canvas[0], padding_mode), bordered(columns, canvas[1], padding_mode))


def _fill(value: torch.Tensor, fill: float) -> float:
    """As OpenCV takes it, which rounds, or NumPy, which cuts off (and of bool takes all but 0 for True)."""
    if value.dtype.is_floating_point or value.dtype == torch.bool:
        return fill
    by_opencv = value.dtype == torch.uint8 and value.shape[3] <= MOST_CHANNELS
    return min(max(round(fill), 0), 255) if by_opencv else int(fill)


def random_resized_crop(
    value: torch.Tensor,
    drawn: np.ndarray,
    kind: Kind,
    size: Size,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    interpolation: Interpolation = "bilinear",
) -> torch.Tensor:
    height, width = both_sides(size)
    boxes = drawn.astype(np.int64)
    if kind == "mask" or interpolation == "nearest":
        rows = [top + nearest_places(old, height) for top, old in boxes[:, [0, 2]].tolist()]
        columns = [left + nearest_places(old, width) for left, old in boxes[:, [1, 3]].tolist()]
        return _picked(value, np.stack(rows), np.stack(columns))
    return boxes_resized(value, boxes, height, width, interpolation)


def crops_of_many(
    values: list[torch.Tensor], drawn: np.ndarray, size: Size, interpolation: Interpolation = "bilinear", **_: Any
) -> torch.Tensor:
    """`random_resized_crop` of images of many sizes."""
    return boxes_of_many_resized(values, drawn.astype(np.int64), *both_sides(size), interpolation)


def resize_of_many(
    values: list[torch.Tensor], drawn: None, size: tuple[int, int], interpolation: Interpolation = "bilinear", **_: Any
) -> torch.Tensor:
    """`resize` to both sides."""
    boxes = np.array([(0, 0, *value.shape[:2]) for value in values], np.int64)
    return boxes_of_many_resized(values, boxes, *size, interpolation)


def random_horizontal_flip(value: torch.Tensor, drawn: np.ndarray, kind: Kind, **_: Any) -> torch.Tensor:
    return torch.where(per_sample(drawn[:, 0].astype(bool), value), value.flip(2), value)


def random_vertical_flip(value: torch.Tensor, drawn: np.ndarray, kind: Kind, **_: Any) -> torch.Tensor:
    return torch.where(per_sample(drawn[:, 0].astype(bool), value), value.flip(1), value)


# --- where pixels come from ---------------------------------------------------------------------------------------


def bordered(places: np.ndarray, length: int, padding_mode: PaddingMode) -> np.ndarray:
    """Places beyond the ends of an axis to those whose pixels stand there; reflected as often as it takes."""
    if padding_mode == "edge" or length == 1:
        return np.clip(places, 0, length - 1)
    if padding_mode == "reflect":
        turn = 2 * (length - 1)
        places = places % turn
        return np.minimum(places, turn - places)
    places = places % (2 * length)
    return np.minimum(places, 2 * length - 1 - places)


def _within(value: torch.Tensor, rows: np.ndarray, columns: np.ndarray, fill: float) -> torch.Tensor:
    """Picked, with `fill` outside of the image."""
    inner_rows, inner_columns = np.clip(rows, 0, value.shape[1] - 1), np.clip(columns, 0, value.shape[2] - 1)
    made = _picked(value, inner_rows, inner_columns)
    if (rows == inner_rows).all() and (columns == inner_columns).all():
        return made
    is_row, is_column = to_device(rows == inner_rows, value.device), to_device(columns == inner_columns, value.device)
    inside = is_row[:, :, None] & is_column[:, None, :]
    return torch.where(inside.reshape(*inside.shape, *[1] * (value.ndim - 3)), made, made.new_full((), fill))


def _picked(value: torch.Tensor, rows: np.ndarray, columns: np.ndarray) -> torch.Tensor:
    """The pixels at (samples, new height) rows and (samples, new width) columns, or (1, ...) where alike for all."""
    if len(rows) == 1:
        tall = value.index_select(1, to_device(rows[0], value.device))
        return tall.index_select(2, to_device(columns[0], value.device))
    samples = torch.arange(len(value), device=value.device)[:, None, None]
    return value[samples, to_device(rows, value.device)[:, :, None], to_device(columns, value.device)[:, None, :]]
