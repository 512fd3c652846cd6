"""Stages that mix the samples of a batch with each other, which the device does: MixUp (Zhang et al., 2018) and CutMix
(Yun et al., 2019)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from raytrain.data.samples.fields import Field
from raytrain.data.stages.draws import Box, Canvas
from raytrain.data.stages.stage import Draws, On, Stage, built_in
from raytrain.errors import ConfigError

IMAGE_AND_LABEL = ("image", "label")


def mixup(*, num_classes: int, alpha: float = 1.0, on: On = IMAGE_AND_LABEL) -> Stage:
    """Blend each image of a batch, and its label, with another one, on the device, as MixUp does.

    The other is the one as far from the end of the batch as this is from its beginning. The weight is drawn for every
    sample by itself. A label becomes `num_classes` float32 that add up to 1.

    Args:
        num_classes: that labels are of.
        alpha: of the Beta(alpha, alpha) that weights are drawn from; the smaller, the nearer to 0 or 1.
        on: images and class labels.
    """
    return _mixing("mixup", mixup_draws, num_classes, alpha, on)


def cutmix(*, num_classes: int, alpha: float = 1.0, on: On = IMAGE_AND_LABEL) -> Stage:
    """Put a rectangle of another image of the batch into each, on the device, as CutMix does; labels are mixed by area.

    Which other, and what becomes of labels, is as of `mixup`.

    Args:
        num_classes: that labels are of.
        alpha: of the Beta(alpha, alpha) that the share of the area is drawn from that is left.
        on: images and class labels.
    """
    return _mixing("cutmix", cutmix_draws, num_classes, alpha, on)


def _mixing(name: str, draws: Draws, num_classes: int, alpha: float, on: On) -> Stage:
    made = built_in(
        draws,  # nothing does it on the CPU
        name,
        on,
        kinds=(),
        change=Mixed(name, num_classes),
        draws=draws,
        movable=True,
        num_classes=num_classes,
        alpha=alpha,
    )
    if num_classes < 1 or not alpha > 0:
        raise ConfigError(f"stage {name!r}: num_classes and alpha are above 0 (given: {num_classes}, {alpha})")
    return replace(made, place="device")


@dataclass(frozen=True)
class Mixed:
    """What becomes of a field."""

    name: str
    num_classes: int

    def __call__(self, what: Field) -> Field:
        """
        Raises:
            ConfigError: it is neither an image nor a label.
        """
        if what.kind == "image":
            return what
        is_label = what.shape is None or what.shape in ((), (self.num_classes,))
        if what.kind or not what.may_be_array or not is_label:
            raise ConfigError(f"stage {self.name!r} mixes images and class labels, and one of its fields is {what}")
        return Field("float32", (self.num_classes,), classes=what.classes)


def mixup_draws(rng: np.random.Generator, canvas: Canvas, num_classes: int, alpha: float = 1.0) -> tuple[float]:
    """The weight of the sample itself."""
    return (float(rng.beta(alpha, alpha)),)


def cutmix_draws(
    rng: np.random.Generator, canvas: Canvas, num_classes: int, alpha: float = 1.0
) -> tuple[int, int, int, int, float]:
    """The rectangle of the other, and the share of the area that is left of the sample itself: as torchvision's CutMix
    draws them."""
    height, width = canvas
    half = 0.5 * np.sqrt(1 - rng.beta(alpha, alpha))
    row, column = int(rng.integers(height)), int(rng.integers(width))
    top, bottom = max(row - int(half * height), 0), min(row + int(half * height), height)
    left, right = max(column - int(half * width), 0), min(column + int(half * width), width)
    box: Box = (top, left, bottom - top, right - left)
    return *box, 1 - box[2] * box[3] / (height * width)


MIXING = (mixup_draws, cutmix_draws)
