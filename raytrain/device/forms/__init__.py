"""Device forms: what the CPU stages do, of a whole batch of tensors at once, on whatever device they are.

A form is `form(value, drawn, kind, **options)`:
    value: (samples, height, width, channels), or of a mask also (samples, height, width), with any strides; it stays as
        it is, and may share memory with the result.
    drawn: (samples, numbers), what the stage's function of `data/stages/draws.py` has drawn for each sample; None where
        it draws nothing. What depends on it is decided on the host, so that the device is never waited for.
    kind: image or mask.
    options: the CPU function's.
The result has the same layout, with any strides. Floats are the CPU's within 1e-3 of a range of 1; where OpenCV rounds
on the way, integers differ by a few levels at most; masks, and images that are only moved, are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from raytrain.data.samples.fields import Kind
from raytrain.data.stages import color, geometry, images, mixing
from raytrain.device.forms import colors, mixes, moves, values
from raytrain.device.forms.tensors import stacked

Form = Callable[..., torch.Tensor]

FORMS: dict[Callable[..., Any], Form] = {
    geometry.resize_field: moves.resize,
    geometry.center_crop_field: moves.center_crop,
    geometry.random_crop_field: moves.random_crop,
    geometry.random_resized_crop_field: moves.random_resized_crop,
    geometry.random_horizontal_flip_field: moves.random_horizontal_flip,
    geometry.random_vertical_flip_field: moves.random_vertical_flip,
    images.gaussian_blur_image: values.gaussian_blur,
    images.random_erasing_image: values.random_erasing,
    images.convert: values.to_dtype,
    images.to_uint8_image: values.to_uint8,
    mixing.mixup_draws: mixes.mixup,
    mixing.cutmix_draws: mixes.cutmix,
    color.color_jitter_image: colors.color_jitter,
    color.grayscale_image: colors.grayscale,
    color.random_grayscale_image: colors.random_grayscale,
}
"""By the function of the CPU stage."""


def form_of_many(
    function: Callable[..., Any],
    values: list[torch.Tensor],
    drawn: np.ndarray | None,
    kind: Kind,
    options: Mapping[str, Any],
) -> torch.Tensor | list[torch.Tensor]:
    """The form of a stage's function, of images or masks of many sizes, each (height, width, ...): all at once where
    they come to one size by averaging, else those of one size together.

    Returns:
        A batch where the results have one size.
    """
    averages = kind != "mask" and options.get("interpolation") != "nearest"
    if averages and function is geometry.random_resized_crop_field:
        return moves.crops_of_many(values, drawn, **options)
    if averages and function is geometry.resize_field and isinstance(options["size"], tuple):
        return moves.resize_of_many(values, drawn, **options)
    of_size: dict[torch.Size, list[int]] = {}
    for place, value in enumerate(values):
        of_size.setdefault(value.shape, []).append(place)
    made: list[Any] = [None] * len(values)
    for places in of_size.values():
        batch = torch.stack([values[place] for place in places])
        result = FORMS[function](batch, None if drawn is None else drawn[places], kind, **options)
        for place, one in zip(places, result, strict=True):
            made[place] = one
    return stacked(made)
