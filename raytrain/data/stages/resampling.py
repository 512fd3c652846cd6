"""An image in another size."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np

Interpolation = Literal["bilinear", "bicubic", "nearest"]
MOST_CHANNELS = 4  # that OpenCV averages at once


def resample(image: np.ndarray, height: int, width: int, interpolation: Interpolation = "bilinear") -> np.ndarray:
    """(height, width, channels), antialiased along the sides that shrink.

    That is by averaging areas, a fraction of the time of torchvision's filters, which weigh what lies further out too.
    What grows is as in torch without antialiasing.

    Raises:
        TypeError: values of another type.
    """
    if image.shape[:2] == (height, width):
        return image
    if interpolation == "nearest":
        return resample_nearest(image, height, width)
    if image.dtype.name not in ("uint8", "uint16", "float32", "float64"):
        raise TypeError(f"an image of {image.dtype} cannot be resized; it may be uint8, uint16, float32 or float64")
    channels = image.shape[2:]
    if channels > (MOST_CHANNELS,):
        parts = [image[..., at : at + MOST_CHANNELS] for at in range(0, image.shape[2], MOST_CHANNELS)]
        return np.concatenate([resample(part, height, width, interpolation) for part in parts], axis=2)
    smaller = min(height, image.shape[0]), min(width, image.shape[1])
    if smaller != image.shape[:2]:
        image = cv2.resize(image, smaller[::-1], interpolation=cv2.INTER_AREA)
    if smaller != (height, width):  # areas of a side that grows would not be averaged along the other either
        grows_with = cv2.INTER_CUBIC if interpolation == "bicubic" else cv2.INTER_LINEAR
        image = cv2.resize(image, (width, height), interpolation=grows_with)
    resized: np.ndarray = image.reshape(height, width, *channels)  # OpenCV drops the axis of one channel
    return resized


def resample_nearest(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """(height, width, ...) of any type; the pixel at floor(place * old / new), as torch's `nearest` takes it."""
    rows = _places(values.shape[0], height)
    picked: np.ndarray = values[rows[:, None], _places(values.shape[1], width)]
    return picked


def _places(old: int, new: int) -> np.ndarray:
    scale = np.float32(old) / np.float32(new)
    places: np.ndarray = np.floor(np.arange(new, dtype=np.float32) * scale).astype(np.int64)
    taken: np.ndarray = np.minimum(places, old - 1)
    return taken
