"""Whether a stage takes the options that it is given, before it meets a sample."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from raytrain.data.samples.fields import BYTES, DTYPES, KINDS, TEXT, Field
from raytrain.errors import ConfigError, nearest


def check_options(what: str, known: Sequence[inspect.Parameter], options: Mapping[str, Any]) -> None:
    """Compare the options of `what`, such as `stage 'resize'`, with the parameters of its function.

    Raises:
        ConfigError: it does not have one (naming the nearest), or lacks one that it needs.
    """
    takes_any = any(each.kind is each.VAR_KEYWORD for each in known)
    names = [each.name for each in known if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    has = f"its options: {', '.join(names)}" if names else "it has none"
    for name in options:
        if name not in names and not takes_any:
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


def field_given(label: str, name: str, what: Any) -> Field:
    """A field that a stage of one's own gives.

    Raises:
        ConfigError: `what` describes none.
    """
    if isinstance(what, Field):
        return what
    known = isinstance(what, Mapping) and {*what} <= {"dtype", "shape", "kind"}
    if known and what.get("dtype", "") in ("", *DTYPES, TEXT, BYTES) and what.get("kind", "") in ("", *KINDS):
        shape = what.get("shape")
        if shape is None or all(axis is None or type(axis) is int for axis in shape):
            return Field(what.get("dtype", ""), None if shape is None else tuple(shape), what.get("kind", ""))
    raise ConfigError(
        f"stage {label!r}: `gives` says of field `{name}` its dtype, shape and kind, such as {{dtype: uint8, shape: "
        f"[224, 224, 3], kind: image}} (given: {what!r})"
    )


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _told(hint: Any) -> str:
    """A type in words."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, inside))
    if origin is tuple:
        return f"a list of {len(inside)} {_WORDS[inside[0]].removeprefix('a ')}s"
    if origin in (Union, types.UnionType):
        return " or ".join(_told(each) for each in inside if each is not types.NoneType)
    return _WORDS.get(hint, str(hint))


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
