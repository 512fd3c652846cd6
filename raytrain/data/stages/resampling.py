"""An image in another size."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np

Interpolation = Literal["bilinear", "bicubic", "nearest"]


def resample(image: np.ndarray, height: int, width: int, interpolation: Interpolation = "bilinear") -> np.ndarray:
    """(height, width, channels) uint8 or float32, antialiased where it shrinks.

    Raises:
        TypeError: values of another type.
    """
    if image.shape[:2] == (height, width):
        return image
    if interpolation == "nearest":
        return resample_nearest(image, height, width)
    if image.dtype.name not in ("uint8", "uint16", "float32", "float64"):
        raise TypeError(f"an image of {image.dtype} cannot be resized; it may be uint8, uint16, float32 or float64")
    shrinks = height * width < image.shape[0] * image.shape[1]
    grows_with = cv2.INTER_CUBIC if interpolation == "bicubic" else cv2.INTER_LINEAR
    resized: np.ndarray = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else grows_with)
    return resized.reshape(height, width, *image.shape[2:])  # OpenCV drops the axis of one channel


def resample_nearest(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """(height, width, ...) of any type; the pixel at floor(place * old / new), as torch's `nearest` takes it."""
    rows = _places(values.shape[0], height)
    picked: np.ndarray = values[rows[:, None], _places(values.shape[1], width)]
    return picked


def _places(old: int, new: int) -> np.ndarray:
    scale = np.float32(old) / np.float32(new)
    places: np.ndarray = np.floor(np.arange(new, dtype=np.float32) * scale).astype(np.int64)
    return np.minimum(places, old - 1)
