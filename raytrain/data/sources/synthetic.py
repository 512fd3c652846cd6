"""Noise, made from a seed."""

from __future__ import annotations

from raytrain.config.data import SyntheticSource
from raytrain.data.sources.files import described


def synthetic(
    num_samples: int, *, shape: tuple[int, int, int] = (224, 224, 3), num_classes: int = 1000
) -> SyntheticSource:
    """Normal noise made from (seed, id), labelled `id % num_classes`."""
    return described(SyntheticSource, "synthetic", num_samples=num_samples, shape=shape, num_classes=num_classes)
