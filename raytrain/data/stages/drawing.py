"""The workers' part of stages on the device: what these draw of a sample, in the order of the stages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from raytrain.data.samples.fields import Field
from raytrain.data.stages.draws import (
    Canvas,
    random_crop_draws,
    random_erasing_draws,
    random_resized_crop_draws,
    seed_draws,
)
from raytrain.data.stages.geometry import resize_field, resized_canvas
from raytrain.data.stages.images import decoded_size
from raytrain.data.stages.mixing import cutmix_draws
from raytrain.data.stages.stage import DRAWN, Stage, StageFailed
from raytrain.record.status import DRAW

# what draws by the size of the image
BY_SIZE = (random_crop_draws, random_resized_crop_draws, random_erasing_draws, cutmix_draws)


def drawing(stages: Sequence[Stage]) -> Stage:
    """As a stage; its random numbers follow those of the stages before."""
    helps = "it draws for the random stages on the device; cheap ones, such as flips, may as well run on the CPU"
    return Stage(DRAW, Drawing.of(stages), random=True, scope="sample", helps=helps)


def _for_drawing(stage: Stage) -> Stage:
    """Without a function of the user's and its options, for which workers would import torch."""
    if stage.change is not None and stage.draws is not seed_draws:
        return stage
    return replace(stage, function=seed_draws, options={}, change=None, form=None)


@dataclass(frozen=True)
class Drawing:
    """Draws for stages in order, each from where the one before it left the generator, as on the CPU."""

    stages: tuple[Stage, ...]

    @classmethod
    def of(cls, stages: Iterable[Stage]) -> Drawing:
        return cls(tuple(map(_for_drawing, stages)))

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """With what is drawn, by `DRAWN` and the name of the stage, (numbers,).

        Raises:
            ValueError: images that are to be cut alike have different sizes.
        """
        shapes = {name: np.shape(sample[name]) for stage in self.stages for name in stage.on or () if name in sample}
        return {**sample, **self.drawn({**shapes, **self._decoded_sizes(sample)}, rng)}

    def _decoded_sizes(self, sample: Mapping[str, Any]) -> dict[str, Canvas]:
        """Of the encoded fields whose size is asked for.

        Raises:
            StageFailed: one is no image.
        """
        asked = {name for stage in self.stages if _asks_size(stage) for name in stage.on or ()}
        decode = (each for each in self.stages if each.decodes)
        kinds = {name: kind for each in decode for name, kind in zip(each.on or (), each.on_kinds, strict=True)}
        try:
            return {name: decoded_size(sample[name], kinds[name]) for name in kinds if name in asked & {*sample}}
        except Exception as error:  # noqa: BLE001 - OpenCV raises its own
            raise StageFailed(error, None) from None

    def drawn(self, shapes: Mapping[str, Sequence[int]], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """
        Args:
            shapes: of the fields of a sample, without those that come about on the device.
        """
        canvases: dict[str, Canvas | None] = {n: (each[0], each[1]) for n, each in shapes.items() if len(each) > 1}
        drawn = {}
        for stage in self.stages:
            of = {name: canvases[name] for name in stage.on or () if name in canvases}
            known = {name: canvas for name, canvas in of.items() if canvas is not None}
            if stage.random:
                if _asks_size(stage) and len({*known.values()}) > 1:
                    sizes = ", ".join(f"`{name}` {height} x {width}" for name, (height, width) in known.items())
                    raise ValueError(f"fields of one sample must have one size to be cut alike: {sizes}")
                assert stage.draws is not None
                numbers = stage.draws(rng, next(iter(known.values()), (0, 0)), **stage.options)
                drawn[DRAWN + stage.name] = np.asarray(numbers)
            canvases |= {name: canvas_behind(stage, name, canvas) for name, canvas in of.items()}
        return drawn


def _asks_size(stage: Stage) -> bool:
    return stage.random and ("canvas" in stage.told or stage.draws in BY_SIZE)


def canvas_behind(stage: Stage, name: str, canvas: Canvas | None) -> Canvas | None:
    """(height, width) of the image in a field behind a stage; None where nobody knows."""
    if stage.decodes:
        return canvas
    if stage.function is resize_field and canvas is not None:
        return resized_canvas(canvas, stage.options["size"], stage.options.get("max_size"))
    before = Field("", (*(canvas or (None, None)), 3), "image")
    said = Field() if stage.gives is None else stage.gives.get(name, Field())
    behind = said if stage.change is None else stage.change(before)
    shape = behind.shape
    return None if shape is None or shape[0] is None or shape[1] is None else (shape[0], shape[1])
