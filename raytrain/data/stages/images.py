"""What is in an image: decoding, and stages that change its values, in NumPy and OpenCV.

Names, parameters and defaults are torchvision's (transforms.v2). An image is (height, width, channels), uint8 or
float32.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from io import BytesIO
from typing import Any

import cv2
import numpy as np

from raytrain.data.samples.fields import BFLOAT16, DTYPES, Field, Kind, np_dtype
from raytrain.data.stages.color import color_jitter_image, grayscale_image, random_grayscale_image
from raytrain.data.stages.draws import (
    color_jitter_draws,
    gaussian_blur_draws,
    random_erasing_draws,
    random_grayscale_draws,
)
from raytrain.data.stages.encoded.canvas import PNG, check_size
from raytrain.data.stages.encoded.jpeg import jpeg_head
from raytrain.data.stages.options import check_order, check_range
from raytrain.data.stages.stage import FEWER_PIXELS, STORE_SMALLER, On, Stage, built_in
from raytrain.errors import ConfigError, nearest, one_line

BLUR_TOLERANCE = 1e-6
_PALETTE = 3  # a PNG's colour type

_on_images = partial(built_in, kinds=("image",), movable=True)

Image = np.ndarray
Range = float | tuple[float, float]


# --- decoding -----------------------------------------------------------------------------------------------------


def decode(*, scaled: bool = True, on: On = None) -> Stage:
    """Encoded bytes of an image to uint8 (height, width, 3), RGB, turned upright as its EXIF data says; those of a mask
    to (height, width), its values as they are stored (of a palette, the numbers of the colours).

    As Pillow's `ImageOps.exif_transpose` and `convert("RGB")` have it: CMYK becomes RGB, transparency is left out, of
    an animation the first picture is taken, and of 16 bits the upper 8 (where Pillow cuts greys off at 255). An image
    of more than 178,956,970 pixels, which Pillow refuses as well, counts as one that cannot be decoded, by its header.

    Args:
        scaled: decode a JPEG at a half, a quarter or an eighth of its size where the next stage, a `resize` or
            `random_resized_crop` of the same field, shrinks it by as much; the pixels then differ slightly. On the
            device it is decoded whole.
    """
    return built_in(
        decode_field,
        "decode",
        on,
        kinds=("image", "mask"),
        change=_decoded,
        decodes=True,
        movable=True,
        helps=f"{STORE_SMALLER}, since every pixel is decoded; or put a `resize` or `random_resized_crop` behind it, "
        "for which a JPEG is decoded at a half, a quarter or an eighth of its size",
        scaled=scaled,
    )


def decode_field(value: bytes | np.ndarray, kind: Kind, scaled: bool = True) -> Image:
    """Raises ValueError when `value` is not a whole image (OpenCV 4 let truncated ones pass), or one of more than
    MOST_PIXELS, before memory is taken for them."""
    if not isinstance(value, bytes):
        return value  # already an array
    if kind == "mask":
        return decode_mask(value)
    return by_opencv(value, cv2.IMREAD_COLOR_RGB)


def by_opencv(data: bytes, flags: int) -> Image:
    """
    Raises:
        ValueError: it is no whole image, or too large a one.
    """
    check_size(data)
    try:
        image: Image | None = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None:
        raise ValueError("not a decodable image")
    return image


def decoded_size(data: bytes, kind: Kind) -> tuple[int, int]:
    """(height, width) of what `decode_field` makes of it, by the header of a usual JPEG or a mask in PNG; anything else
    is decoded for it.

    Raises:
        ValueError: it is no whole image.
    """
    check_size(data)
    if kind == "mask" and data.startswith(PNG) and len(data) > 24:
        height, width = int.from_bytes(data[20:24]), int.from_bytes(data[16:20])
        return height, width
    head = jpeg_head(data) if kind == "image" else None
    if head is not None and head.is_usual:
        return head.size
    height, width = decode_field(data, kind).shape[:2]
    return height, width


def decode_mask(data: bytes) -> np.ndarray:
    depth, color = data[24:26] if data.startswith(PNG) and len(data) > 25 else (8, 0)
    if color == _PALETTE:
        return _palette_numbers(data)
    mask = by_opencv(data, cv2.IMREAD_UNCHANGED)
    if mask.ndim != 2:
        raise ValueError(f"a mask has one channel, this has {mask.shape[2]}")
    return mask if depth >= 8 else mask // np.uint8(255 // (2**depth - 1))  # which OpenCV spreads over 0 to 255


def _palette_numbers(data: bytes) -> np.ndarray:
    """OpenCV gives the colours."""
    from PIL import Image as pillow

    check_size(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pillow.DecompressionBombWarning)
            with pillow.open(BytesIO(data)) as picture:
                return np.array(picture)
    except Exception as error:  # noqa: BLE001 - of a damaged file it raises anything
        raise ValueError(f"not a decodable image: {one_line(error)}") from None


def _decoded(what: Field) -> Field:
    if what.dtype not in ("", "bytes"):
        return what
    if what.kind == "mask":
        return Field("", (None, None), "mask", what.classes)
    return Field("uint8", (None, None, 3), "image")


# --- values -------------------------------------------------------------------------------------------------------


def gaussian_blur(kernel_size: int, *, sigma: Range = (0.1, 2.0), times: int = 1, on: On = None) -> Stage:
    """`times` Gaussian blurs in a row, each with its own sigma drawn uniformly; border reflected.

    The same kernel as torchvision's `gaussian_blur`, `exp(-x**2 / (2 * sigma**2))` scaled to a sum of 1, along both
    axes. On float images several
    blurs are one: their kernels are convolved, which the reflected border leaves exact, and what lies further out than
    1e-6 of the kernel's mass is cut off. On integer images every blur rounds, so each is made.

    Args:
        kernel_size: pixels, odd.
        sigma: pixels, or (low, high).
        times: how many blurs.

    Raises:
        ConfigError: an even kernel, or a sigma that is not positive and in order.
    """
    sigma = (sigma, sigma) if isinstance(sigma, int | float) else tuple(sigma)  # type: ignore[assignment]
    made = _on_images(
        gaussian_blur_image,
        "gaussian_blur",
        on,
        change=_same,
        helps=f"{FEWER_PIXELS}; a smaller kernel; where it blurs several times, `to_dtype: {{dtype: float32}}` before "
        "it makes one blur of them",
        draws=gaussian_blur_draws,
        kernel_size=kernel_size,
        sigma=sigma,
        times=times,
    )
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ConfigError(f"gaussian_blur: kernel_size must be odd and positive (given: {kernel_size})")
    check_order("gaussian_blur", sigma=sigma)  # type: ignore[arg-type]
    check_range("gaussian_blur", 1, times=times)
    return made


def gaussian_blur_image(
    image: Image, rng: np.random.Generator, kernel_size: int, sigma: tuple[float, float] = (0.1, 2.0), times: int = 1
) -> Image:
    sigmas = gaussian_blur_draws(rng, image.shape[:2], kernel_size, sigma, times)
    if np.issubdtype(image.dtype, np.floating):
        taps = blur_taps(kernel_size, sigmas)
        return _with_channels(cv2.sepFilter2D(image, -1, taps, taps, borderType=cv2.BORDER_REFLECT_101))
    for value in sigmas:
        image = cv2.GaussianBlur(image, (kernel_size, kernel_size), value, borderType=cv2.BORDER_REFLECT_101)
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


def color_jitter(
    brightness: Range = 0.0, contrast: Range = 0.0, saturation: Range = 0.0, hue: Range = 0.0, *, on: On = None
) -> Stage:
    """Change brightness, contrast and saturation by a factor f each, and the hue by a share of the circle, in random
    order: `f * image`, and `f * image + (1 - f) * grey`, with the mean grey of the image for the contrast and the grey
    of each pixel for the saturation.

    For RGB images of uint8, or float images with values from 0 to 1; of grey ones hue and saturation stay.

    Args:
        brightness, contrast, saturation: x for a factor from [max(0, 1 - x), 1 + x], or (low, high).
        hue: x for a shift from [-x, x], at most 0.5, or (low, high).

    Raises:
        ConfigError: a negative value, or a hue that is further away than half of the circle.
    """
    factors: dict[str, Any] = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    check_range("color_jitter", 0, **factors)
    check_range("color_jitter", -0.5, 0.5, hue=hue)
    ranges: dict[str, Any] = {name: _around(1.0, given, 0.0) for name, given in factors.items()} | {
        "hue": _around(0.0, hue, -0.5)
    }
    return _on_images(color_jitter_image, "color_jitter", on, change=_same, draws=color_jitter_draws, **ranges)


def _around(middle: float, given: Range, least: float) -> tuple[float, float]:
    if isinstance(given, int | float):
        return max(middle - abs(given), least), middle + abs(given)
    low, high = given
    if low > high:
        raise ConfigError(f"stage 'color_jitter': a range is [low, high] (given: {list(given)})")
    return float(low), float(high)


def grayscale(num_output_channels: int = 1, *, on: On = None) -> Stage:
    """To greys, `0.2989 * red + 0.587 * green + 0.114 * blue`.

    Args:
        num_output_channels: 1, or 3 equal ones.
    """
    made = _on_images(
        grayscale_image, "grayscale", on, change=_channels(num_output_channels), num_output_channels=num_output_channels
    )
    if num_output_channels not in (1, 3):
        raise ConfigError(f"stage 'grayscale': num_output_channels must be 1 or 3 (given: {num_output_channels})")
    return made


def random_grayscale(p: float = 0.1, *, on: On = None) -> Stage:
    """To greys, with as many channels as before.

    Args:
        p: the probability.
    """
    made = _on_images(random_grayscale_image, "random_grayscale", on, change=_same, draws=random_grayscale_draws, p=p)
    check_range("random_grayscale", 0, 1, p=p)
    return made


def random_erasing(
    p: float = 0.5,
    *,
    scale: tuple[float, float] = (0.02, 0.33),
    ratio: tuple[float, float] = (0.3, 3.3),
    value: float = 0,
    on: On = None,
) -> Stage:
    """A random rectangle of the image becomes one value.

    Args:
        p: the probability.
        scale: the area, as a share of the image's; equally likely from low to high.
        ratio: height over width; its logarithm equally likely from low to high.
        value: of every channel there.
    """
    made = _on_images(
        random_erasing_image,
        "random_erasing",
        on,
        change=_same,
        draws=random_erasing_draws,
        p=p,
        scale=scale,
        ratio=ratio,
        value=value,
    )
    check_range("random_erasing", 0, 1, p=p, scale=scale)
    check_order("random_erasing", scale=scale, ratio=ratio)
    return made


def random_erasing_image(
    image: Image,
    rng: np.random.Generator,
    p: float = 0.5,
    scale: tuple[float, float] = (0.02, 0.33),
    ratio: tuple[float, float] = (0.3, 3.3),
    value: float = 0,
) -> Image:
    top, left, height, width = random_erasing_draws(rng, (image.shape[0], image.shape[1]), p, scale, ratio)
    if not height or not width:
        return image
    erased = image.copy()
    erased[top : top + height, left : left + width] = value
    return erased


def to_dtype(dtype: str, *, scale: bool = False, on: On = None) -> Stage:
    """To another type, such as `float16` or `bfloat16`, which halve what travels of float32.

    Args:
        dtype: a name of NumPy's, or `bfloat16`.
        scale: values go from the range of the old type to that of the new: 0 to 255 of uint8, 0 to 65,535 of uint16, 0
            to 1 of floats.

    Raises:
        ConfigError: no such type, or none of images where they shall be scaled.
    """
    if dtype not in DTYPES:
        raise ConfigError(
            f"to_dtype: unknown dtype {dtype!r}{nearest(str(dtype), DTYPES)} (known: {', '.join(DTYPES)})"
        )
    if scale and dtype not in TOPS:
        raise ConfigError(f"to_dtype: {dtype} cannot be scaled to; that can {', '.join(TOPS)}")
    return built_in(convert, "to_dtype", on, kinds=(), change=_typed(dtype), movable=True, dtype=dtype, scale=scale)


TOPS = {"uint8": 255.0, "uint16": 65535.0, "float16": 1.0, BFLOAT16: 1.0, "float32": 1.0, "float64": 1.0}


def convert(value: np.ndarray, dtype: str, scale: bool = False) -> np.ndarray:
    """Raises TypeError where values of this type cannot be scaled."""
    wanted = np_dtype(dtype)
    old = value.dtype.name
    if not scale or old == dtype:
        return value.astype(wanted, copy=False)
    if old not in TOPS:
        raise TypeError(f"values of {old} cannot be scaled; those can of {', '.join(TOPS)}")
    factor = TOPS[dtype] / TOPS[old]
    if wanted.kind == "u" and value.dtype.kind == "u":
        return (value.astype(np.uint16) << 8 if dtype == "uint16" else value >> 8).astype(wanted)
    if wanted.kind == "u":  # as torchvision rounds: the same share of the range for every number
        return np.clip(value.astype(np.float64) * (TOPS[dtype] + 1.0 - 1e-3), 0, TOPS[dtype]).astype(wanted)
    return (value.astype(np.float32) * np.float32(factor)).astype(wanted, copy=False)


def to_uint8(*, on: On = None) -> Stage:
    """Round and clip to whole numbers from 0 to 255, without scaling."""
    return _on_images(to_uint8_image, "to_uint8", on, change=_typed("uint8"))


def to_uint8_image(image: Image) -> Image:
    return image if image.dtype == np.uint8 else np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _same(what: Field) -> Field:
    return what


class _typed:
    def __init__(self, dtype: str):
        self._dtype = dtype

    def __call__(self, what: Field) -> Field:
        return Field(self._dtype, what.shape, what.kind, what.classes)


class _channels:
    def __init__(self, number: int):
        self._number = number

    def __call__(self, what: Field) -> Field:
        shape = None if what.shape is None else (*what.shape[:2], self._number)
        return Field(what.dtype, shape, what.kind)


def _with_channels(image: np.ndarray) -> Image:
    """OpenCV drops the channel axis of one-channel images."""
    return image[:, :, None] if image.ndim == 2 else image
