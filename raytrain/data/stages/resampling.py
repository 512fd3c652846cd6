"""An image in another size."""

from __future__ import annotations

import math
from typing import Literal

import cv2
import numpy as np

Interpolation = Literal["bilinear", "bicubic", "nearest"]
_TYPES = tuple(map(np.dtype, ("uint8", "uint16", "float32", "float64")))
MOST_CHANNELS = 4  # that OpenCV averages at once
MOST_BLURRED = 4.0  # times that a side shrinks; beyond, areas are averaged down to twice the size first


def resample(image: np.ndarray, height: int, width: int, interpolation: Interpolation = "bilinear") -> np.ndarray:
    """(height, width, channels), antialiased along the sides that shrink.

    Bilinear shrinking is a Gaussian blur and linear interpolation, which together spread a pixel as widely as
    torchvision's triangular filter: where a side shrinks s times, that has a variance of s**2 / 6 pixels, of which
    interpolation brings 1 / 6 (at s = 2 it is the same filter). Bicubic shrinking averages areas. What grows is as in
    torch without antialiasing.

    Raises:
        TypeError: values of another type.
    """
    if image.shape[:2] == (height, width):
        return image
    if interpolation == "nearest":
        return resample_nearest(image, height, width)
    check_resizable(image.dtype)
    channels = image.shape[2:]
    if channels > (MOST_CHANNELS,):
        parts = [image[..., at : at + MOST_CHANNELS] for at in range(0, image.shape[2], MOST_CHANNELS)]
        return np.concatenate([resample(part, height, width, interpolation) for part in parts], axis=2)
    grows_with = cv2.INTER_CUBIC if interpolation == "bicubic" else cv2.INTER_LINEAR
    smaller = min(height, image.shape[0]), min(width, image.shape[1])
    if smaller != image.shape[:2]:
        if interpolation == "bicubic":
            image = cv2.resize(image, smaller[::-1], interpolation=cv2.INTER_AREA)
        else:
            image = _shrunk(image, *smaller)
    if smaller != (height, width):
        image = cv2.resize(image, (width, height), interpolation=grows_with)
    resized: np.ndarray = image.reshape(height, width, *channels)  # OpenCV drops the axis of one channel
    return resized


def check_resizable(dtype: np.dtype) -> None:
    """Raises TypeError where images of this type are not interpolated."""
    if dtype not in _TYPES:
        raise TypeError(f"an image of {dtype} cannot be resized; it may be uint8, uint16, float32 or float64")


def _shrunk(image: np.ndarray, height: int, width: int) -> np.ndarray:
    old_height, old_width = image.shape[:2]
    first = (
        2 * height if old_height > MOST_BLURRED * height else old_height,
        2 * width if old_width > MOST_BLURRED * width else old_width,
    )
    if first != (old_height, old_width):
        image = cv2.resize(image, first[::-1], interpolation=cv2.INTER_AREA)
    rows, columns = blur_before(first[0] / height), blur_before(first[1] / width)
    blurred = cv2.GaussianBlur(
        image, (columns[0], rows[0]), sigmaX=columns[1], sigmaY=rows[1], borderType=cv2.BORDER_REPLICATE
    )
    return cv2.resize(blurred, (width, height), interpolation=cv2.INTER_LINEAR)


def blur_before(times: float) -> tuple[int, float]:
    """Taps, odd, and sigma of the blur before a side is made `times` smaller, from 1."""
    variance = (times**2 - 1) / 6
    if variance < 1e-3:
        return 1, 1.0
    if times > 2:
        return 2 * math.ceil(times - 1) + 1, math.sqrt(variance)
    side = variance / 2  # of three taps: side, 1 - 2 * side, side
    return 3, math.sqrt(-0.5 / math.log(side / (1 - 2 * side)))


def resample_nearest(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """(height, width, ...) of any type; the pixel at floor(place * old / new), as torch's `nearest` takes it."""
    rows = nearest_places(values.shape[0], height)
    picked: np.ndarray = values[rows[:, None], nearest_places(values.shape[1], width)]
    return picked


def nearest_places(old: int, new: int) -> np.ndarray:
    scale = np.float32(old) / np.float32(new)
    places: np.ndarray = np.floor(np.arange(new, dtype=np.float32) * scale).astype(np.int64)
    taken: np.ndarray = np.minimum(places, old - 1)
    return taken
