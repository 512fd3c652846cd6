"""Whether a stage takes the options that it is given, before it meets a sample."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from raytrain.errors import ConfigError, nearest


def check_options(what: str, known: Sequence[inspect.Parameter], options: Mapping[str, Any]) -> None:
    """Compare the options of `what`, such as `stage 'resize'`, with the parameters of its function.

    Raises:
        ConfigError: it does not have one (naming the nearest), or lacks one that it needs.
    """
    if any(each.kind is each.VAR_KEYWORD for each in known):
        return
    names = [each.name for each in known if each.kind is not each.VAR_POSITIONAL]
    has = f"its options: {', '.join(names)}" if names else "it has none"
    for name in options:
        if name not in names:
            raise ConfigError(f"{what} has no option {name!r}{nearest(str(name), names)} ({has})")
    for each in known:
        if each.name in names and each.default is each.empty and each.name not in options:
            raise ConfigError(f"{what} needs its option {each.name!r} ({has})")


def check_types(label: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Compare values with the annotations of one of our own functions; `"32"` and `True` are no whole numbers.

    Raises:
        ConfigError: one is of another type.
    """
    from pydantic import (  # not in the workers, which are given stages that are whole
        ConfigDict,
        TypeAdapter,
        ValidationError,
    )

    hints = get_type_hints(function)
    for name, value in options.items():
        try:
            TypeAdapter(hints[name], config=ConfigDict(strict=True)).validate_python(value)
        except ValidationError:
            raise ConfigError(f"stage {label!r}: {name} must be {_told(hints[name])} (given: {value!r})") from None


def _told(hint: Any) -> str:
    """A type as it is written."""
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)


def check_range(label: str, least: float, most: float | None = None, **values: Any) -> None:
    """Numbers, pairs of them, or None.

    Raises:
        ConfigError: one is outside of the range.
    """
    for name, value in values.items():
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, int | float) and (each < least or (most is not None and each > most)):
                allowed = f"at least {least}" if most is None else f"from {least} to {most}"
                raise ConfigError(f"stage {label!r}: {name} must be {allowed} (given: {value!r})")


def check_order(label: str, **pairs: tuple[float, float]) -> None:
    """Pairs of (low, high).

    Raises:
        ConfigError: they are not positive, or not in order.
    """
    for name, (low, high) in pairs.items():
        if not 0 < low <= high:
            raise ConfigError(
                f"stage {label!r}: {name} must be [low, high] with 0 < low <= high (given: {[low, high]})"
            )
