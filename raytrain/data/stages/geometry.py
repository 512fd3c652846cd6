"""Where things are in an image: stages that images, masks and boxes go through together.

Names, parameters and defaults are torchvision's (transforms.v2). A function gets a field's value with its `kind` and
the `canvas`, (height, width) of the sample, from which alone it draws, so that all fields of a sample get the same. An
image is (height, width, channels), a mask (height, width) or (height, width, channels), boxes are (number, 4) of left,
top, right, bottom.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import cv2
import numpy as np

from raytrain.data.samples.fields import KINDS, Field, Kind
from raytrain.data.stages.draws import (
    Box,
    Canvas,
    Size,
    both_sides,
    flip_draws,
    random_crop_draws,
    random_resized_crop_draws,
    sides_around,
)
from raytrain.data.stages.options import check_order, check_range
from raytrain.data.stages.resampling import MOST_CHANNELS, Interpolation, resample, resample_nearest
from raytrain.data.stages.stage import STORE_SMALLER, On, Stage, built_in
from raytrain.errors import ConfigError

PaddingMode = Literal["constant", "edge", "reflect", "symmetric"]
_BORDERED = (np.dtype("uint8"), np.dtype("float32"))  # types that OpenCV puts a border around
_BORDERS = {
    "constant": cv2.BORDER_CONSTANT,
    "edge": cv2.BORDER_REPLICATE,
    "reflect": cv2.BORDER_REFLECT_101,
    "symmetric": cv2.BORDER_REFLECT,
}


_geometry = partial(built_in, kinds=KINDS, movable=True)


# --- stages -------------------------------------------------------------------------------------------------------


def resize(
    size: Size, *, interpolation: Interpolation = "bilinear", max_size: int | None = None, on: On = None
) -> Stage:
    """To another size.

    Args:
        size: of the shorter side, the longer one becoming `int(size * longer / shorter)`; or (height, width).
        interpolation: of images, antialiased but for `nearest`; masks are always `nearest`.
        max_size: of the longer side; where it would be longer, both become smaller.
    """
    options: dict[str, Any] = {"size": size, "interpolation": interpolation, "max_size": max_size}
    change = _sized(None if isinstance(size, int) else size)
    made = _geometry(resize_field, "resize", on, change=change, helps=STORE_SMALLER, **options)
    check_range("resize", 1, size=size, max_size=max_size)
    if max_size is not None and (not isinstance(size, int) or max_size <= size):
        raise ConfigError(f"stage 'resize': max_size must be larger than one size (given: {max_size} and {size!r})")
    return made


def resize_field(
    value: np.ndarray,
    kind: Kind,
    canvas: Canvas,
    size: Size,
    interpolation: Interpolation = "bilinear",
    max_size: int | None = None,
) -> np.ndarray:
    return scaled(value, kind, canvas, resized_canvas(canvas, size, max_size), interpolation)


def resized_canvas(canvas: Canvas, size: Size, max_size: int | None = None) -> Canvas:
    """(height, width) that `resize` makes of it."""
    if not isinstance(size, int):
        return size
    shorter, longer = min(canvas), max(canvas)
    new_shorter, new_longer = size, int(size * longer / shorter)
    if max_size is not None and new_longer > max_size:
        new_shorter, new_longer = int(max_size * new_shorter / new_longer), max_size
    return (new_shorter, new_longer) if canvas[0] <= canvas[1] else (new_longer, new_shorter)


def center_crop(size: Size, *, on: On = None) -> Stage:
    """The middle, with a black border where the image is smaller.

    Args:
        size: of a square, or (height, width).
    """
    made = _geometry(center_crop_field, "center_crop", on, change=_sized(size), helps=STORE_SMALLER, size=size)
    check_range("center_crop", 1, size=size)
    return made


def center_crop_field(value: np.ndarray, kind: Kind, canvas: Canvas, size: Size) -> np.ndarray:
    height, width = both_sides(size)
    short = [max(wanted - side, 0) for side, wanted in zip(canvas, (height, width), strict=True)]
    if any(short):
        top, left = short[0] // 2, short[1] // 2
        value = padded(value, kind, (left, top, short[1] - left, short[0] - top))
        canvas = canvas[0] + short[0], canvas[1] + short[1]
    top, left = round((canvas[0] - height) / 2), round((canvas[1] - width) / 2)
    return cut(value, kind, (top, left, height, width))


def random_crop(
    size: Size,
    *,
    padding: int | tuple[int, int] | tuple[int, int, int, int] = 0,
    pad_if_needed: bool = False,
    fill: float = 0,
    padding_mode: PaddingMode = "constant",
    on: On = None,
) -> Stage:
    """A random part of the image.

    Args:
        size: of a square, or (height, width).
        padding: pixels around it beforehand: of all sides, of (left and right, top and bottom), or of (left, top,
            right, bottom).
        pad_if_needed: around an image that is too small, which is an error otherwise.
        fill: of a `constant` border; masks have 0.
        padding_mode: `edge` repeats the last pixel; `reflect` mirrors without it, `symmetric` with it.
    """
    options: dict[str, Any] = {
        "size": size,
        "padding": padding,
        "pad_if_needed": pad_if_needed,
        "fill": fill,
        "padding_mode": padding_mode,
    }
    made = _geometry(
        random_crop_field,
        "random_crop",
        on,
        change=_sized(size),
        helps=STORE_SMALLER,
        draws=random_crop_draws,
        **options,
    )
    check_range("random_crop", 1, size=size)
    check_range("random_crop", 0, padding=padding)
    return made


def random_crop_field(
    value: np.ndarray,
    rng: np.random.Generator,
    kind: Kind,
    canvas: Canvas,
    size: Size,
    padding: int | tuple[int, int] | tuple[int, int, int, int] = 0,
    pad_if_needed: bool = False,
    fill: float = 0,
    padding_mode: PaddingMode = "constant",
) -> np.ndarray:
    top, left = random_crop_draws(rng, canvas, size, padding, pad_if_needed)
    value = padded(value, kind, sides_around(canvas, size, padding, pad_if_needed), fill, padding_mode)
    return cut(value, kind, (top, left, *both_sides(size)))


def random_resized_crop(
    size: Size,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    interpolation: Interpolation = "bilinear",
    on: On = None,
) -> Stage:
    """A random area of the image with a random aspect ratio, resized.

    Args:
        size: of a square, or (height, width).
        scale: the area, as a share of the image's; equally likely from low to high.
        ratio: width over height; its logarithm equally likely from low to high.
        interpolation: see `resize`.
    """
    options: dict[str, Any] = {
        "size": size,
        "scale": tuple(scale),
        "ratio": tuple(ratio),
        "interpolation": interpolation,
    }
    made = _geometry(
        random_resized_crop_field,
        "random_resized_crop",
        on,
        change=_sized(size),
        helps=STORE_SMALLER,
        draws=random_resized_crop_draws,
        **options,
    )
    check_range("random_resized_crop", 1, size=size)
    check_range("random_resized_crop", 0, 1, scale=scale)
    check_order("random_resized_crop", scale=scale, ratio=ratio)
    return made


def random_resized_crop_field(
    value: np.ndarray,
    rng: np.random.Generator,
    kind: Kind,
    canvas: Canvas,
    size: Size,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    interpolation: Interpolation = "bilinear",
) -> np.ndarray:
    box = random_resized_crop_draws(rng, canvas, size, scale, ratio)
    return scaled(cut(value, kind, box, canvas), kind, box[2:], both_sides(size), interpolation)


def random_horizontal_flip(p: float = 0.5, *, on: On = None) -> Stage:
    """Mirror left and right.

    Args:
        p: the probability.
    """
    made = _geometry(random_horizontal_flip_field, "random_horizontal_flip", on, change=_same, draws=flip_draws, p=p)
    check_range("random_horizontal_flip", 0, 1, p=p)
    return made


def random_horizontal_flip_field(
    value: np.ndarray, rng: np.random.Generator, kind: Kind, canvas: Canvas, p: float = 0.5
) -> np.ndarray:
    if not flip_draws(rng, canvas, p)[0]:
        return value
    if kind != "boxes":
        return value[:, ::-1]
    left, top, right, bottom = value.T
    return np.stack([canvas[1] - right, top, canvas[1] - left, bottom], axis=1)


def random_vertical_flip(p: float = 0.5, *, on: On = None) -> Stage:
    """Mirror top and bottom.

    Args:
        p: the probability.
    """
    made = _geometry(random_vertical_flip_field, "random_vertical_flip", on, change=_same, draws=flip_draws, p=p)
    check_range("random_vertical_flip", 0, 1, p=p)
    return made


def random_vertical_flip_field(
    value: np.ndarray, rng: np.random.Generator, kind: Kind, canvas: Canvas, p: float = 0.5
) -> np.ndarray:
    if not flip_draws(rng, canvas, p)[0]:
        return value
    if kind != "boxes":
        return value[::-1]
    left, top, right, bottom = value.T
    return np.stack([left, canvas[0] - bottom, right, canvas[0] - top], axis=1)


# --- what they are made of ----------------------------------------------------------------------------------------


def cut(value: np.ndarray, kind: Kind, box: Box, canvas: Canvas | None = None) -> np.ndarray:
    """What lies within the box; boxes are cut off at its border.

    Args:
        canvas: that the box is of, where the image has been decoded smaller.
    """
    if canvas is not None and kind != "boxes" and value.shape[:2] != canvas:
        box = _smaller(box, canvas, (value.shape[0], value.shape[1]))
    top, left, height, width = box
    if kind != "boxes":
        return value[top : top + height, left : left + width]
    moved = value - np.array([left, top, left, top], value.dtype if value.dtype.kind == "f" else np.int64)
    clipped: np.ndarray = np.clip(moved, 0, [width, height, width, height]).astype(value.dtype)
    return clipped


def _smaller(box: Box, canvas: Canvas, size: Canvas) -> Box:
    """The box on an image of another size, to whole pixels and at least one."""
    ends = []
    for start, length, old, new in zip(box[:2], box[2:], canvas, size, strict=True):
        first = min(round(start * new / old), new - 1)
        ends.append((first, max(round((start + length) * new / old), first + 1)))
    (top, bottom), (left, right) = ends
    return top, left, bottom - top, right - left


def scaled(
    value: np.ndarray, kind: Kind, canvas: Canvas, size: Canvas, interpolation: Interpolation = "bilinear"
) -> np.ndarray:
    """From a canvas to another of `size`."""
    if kind == "boxes":
        (height, width), (new_height, new_width) = canvas, size
        new, old = np.array([new_width, new_height] * 2), np.array([width, height] * 2)
        larger: np.ndarray = (value * new / old).astype(value.dtype)  # in this order a border stays a border
        return larger
    if kind == "mask":
        return resample_nearest(value, *size)
    return resample(value, *size, interpolation)


def padded(
    value: np.ndarray,
    kind: Kind,
    sides: tuple[int, int, int, int],
    fill: float = 0,
    padding_mode: PaddingMode = "constant",
) -> np.ndarray:
    """With a border of (left, top, right, bottom) pixels."""
    left, top, right, bottom = sides
    if not any(sides):
        return value
    if kind == "boxes":
        moved: np.ndarray = value + np.array([left, top, left, top], value.dtype)
        return moved
    fits = value.dtype in _BORDERED and value.shape[2:] <= (MOST_CHANNELS,)
    if kind == "mask" or not fits:
        around = [(top, bottom), (left, right), *[(0, 0)] * (value.ndim - 2)]
        if padding_mode == "constant":
            return np.pad(value, around, constant_values=0 if kind == "mask" else fill)
        return np.pad(value, around, mode=padding_mode)
    filled: np.ndarray = cv2.copyMakeBorder(value, top, bottom, left, right, _BORDERS[padding_mode], value=[fill] * 4)
    return filled.reshape(*filled.shape[:2], *value.shape[2:])


class _sized:
    """What becomes of a field when its canvas gets that size; None where it varies."""

    def __init__(self, size: Size | None):
        self._size = size

    def __call__(self, what: Field) -> Field:
        if what.kind == "boxes" or what.shape is None:
            return what
        canvas = (None, None) if self._size is None else both_sides(self._size)
        return Field(what.dtype, (*canvas, *what.shape[2:]), what.kind, what.classes)


def _same(what: Field) -> Field:
    return what
