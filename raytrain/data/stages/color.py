"""Changes of colour: torchvision's formulas (transforms.v2.functional) in NumPy and OpenCV.

An image is (height, width, 1 or 3) RGB, uint8 or float from 0 to 1.
"""

from __future__ import annotations

import cv2
import numpy as np

from raytrain.data.stages.draws import color_jitter_draws, random_grayscale_draws

LUMA = np.array([0.2989, 0.587, 0.114])  # torchvision's weights of red, green and blue


def color_jitter_image(
    image: np.ndarray,
    rng: np.random.Generator,
    brightness: tuple[float, float] = (1.0, 1.0),
    contrast: tuple[float, float] = (1.0, 1.0),
    saturation: tuple[float, float] = (1.0, 1.0),
    hue: tuple[float, float] = (0.0, 0.0),
) -> np.ndarray:
    """Each by a number from its range, in random order."""
    ranges = (brightness, contrast, saturation, hue)
    drawn = color_jitter_draws(rng, image.shape[:2], *ranges)
    for number in drawn[len(CHANGES) :].astype(int):
        change, nothing = CHANGES[number]
        if ranges[number] != (nothing, nothing):
            image = change(image, drawn[number])
    return image


def adjust_brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """`factor` of the image, the rest black."""
    return _linear(image, factor, 0.0)


def adjust_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """`factor` of the image, the rest its mean grey."""
    means = np.array(cv2.mean(image)[: image.shape[2]])
    return _linear(image, factor, (1.0 - factor) * float(means @ LUMA if len(means) == 3 else means[0]))


def adjust_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """`factor` of the image, the rest its greys."""
    if image.shape[2] == 1:
        return image
    mixed = cv2.transform(image, np.eye(3) * factor + (1.0 - factor) * LUMA[None, :])
    return mixed if image.dtype == np.uint8 else np.clip(mixed, 0, 1)


def adjust_hue(image: np.ndarray, shift: float) -> np.ndarray:
    """By `shift` of the circle of colours, -0.5 to 0.5."""
    if image.shape[2] == 1:
        return image
    values = image.astype(np.float32) * np.float32(1 / 255) if image.dtype == np.uint8 else image.astype(np.float32)
    turned = cv2.cvtColor(values, cv2.COLOR_RGB2HSV)  # hue in degrees
    turned[..., 0] = (turned[..., 0] + np.float32(360.0 * shift)) % np.float32(360.0)
    result = cv2.cvtColor(turned, cv2.COLOR_HSV2RGB)
    return (result * np.float32(255.999)).astype(np.uint8) if image.dtype == np.uint8 else result.astype(image.dtype)


CHANGES = ((adjust_brightness, 1.0), (adjust_contrast, 1.0), (adjust_saturation, 1.0), (adjust_hue, 0.0))
"""In the order of the parameters, each with the amount that changes nothing."""


def grayscale_image(image: np.ndarray, num_output_channels: int = 1) -> np.ndarray:
    grey = image
    if image.shape[2] == 3:
        grey = cv2.transform(image, LUMA[None, :]).reshape(*image.shape[:2], 1)
    return grey if num_output_channels == 1 else np.repeat(grey, num_output_channels, axis=2)


def random_grayscale_image(image: np.ndarray, rng: np.random.Generator, p: float = 0.1) -> np.ndarray:
    return grayscale_image(image, image.shape[2]) if random_grayscale_draws(rng, image.shape[:2], p)[0] else image


def _linear(image: np.ndarray, factor: float, shift: float) -> np.ndarray:
    if image.dtype == np.uint8:
        table = np.clip(np.arange(256) * factor + shift, 0, 255).astype(np.uint8)
        return cv2.LUT(image, table).reshape(image.shape)
    return np.asarray(np.clip(image * image.dtype.type(factor) + image.dtype.type(shift), 0, 1))
