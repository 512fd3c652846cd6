"""Stages on images, in NumPy and OpenCV."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from raytrain.data.stages.color import color_jitter_image
from raytrain.data.stages.options import check_order, check_range
from raytrain.data.stages.stage import Stage, stage
from raytrain.errors import ConfigError, nearest

BLUR_TOLERANCE = 1e-6

Image = np.ndarray
"""(height, width, channels), uint8 or float32."""


# --- decoding -----------------------------------------------------------------------------------------------------


def decode() -> Stage:
    """Encoded image bytes -> uint8 (height, width, 3), RGB, turned upright as its EXIF data says."""
    return stage(decode_image, name="decode")


def decode_image(data: np.ndarray) -> Image:
    """Raises ValueError when `data` (uint8, one dimension) is not a whole image (OpenCV 4 let truncated ones pass)."""
    if data.ndim != 1:
        return data  # already an array: Parquet tensors and synthetic images
    image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB) if data.size else None
    if image is None:
        raise ValueError("not a decodable image")
    return image


# --- geometry -----------------------------------------------------------------------------------------------------


def resize(size: int | tuple[int, int]) -> Stage:
    """To `size` x `size`, or (height, width); area averaging when it shrinks, bilinear when it grows."""
    made = stage(resize_image, name="resize", size=size)
    check_range("resize", 1, size=size)
    return made


def resize_image(image: Image, size: int | tuple[int, int]) -> Image:
    height, width = (size, size) if isinstance(size, int) else size
    if image.shape[:2] == (height, width):
        return image
    shrinks = height * width < image.shape[0] * image.shape[1]
    return _with_channels(
        cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    )


def center_crop(size: int) -> Stage:
    """The middle square of the image, resized to `size` x `size`."""
    made = stage(center_crop_image, name="center_crop", size=size)
    check_range("center_crop", 1, size=size)
    return made


def center_crop_image(image: Image, size: int) -> Image:
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return resize_image(image[top : top + side, left : left + side], size)


def random_resized_crop(
    size: int, scale: tuple[float, float] = (0.08, 1.0), ratio: tuple[float, float] = (3 / 4, 4 / 3)
) -> Stage:
    """A random area of the image with a random aspect ratio, resized to `size` x `size` (as torchvision draws it)."""
    options = {"size": size, "scale": tuple(scale), "ratio": tuple(ratio)}
    made = stage(random_resized_crop_image, name="random_resized_crop", **options)
    check_range("random_resized_crop", 1, size=size)
    check_range("random_resized_crop", 0, 1, scale=scale)
    check_order("random_resized_crop", scale=scale, ratio=ratio)
    return made


def random_resized_crop_image(
    image: Image,
    rng: np.random.Generator,
    size: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Image:
    box = random_box(image.shape[0], image.shape[1], rng, scale, ratio)
    if box is None:
        return center_crop_image(image, size)
    top, left, height, width = box
    return resize_image(image[top : top + height, left : left + width], size)


def random_box(
    height: int, width: int, rng: np.random.Generator, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int] | None:
    """Top, left, height and width of a random box within the image; None when ten draws do not fit."""
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = np.exp(rng.uniform(np.log(ratio[0]), np.log(ratio[1])))
        box_width, box_height = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < box_width <= width and 0 < box_height <= height:
            return rng.integers(height - box_height + 1), rng.integers(width - box_width + 1), box_height, box_width
    return None


def flip(probability: float = 0.5) -> Stage:
    """Mirror left and right."""
    made = stage(flip_image, name="flip", probability=probability)
    check_range("flip", 0, 1, probability=probability)
    return made


def flip_image(image: Image, rng: np.random.Generator, probability: float = 0.5) -> Image:
    return image[:, ::-1] if rng.random() < probability else image


def random_shift(pixels: int) -> Stage:
    """Move by up to `pixels` in each direction; the border is repeated."""
    made = stage(random_shift_image, name="random_shift", pixels=pixels)
    check_range("random_shift", 0, pixels=pixels)
    return made


def random_shift_image(image: Image, rng: np.random.Generator, pixels: int) -> Image:
    height, width = image.shape[:2]
    padded = _with_channels(cv2.copyMakeBorder(image, pixels, pixels, pixels, pixels, cv2.BORDER_REPLICATE))
    top, left = rng.integers(0, 2 * pixels + 1, size=2)
    return padded[top : top + height, left : left + width]


# --- values -------------------------------------------------------------------------------------------------------


def gaussian_blur(kernel: int = 11, sigma: tuple[float, float] = (0.1, 2.0), times: int = 1) -> Stage:
    """`times` Gaussian blurs in a row, each with its own sigma drawn uniformly; border reflected (101).

    The same kernel as torchvision's `gaussian_blur`, applied as two one-dimensional passes. On float images several
    blurs are one: their kernels are convolved, which the reflected border leaves exact, and what lies further out than
    BLUR_TOLERANCE of the kernel's mass is cut off. On integer images every blur rounds, so each is made.

    Raises:
        ConfigError: an even kernel, or a sigma that is not positive and in order.
    """
    made = stage(gaussian_blur_image, name="gaussian_blur", kernel=kernel, sigma=tuple(sigma), times=times)
    if kernel < 1 or kernel % 2 == 0:
        raise ConfigError(f"gaussian_blur: kernel must be odd and positive (given: {kernel})")
    check_order("gaussian_blur", sigma=sigma)
    check_range("gaussian_blur", 1, times=times)
    return made


def gaussian_blur_image(
    image: Image, rng: np.random.Generator, kernel: int = 11, sigma: tuple[float, float] = (0.1, 2.0), times: int = 1
) -> Image:
    sigmas = rng.uniform(*sigma, size=times)
    if np.issubdtype(image.dtype, np.floating):
        taps = blur_taps(kernel, sigmas)
        return _with_channels(cv2.sepFilter2D(image, -1, taps, taps, borderType=cv2.BORDER_REFLECT_101))
    for value in sigmas:
        image = cv2.GaussianBlur(image, (kernel, kernel), value, borderType=cv2.BORDER_REFLECT_101)
    return _with_channels(image)


def blur_taps(kernel: int, sigmas: Sequence[float] | np.ndarray) -> np.ndarray:
    """One-dimensional kernel of Gaussian blurs in a row: float64, odd length, sum 1."""
    taps = np.ones(1)
    for value in sigmas:
        taps = np.convolve(taps, cv2.getGaussianKernel(kernel, value, cv2.CV_64F)[:, 0])
    outside = np.cumsum(taps[: len(taps) // 2])
    cut = int(np.searchsorted(outside, BLUR_TOLERANCE / 2))
    taps = taps[cut : len(taps) - cut]
    return np.asarray(taps / taps.sum())


def color_jitter(brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0) -> Stage:
    """Change each by a factor drawn uniformly from [max(0, 1 - x), 1 + x], in random order, as torchvision does.

    For RGB images of uint8, or float images with values from 0 to 1. No hue: use torchvision's ColorJitter for it.

    Raises:
        ConfigError: a negative value.
    """
    given = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    made = stage(color_jitter_image, name="color_jitter", **given)
    check_range("color_jitter", 0, **given)
    return made


def cast(dtype: str) -> Stage:
    """To another NumPy dtype, such as `float16`, which halves what travels; the device casts it to what it computes in.

    Raises:
        ConfigError: not a dtype that NumPy and torch share.
    """
    known = ("uint8", "int16", "int32", "int64", "float16", "float32", "float64")
    if dtype not in known:
        raise ConfigError(f"cast: unknown dtype {dtype!r}{nearest(str(dtype), known)} (known: {', '.join(known)})")
    return stage(cast_image, name="cast", dtype=dtype)


def cast_image(image: np.ndarray, dtype: str) -> np.ndarray:
    return image.astype(dtype, copy=False)


def to_uint8(size: int | None = None) -> Stage:
    """Resize to `size` if given, then round and clip to uint8."""
    made = stage(to_uint8_image, name="to_uint8", size=size)
    check_range("to_uint8", 1, size=size)
    return made


def to_uint8_image(image: Image, size: int | None = None) -> Image:
    if size is not None:
        image = resize_image(image, size)
    return image if image.dtype == np.uint8 else np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _with_channels(image: np.ndarray) -> Image:
    """OpenCV drops the channel axis of one-channel images."""
    return image[:, :, None] if image.ndim == 2 else image
