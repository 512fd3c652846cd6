"""Classes that a job names: of torch's, of timm's, or of an importable module."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from raytrain.config.own_code import import_object
from raytrain.errors import ConfigError, nearest, one_line


def found(name: str, key: str, *places: tuple[str, Any, type]) -> Callable[..., Any]:
    """What a name stands for.

    Args:
        key: of the job file, for messages.
        places: what each is called, the module, and the class that what is there must be one of.

    Raises:
        ConfigError: there is none, naming the nearest.
    """
    if ":" in name:
        made: Callable[..., Any] = import_object(name, key)
        return made
    for _, module, kind in places:
        each = getattr(module, name, None)
        if inspect.isclass(each) and issubclass(each, kind):
            return each
    known = [each for _, module, kind in places for each in classes_of(module, kind)]
    where = " or ".join(place for place, *_ in places)
    raise ConfigError(
        f"{key}: {where} has no {name!r}{nearest(name, known)}; give one of its classes, or `package.module:callable`"
    )


def classes_of(module: Any, kind: type) -> list[str]:
    return [name for name, each in vars(module).items() if inspect.isclass(each) and issubclass(each, kind)]


def made(make: Callable[..., Any], key: str, name: str, /, *args: Any, **options: Any) -> Any:
    """
    Raises:
        ConfigError: it does not take its options.
    """
    try:
        return make(*args, **options)
    except (TypeError, ValueError, AttributeError, KeyError, RuntimeError, ImportError, AssertionError) as error:
        raise ConfigError(f"{key}: cannot make {name!r}: {one_line(error, 200)}") from None


def parameters_of(make: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """By name; none of a builtin without a signature."""
    try:
        return inspect.signature(make).parameters
    except (TypeError, ValueError):
        return {}


def matched(patterns: Iterable[str], names: Iterable[str], key: str) -> dict[str, str]:
    """By name, the pattern that it matches: `*` is anything, `?` a character.

    Raises:
        ConfigError: a pattern matches nothing, or two the same name.
    """
    names, of = list(names), {}
    for pattern in patterns:
        hits = fnmatch.filter(names, pattern)
        if not hits:
            raise ConfigError(f"{key}: no parameter's name matches {pattern!r}{nearest(pattern, names)}")
        for name in hits:
            if name in of:
                raise ConfigError(f"{key}: {of[name]!r} and {pattern!r} both match {name}; each may have one")
            of[name] = pattern
    return of
