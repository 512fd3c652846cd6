"""CPU stages: frozen values over plain functions of one sample, in NumPy and OpenCV.

A stage function takes an image (height, width, channels) and, when it is random, `rng`, a `numpy.random.Generator`
seeded with (seed, epoch, sample id): whichever host prepares the sample, and however often, it comes out the same.
Nothing here imports torch; only `torchvision` stages do, in the workers that run them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from raytrain.data.stages.options import check_options, check_types
from raytrain.errors import ConfigError


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
    label = name or str(getattr(function, "__name__", type(function).__name__))
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # a builtin without a signature
        return Stage(label, function, False, options)
    except TypeError as error:
        raise ConfigError(f"stage {label!r}: {error}") from None
    random = "rng" in parameters
    check_options(f"stage {label!r}", [each for each in parameters.values() if each.name != "rng"][1:], options)
    try:
        inspect.signature(function).bind(None, **({"rng": None} if random else {}), **options)
    except TypeError as error:
        raise ConfigError(f"stage {label!r} is called with one array and its options: {error}") from None
    if function.__module__.startswith("raytrain.data."):
        check_types(label, function, options)
    return Stage(label, function, random, options)
