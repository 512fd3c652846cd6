"""Changes of colour: torchvision's formulas (transforms.v2.functional) in NumPy and OpenCV.

An image is (height, width, 1 or 3) RGB, uint8 or float from 0 to 1.
"""

from __future__ import annotations

import cv2
import numpy as np

_LUMA = np.array([0.2989, 0.587, 0.114])  # torchvision's weights of red, green and blue


def color_jitter_image(
    image: np.ndarray, rng: np.random.Generator, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0
) -> np.ndarray:
    """Each changed by a factor from [max(0, 1 - x), 1 + x], in random order."""
    changes = ((adjust_brightness, brightness), (adjust_contrast, contrast), (adjust_saturation, saturation))
    factors = [rng.uniform(max(0.0, 1.0 - range_), 1.0 + range_) for _, range_ in changes]
    for number in rng.permutation(len(changes)):
        change, range_ = changes[number]
        if range_:
            image = change(image, factors[number])
    return image


def adjust_brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """`factor` of the image, the rest black."""
    return _linear(image, factor, 0.0)


def adjust_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """`factor` of the image, the rest its mean grey."""
    means = np.array(cv2.mean(image)[: image.shape[2]])
    return _linear(image, factor, (1.0 - factor) * float(means @ _LUMA if len(means) == 3 else means[0]))


def adjust_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """`factor` of the image, the rest its greys."""
    if image.shape[2] == 1:
        return image
    mixed = cv2.transform(image, np.eye(3) * factor + (1.0 - factor) * _LUMA[None, :])
    return mixed if image.dtype == np.uint8 else np.clip(mixed, 0, 1)


def _linear(image: np.ndarray, factor: float, shift: float) -> np.ndarray:
    if image.dtype == np.uint8:
        table = np.clip(np.arange(256) * factor + shift, 0, 255).astype(np.uint8)
        return cv2.LUT(image, table).reshape(image.shape)
    return np.asarray(np.clip(image * image.dtype.type(factor) + image.dtype.type(shift), 0, 1))
