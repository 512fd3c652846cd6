"""The stages by name, as a job file has them, and what else may stand in a pipeline."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any

from raytrain import data, public_names
from raytrain.config.own_code import OFFERED_STAGES, import_object, offered
from raytrain.data.stages.draws import seed_draws
from raytrain.data.stages.mixing import MIXING
from raytrain.data.stages.options import check_options
from raytrain.data.stages.stage import On, Stage, made_of, stage
from raytrain.data.stages.torchvision import is_transform, of_transform
from raytrain.errors import ConfigError, nearest, one_line


def as_stage(value: Any) -> Stage:
    """A Stage as it is, a torchvision v2 transform, or any function of one array."""
    if isinstance(value, Stage):
        return value
    _check_made(value)
    if is_transform(value):
        return of_transform(value)
    if callable(value):
        return stage(value)
    told = f"{value!r:.60}"
    raise ConfigError(f"{told} is not a stage: give a function of one array, or a torchvision v2 transform")


def _check_made(value: Any) -> None:
    """
    Raises:
        ConfigError: it is what makes a stage of ours, or its name.
    """
    name = value if isinstance(value, str) else getattr(value, "__name__", "")
    if name in STAGES and value in (name, STAGES[name]):
        raise ConfigError(f"{name!r} is not a stage yet: write {name}(...), with its options, from raytrain.data")
    if isinstance(value, type):
        raise ConfigError(f"{name!r} is not a stage yet: write {name}(...), with its options")


def on_device(what: Any, *, on: On = None, **options: Any) -> Stage:
    """A stage that runs where the training does, on a whole batch at once; all that come after it do as well.

    A stage of ours or a transform of torchvision's v2 gives what it would have given on the CPU, within a rounding:
    its random numbers are drawn where they would have been drawn, and travel with the batch. (But what a transform of
    torchvision's draws pixel by pixel, as GaussianNoise does, comes from the GPU's own generator.)

    Args:
        what: a stage of ours, a transform of torchvision's v2, or a function of your own: called with a
            tensor of a batch (images are (samples, channels, height, width), as they were sent), which it must not
            change, and returning one of as many samples; or with a dict of such, where `on` is a list. Where it is
            random, it has a parameter `seeds`, an int64 tensor (samples,) on the host, drawn by sample.
        on: fields of your own function; by default `image`.
        options: keyword arguments of your own function, or `name`.

    Raises:
        ConfigError: a stage that can run on the CPU alone.
    """
    if isinstance(what, Stage) or is_transform(what):
        if on is not None or options:
            raise ConfigError("on_device: give the stage its fields and options where it is made")
        made = as_stage(what)
        if not made.movable:
            raise ConfigError(f"on_device: `{made.name}` can run on the CPU alone")
        return replace(made, place="device")
    if not callable(what):
        return as_stage(what)
    _check_made(what)
    named = options.pop("name", None)
    if "whole_batch" in options:
        raise ConfigError("on_device: a function there gets the whole batch in any case; leave `whole_batch` out")
    if "rng" in getattr(inspect.signature(what), "parameters", ()):
        raise ConfigError(
            f"on_device: {getattr(what, '__name__', what)!s:.40} has a parameter `rng`, which is for the CPU; a random "
            "function on the device has `seeds`"
        )
    made = made_of(what, on, False, None, named, options, "seeds")
    if made.scope == "sample":
        raise ConfigError(f"on_device: `on` of {made.name!r} is a field or a list of fields")
    return replace(made, place="device", movable=True, draws=seed_draws)


def on_cpu(what: Any) -> Stage:
    """A stage that stays on the CPU, wherever those around it run.

    Args:
        what: a stage of ours, a transform of torchvision's v2, or a function of one array.

    Raises:
        ConfigError: a stage that runs on the device alone.
    """
    made = as_stage(what)
    if made.draws in MIXING:
        raise ConfigError(f"on_cpu: `{made.name}` mixes a whole batch, which is done on the device alone")
    return replace(made, place="cpu")


PLACES: dict[str, Callable[[Any], Stage]] = {"auto": as_stage, "cpu": on_cpu, "device": on_device}

# --- from a job file ----------------------------------------------------------------------------------------------

STAGES: dict[str, Callable[..., Stage]] = {
    name: getattr(import_module(module), name)
    for name, module in public_names(data.__file__).items()
    if module.startswith("raytrain.data.stages.") and module not in (Stage.__module__, __name__)
}
"""By the lines of `raytrain/data/__init__.pyi`: the public functions of this folder, but for those that make a stage of
anything."""


def parse_stage(spec: str | dict[str, dict[str, Any] | None]) -> Stage:
    """`name`, or `{name: {option: value}}`, where `place` (`auto`, `cpu` or `device`) is an option of each.

    The name is that of a stage of ours, `package.module:name` of one's own, or
    what an installed package calls its own (`[project.entry-points."raytrain.stages"]`): a function of one array, a
    function or class that makes a Stage (its return type says so), or a Stage, which is taken as it is.

    Raises:
        ConfigError: an unknown stage (naming the nearest), an option that it does not have, a module without it.
    """
    name, options = next(iter(spec.items())) if isinstance(spec, dict) else (spec, None)
    found = STAGES[name] if name in STAGES else import_object(name if ":" in name else _offered(name), "data.stages")
    makes = _makes_stages(found)
    known = list(inspect.signature(found).parameters.values()) if makes else []
    if not isinstance(options, dict | None):
        option = next((each.name for each in known), "option")
        raise ConfigError(f"stage {name!r}: write its options by name, such as `{name}: {{{option}: {options!r}}}`")
    options = {key: tuple(v) if isinstance(v, list) else v for key, v in (options or {}).items()}
    place = options.pop("place", "auto")
    if place not in PLACES:
        raise ConfigError(f"stage {name!r}: place is one of {', '.join(PLACES)}, not {place!r}")
    if makes:
        return PLACES[place](_made(name, found, known, options))
    if isinstance(options.get("device"), str):
        options["device"] = import_object(options["device"])
    if not isinstance(found, Stage) and not is_transform(found):
        return on_device(found, **options) if place == "device" else PLACES[place](stage(found, **options))
    if options:
        raise ConfigError(f"stage {name!r} has been made already and takes no options; name the function that makes it")
    return PLACES[place](found)


def _makes_stages(found: Any) -> bool:
    if isinstance(found, type):
        return issubclass(found, Stage)
    returns = getattr(found, "__annotations__", {}).get("return")
    return returns is Stage or (isinstance(returns, str) and returns.rpartition(".")[2] == Stage.__name__)


def _made(name: str, makes: Callable[..., Stage], known: list[inspect.Parameter], options: dict[str, Any]) -> Stage:
    place = inspect.Parameter("place", inspect.Parameter.KEYWORD_ONLY, default="auto")
    check_options(f"stage {name!r}", [*known, place], options)
    try:
        return makes(**options)
    except (TypeError, ValueError) as error:  # a value of another type than it takes
        raise ConfigError(f"stage {name!r} does not take the values {options!r}: {one_line(error)}") from None


def _offered(name: str) -> str:
    """Where the stage of an installed package is."""
    known = offered(OFFERED_STAGES)
    if name not in known:
        every = [*STAGES, *known]
        raise ConfigError(f"unknown stage {name!r}{nearest(name, every)} (known: {', '.join(every)})")
    return known[name]
