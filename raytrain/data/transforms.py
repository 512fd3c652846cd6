"""CPU stages: frozen values over plain functions of one sample, in NumPy and OpenCV.

A stage function takes an image (height, width, channels) and, when it is random, `rng`, a `numpy.random.Generator`
seeded with (seed, epoch, sample id): whichever host prepares the sample, and however often, it comes out the same.
Nothing here imports torch; only `torchvision` stages do, in the workers that run them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from raytrain.data.color import color_jitter_image
from raytrain.data.options import check_options, check_order, check_range, check_types
from raytrain.data.vision import DRAWS_NOTHING, apply_named, apply_transform, draws
from raytrain.errors import ConfigError, nearest, one_line
from raytrain.own_code import import_object

BLUR_TOLERANCE = 1e-6

Image = np.ndarray
"""(height, width, channels), uint8 or float32."""


@dataclass(frozen=True)
class Stage:
    """One step of the preprocessing of a sample.

    Attributes:
        name: in tables and the record.
        function: called as `function(sample, **options)`, with `rng=` too when `random`.
        random: whether it draws from `rng`.
        options: keyword arguments of `function`.
    """

    name: str
    function: Callable[..., np.ndarray]
    random: bool = False
    options: dict[str, Any] = field(default_factory=dict, hash=False)

    def __call__(self, sample: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        if self.random:
            return self.function(sample, rng=rng, **self.options)
        return self.function(sample, **self.options)


def stage(function: Callable[..., np.ndarray], *, name: str | None = None, **options: Any) -> Stage:
    """A stage of your own: any function of one array, random when it has a parameter `rng`.

    Raises:
        ConfigError: `options` do not fit the function's signature.
    """
    label = name or getattr(function, "__name__", type(function).__name__)
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # a builtin without a signature
        return Stage(label, function, False, options)
    except TypeError as error:
        raise ConfigError(f"stage {label!r}: {error}") from None
    random = "rng" in parameters
    check_options(label, [each for each in parameters.values() if each.name != "rng"][1:], options)
    try:
        inspect.signature(function).bind(None, **({"rng": None} if random else {}), **options)
    except TypeError as error:
        raise ConfigError(f"stage {label!r} is called with one array and its options: {error}") from None
    if function.__module__.startswith("raytrain.data."):
        check_types(label, function, options)
    return Stage(label, function, random, options)


def as_stage(value: Any) -> Stage:
    """A Stage as it is, a torchvision v2 transform, or any function of one array."""
    if isinstance(value, Stage):
        return value
    name = value if isinstance(value, str) else getattr(value, "__name__", "")
    if name in STAGES and value in (name, STAGES[name]):
        raise ConfigError(f"{name!r} is not a stage yet: write {name}(...), with its options, from raytrain.data")
    if type(value).__module__.startswith("torchvision."):
        random = draws(value)
        return Stage(f"torchvision.{type(value).__name__}", apply_transform, random, {"transform": value})
    if callable(value):
        return stage(value)
    raise ConfigError(f"{value!r} is not a stage: give a function of one array, or a torchvision v2 transform")


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


def blur_taps(kernel: int, sigmas: Sequence[float]) -> np.ndarray:
    """One-dimensional kernel of Gaussian blurs in a row: float64, odd length, sum 1."""
    taps = np.ones(1)
    for value in sigmas:
        taps = np.convolve(taps, cv2.getGaussianKernel(kernel, value, cv2.CV_64F)[:, 0])
    outside = np.cumsum(taps[: len(taps) // 2])
    cut = int(np.searchsorted(outside, BLUR_TOLERANCE / 2))
    taps = taps[cut : len(taps) - cut]
    return taps / taps.sum()


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


# --- torchvision --------------------------------------------------------------------------------------------------


def torchvision(transform: str, **options: Any) -> Stage:
    """A torchvision v2 transform by name, such as `torchvision("ColorJitter", brightness=0.4)`.

    It gets the image as a uint8 or float tensor (channels, height, width); its random numbers are seeded per sample.
    """
    arguments = {"transform": transform, "arguments": options}
    return Stage(f"torchvision.{transform}", apply_named, transform not in DRAWS_NOTHING, arguments)


# --- from a job file ----------------------------------------------------------------------------------------------

STAGES: dict[str, Callable[..., Stage]] = {
    factory.__name__: factory
    for factory in (
        decode,
        resize,
        center_crop,
        random_resized_crop,
        flip,
        random_shift,
        gaussian_blur,
        color_jitter,
        cast,
        to_uint8,
        torchvision,
    )
}


def parse_stage(spec: str | dict[str, dict[str, Any] | None]) -> Stage:
    """`name`, `{name: {option: value}}`, or `package.module:function` in place of the name.

    Raises:
        ConfigError: an unknown stage (naming the nearest), an option that it does not have, a module without it.
    """
    name, options = next(iter(spec.items())) if isinstance(spec, dict) else (spec, None)
    known = [] if ":" in name else _options_of(name)
    if not isinstance(options, dict | None):
        option = next((each.name for each in known), "option")
        if not known and ":" not in name:
            raise ConfigError(f"stage {name!r} has no options (given: {options!r})")
        raise ConfigError(f"stage {name!r}: write its options by name, such as `{name}: {{{option}: {options!r}}}`")
    options = {key: tuple(v) if isinstance(v, list) else v for key, v in (options or {}).items()}
    if ":" in name:
        return stage(import_object(name), **options)
    check_options(name, known, options)
    try:
        return STAGES[name](**options)
    except (TypeError, ValueError) as error:  # a value of another type than it takes
        raise ConfigError(f"stage {name!r} does not take the values {options!r}: {one_line(error)}") from None


def _options_of(name: str) -> list[inspect.Parameter]:
    if name not in STAGES:
        raise ConfigError(f"unknown stage {name!r}{nearest(name, STAGES)} (known: {', '.join(STAGES)})")
    return list(inspect.signature(STAGES[name]).parameters.values())
