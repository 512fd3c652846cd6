"""What random stages draw of a sample, apart from what they do with it: whichever place does it, the numbers are the
same.

A function gets the generator of the sample, the `canvas`, (height, width) of the image that the stage meets, and the
stage's options, and returns a few numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Canvas = tuple[int, int]
Size = int | tuple[int, int]
Box = tuple[int, int, int, int]
"""Top, left, height, width."""


def random_crop_draws(
    rng: np.random.Generator,
    canvas: Canvas,
    size: Size,
    padding: int | tuple[int, int] | tuple[int, int, int, int] = 0,
    pad_if_needed: bool = False,
    **_: Any,
) -> tuple[int, int]:
    """Top and left within the padded image.

    Raises:
        ValueError: it does not fit.
    """
    height, width = both_sides(size)
    left, top, right, bottom = sides_around(canvas, size, padding, pad_if_needed)
    over = canvas[0] + top + bottom - height, canvas[1] + left + right - width
    if min(over) < 0:
        raise ValueError(
            f"a crop of {height} x {width} does not fit into {canvas[0]} x {canvas[1]}; pad_if_needed makes room"
        )
    return int(rng.integers(over[0] + 1)), int(rng.integers(over[1] + 1))


def sides_around(
    canvas: Canvas, size: Size, padding: int | Sequence[int], pad_if_needed: bool
) -> tuple[int, int, int, int]:
    """Left, top, right, bottom: the pixels that `random_crop` puts around an image."""
    height, width = both_sides(size)
    left, top, right, bottom = _sides(padding)
    if pad_if_needed:
        lacks_height, lacks_width = height - canvas[0] - top - bottom, width - canvas[1] - left - right
        if lacks_height > 0:
            top, bottom = top + lacks_height, bottom + lacks_height
        if lacks_width > 0:
            left, right = left + lacks_width, right + lacks_width
    return left, top, right, bottom


def random_resized_crop_draws(
    rng: np.random.Generator,
    canvas: Canvas,
    size: Size,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    **_: Any,
) -> Box:
    return random_box(canvas, rng, scale, ratio)


def random_box(canvas: Canvas, rng: np.random.Generator, scale: tuple[float, float], ratio: tuple[float, float]) -> Box:
    """A random box within the image; the middle, as near to `ratio` as it can be, when ten draws do not fit."""
    height, width = canvas
    for _ in range(10):
        box_width, box_height = _rectangle(rng, canvas, scale, ratio)
        if 0 < box_width <= width and 0 < box_height <= height:
            return _somewhere(rng, canvas, box_height, box_width)
    aspect = min(max(width / height, ratio[0]), ratio[1])
    box_height, box_width = min(height, round(width / aspect)), min(width, round(height * aspect))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def flip_draws(rng: np.random.Generator, canvas: Canvas, p: float = 0.5) -> tuple[bool]:
    """Whether it is mirrored."""
    return (bool(rng.random() < p),)


def gaussian_blur_draws(
    rng: np.random.Generator,
    canvas: Canvas,
    kernel_size: int,
    sigma: tuple[float, float] = (0.1, 2.0),
    times: int = 1,
) -> np.ndarray:
    """float64 (times,): the sigma of each blur."""
    return rng.uniform(*sigma, size=times)


def color_jitter_draws(
    rng: np.random.Generator,
    canvas: Canvas,
    brightness: tuple[float, float] = (1.0, 1.0),
    contrast: tuple[float, float] = (1.0, 1.0),
    saturation: tuple[float, float] = (1.0, 1.0),
    hue: tuple[float, float] = (0.0, 0.0),
) -> np.ndarray:
    """float64 (8,): how much of each of color.CHANGES, and in which order they come, as numbers from 0 to 3."""
    amounts = [rng.uniform(*each) for each in (brightness, contrast, saturation, hue)]
    return np.array([*amounts, *rng.permutation(4)], np.float64)


def random_erasing_draws(
    rng: np.random.Generator,
    canvas: Canvas,
    p: float = 0.5,
    scale: tuple[float, float] = (0.02, 0.33),
    ratio: tuple[float, float] = (0.3, 3.3),
    **_: Any,
) -> Box:
    """Smaller than the image along both sides; of no size where nothing is erased, or ten draws do not fit."""
    height, width = canvas
    if rng.random() < p:
        for _try in range(10):
            box_height, box_width = _rectangle(rng, canvas, scale, ratio)
            if box_height < height and box_width < width:
                return _somewhere(rng, canvas, box_height, box_width)
    return 0, 0, 0, 0


def _rectangle(
    rng: np.random.Generator, canvas: Canvas, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int]:
    """Two sides, the first over the second in `ratio`, of a rectangle of a share of the canvas in `scale`."""
    area = canvas[0] * canvas[1] * rng.uniform(*scale)
    aspect = np.exp(rng.uniform(np.log(ratio[0]), np.log(ratio[1])))
    return round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)


def _somewhere(rng: np.random.Generator, canvas: Canvas, height: int, width: int) -> Box:
    top, left = rng.integers(canvas[0] - height + 1), rng.integers(canvas[1] - width + 1)
    return int(top), int(left), height, width


def random_grayscale_draws(rng: np.random.Generator, canvas: Canvas, p: float = 0.1) -> tuple[bool]:
    """Whether it becomes grey."""
    return (bool(rng.random() < p),)


def seed_draws(rng: np.random.Generator, canvas: Canvas, **_: Any) -> np.int64:
    """A seed, from 0 to 2**63 - 2, for what draws by itself."""
    return np.int64(rng.integers(2**63 - 1))


def both_sides(size: Size) -> Canvas:
    return (size, size) if isinstance(size, int) else size


def _sides(padding: int | Sequence[int]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom."""
    if isinstance(padding, int):
        return padding, padding, padding, padding
    left, top = padding[0], padding[1]
    right, bottom = (padding[2], padding[3]) if len(padding) == 4 else (left, top)
    return left, top, right, bottom
