"""Decoding no more than the stage behind it needs: a JPEG at a half, a quarter or an eighth of its size.

JPEG stores 8 x 8 cosine coefficients; an image of half the size is made from the lower half of them, which is cheaper
and averages the pixels as shrinking would. The stage behind then shrinks by less than two. It draws what it would have
drawn, in pixels of the whole image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np

from raytrain.data.samples.fields import Kind
from raytrain.data.stages.draws import Canvas, both_sides, random_box
from raytrain.data.stages.encoded.jpeg import upright_size
from raytrain.data.stages.geometry import random_resized_crop_field, resize_field, resized_canvas
from raytrain.data.stages.images import by_opencv, decode_field
from raytrain.data.stages.stage import DECODED_FROM, Stage

REDUCED = {
    8: cv2.IMREAD_REDUCED_COLOR_8,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    2: cv2.IMREAD_REDUCED_COLOR_2,
}
SHRINK = (resize_field, random_resized_crop_field)


def looking_ahead(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """Settled stages, with each `decode` that is followed by one that shrinks decoding for that."""
    made = list(stages)
    for number, (stage, behind) in enumerate(zip(stages, stages[1:], strict=False)):
        fits = stage.function is decode_field and stage.options.get("scaled", True) and behind.function in SHRINK
        averages = behind.options.get("interpolation") != "nearest"  # which takes pixels as they are
        if fits and averages and stage.on == behind.on and stage.on_kinds == ("image",):
            options = {"shrinks": behind.function, "options": behind.options}
            made[number] = replace(
                stage,
                function=decode_for,
                random=behind.random,
                options=options,
                scope="fields",
                told=frozenset({"kinds"}),
            )
    return tuple(made)


def decode_for(
    fields: dict[str, Any],
    kinds: dict[str, Kind],
    shrinks: Any,
    options: dict[str, Any],
    rng: np.random.Generator | None = None,
) -> dict[str, Any]:
    """One field, decoded as small as what `shrinks` it allows, with the size that it would have had."""
    [(name, data)] = fields.items()
    canvas = upright_size(data) if isinstance(data, bytes) else None
    if canvas is not None:
        times = shrinks_by(canvas, shrinks, options, rng)
        factor = next((each for each in REDUCED if each <= times), None)
        if factor is not None:
            image = by_opencv(data, REDUCED[factor])
            if image.shape[:2] == tuple(-(-side // factor) for side in canvas):  # else OpenCV has read EXIF otherwise
                image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
                return {name: image, f"{name}{DECODED_FROM}": np.array(canvas)}
    return {name: decode_field(data, kinds[name])}


def shrinks_by(canvas: Canvas, stage: Any, options: dict[str, Any], rng: np.random.Generator | None) -> float:
    """How many times smaller the stage makes what it keeps, along the side that it shrinks least."""
    size = options["size"]
    if stage is resize_field:
        kept, target = canvas, resized_canvas(canvas, size, options.get("max_size"))
    else:  # what it is going to draw
        assert rng is not None
        state = rng.bit_generator.state
        kept, target = random_box(canvas, rng, options["scale"], options["ratio"])[2:], both_sides(size)
        rng.bit_generator.state = state
    return min(kept[0] / max(target[0], 1), kept[1] / max(target[1], 1))  # a side of 0 is for the stage to refuse
