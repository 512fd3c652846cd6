"""The stages by name, as a job file has them, and what else may stand in a pipeline."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

from raytrain import data, public_names
from raytrain.config.own_code import OFFERED_STAGES, import_object, offered
from raytrain.data.samples.fields import Schema
from raytrain.data.stages.ahead import looking_ahead
from raytrain.data.stages.options import check_options
from raytrain.data.stages.stage import Stage, stage
from raytrain.data.stages.torchvision import is_transform, of_transform
from raytrain.errors import ConfigError, nearest, one_line
from raytrain.record.status import READ


def as_stage(value: Any) -> Stage:
    """A Stage as it is, a torchvision v2 transform, or any function of one array."""
    if isinstance(value, Stage):
        return value
    name = value if isinstance(value, str) else getattr(value, "__name__", "")
    if name in STAGES and value in (name, STAGES[name]):
        raise ConfigError(f"{name!r} is not a stage yet: write {name}(...), with its options, from raytrain.data")
    if is_transform(value):
        return of_transform(value)
    if callable(value):
        return stage(value)
    raise ConfigError(f"{value!r} is not a stage: give a function of one array, or a torchvision v2 transform")


def settle(stages: Sequence[Stage], schema: Schema, key: str) -> tuple[tuple[Stage, ...], Schema]:
    """Stages that know their fields and have a name each, since seconds are kept by name; and what the samples are
    behind them.

    Args:
        key: where they stand in the job, such as `data.stages`.

    Raises:
        ConfigError: one wants a field that there is not, or something else than it is.
    """
    settled: list[Stage] = []
    seen: dict[str, int] = {READ: 1}
    for number, each in enumerate(stages, start=1):
        who = f"{key}: stage {number}, `{each.name}`,"
        if settled and settled[-1].scope == "batch" and each.scope != "batch":
            raise ConfigError(f"{who} works on one sample, and the one before it on a whole batch; put it before that")
        made, schema = each.settled(schema, who)
        seen[each.name] = seen.get(each.name, 0) + 1
        settled.append(made if seen[each.name] == 1 else replace(made, name=f"{each.name}_{seen[each.name]}"))
    return looking_ahead(settled), schema


# --- from a job file ----------------------------------------------------------------------------------------------

STAGES: dict[str, Callable[..., Stage]] = {
    name: getattr(import_module(module), name)
    for name, module in public_names(data.__file__).items()
    if module.startswith("raytrain.data.stages.") and module != Stage.__module__
}
"""By the lines of `raytrain/data/__init__.pyi`: the public functions of this folder, but for those that make a stage of
anything."""


def parse_stage(spec: str | dict[str, dict[str, Any] | None]) -> Stage:
    """`name`, or `{name: {option: value}}`. The name is that of a stage of ours, `package.module:name` of one's own, or
    what an installed package calls its own (`[project.entry-points."raytrain.stages"]`): a function of one array, a
    function or class that makes a Stage (its return type says so), or a Stage, which is taken as it is.

    Raises:
        ConfigError: an unknown stage (naming the nearest), an option that it does not have, a module without it.
    """
    name, options = next(iter(spec.items())) if isinstance(spec, dict) else (spec, None)
    found = STAGES[name] if name in STAGES else import_object(name if ":" in name else _offered(name))
    makes = _makes_stages(found)
    known = list(inspect.signature(found).parameters.values()) if makes else []
    if not isinstance(options, dict | None):
        option = next((each.name for each in known), "option")
        raise ConfigError(f"stage {name!r}: write its options by name, such as `{name}: {{{option}: {options!r}}}`")
    options = {key: tuple(v) if isinstance(v, list) else v for key, v in (options or {}).items()}
    if makes:
        return _made(name, found, known, options)
    if not isinstance(found, Stage) and not is_transform(found):
        return stage(found, **options)
    if options:
        raise ConfigError(f"stage {name!r} has been made already and takes no options; name the function that makes it")
    return as_stage(found)


def _makes_stages(found: Any) -> bool:
    if isinstance(found, type):
        return issubclass(found, Stage)
    returns = getattr(found, "__annotations__", {}).get("return")
    return returns is Stage or (isinstance(returns, str) and returns.rpartition(".")[2] == Stage.__name__)


def _made(name: str, makes: Callable[..., Stage], known: list[inspect.Parameter], options: dict[str, Any]) -> Stage:
    check_options(f"stage {name!r}", known, options)
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
