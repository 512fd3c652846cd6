"""The sources by name.

The line of a source in `raytrain/data/__init__.pyi` names the module of two functions: `<kind>`, which scripts call,
and `open_<kind>`, which lists it. A module is imported when its source is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from raytrain import data, public_names
from raytrain.data.samples.fields import Schema
from raytrain.data.sources.manifest import Manifest

PLACE = "raytrain.data.sources.kinds."
Opener = Callable[[Any, Schema | None, int], Manifest]

SOURCES: dict[str, str] = {
    name: module for name, module in public_names(data.__file__).items() if module.startswith(PLACE)
}


class InProgram:
    """A source that is there already, in the program, and that no job file can describe.

    Attributes:
        kind: the name of the function that made it.
        limit, weights: see `raytrain.config.data.BuiltIn`.
    """

    kind: str
    limit: int | None = None
    weights: str | None = None


def opener(kind: str) -> Opener:
    """What lists a source of a kind: a function of its description, of the training split's schema where this is
    another one, and of a seed."""
    found: Opener = getattr(import_module(SOURCES[kind]), f"open_{kind}")
    return found
