"""The stages by name, as a job file has them, and what else may stand in a pipeline."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

from raytrain import data, public_names
from raytrain.config.own_code import import_object
from raytrain.data.stages.images import decode_image
from raytrain.data.stages.options import check_options
from raytrain.data.stages.stage import Stage, stage
from raytrain.data.stages.torchvision import apply_transform, draws
from raytrain.errors import ConfigError, nearest, one_line


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


def needs_image(stage: Stage) -> bool:
    """Whether it is one of ours, and takes an image that has been decoded."""
    module = getattr(stage.function, "__module__", None) or ""
    return module.startswith("raytrain.data.stages.") and stage.function is not decode_image


# --- from a job file ----------------------------------------------------------------------------------------------

STAGES: dict[str, Callable[..., Stage]] = {
    name: getattr(import_module(module), name)
    for name, module in public_names(data.__file__).items()
    if module in ("raytrain.data.stages.images", "raytrain.data.stages.torchvision")
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
    check_options(f"stage {name!r}", known, options)
    try:
        return STAGES[name](**options)
    except (TypeError, ValueError) as error:  # a value of another type than it takes
        raise ConfigError(f"stage {name!r} does not take the values {options!r}: {one_line(error)}") from None


def _options_of(name: str) -> list[inspect.Parameter]:
    if name not in STAGES:
        raise ConfigError(f"unknown stage {name!r}{nearest(name, STAGES)} (known: {', '.join(STAGES)})")
    return list(inspect.signature(STAGES[name]).parameters.values())
