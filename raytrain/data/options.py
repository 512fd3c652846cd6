"""Whether a stage takes the options that it is given."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from raytrain.errors import ConfigError, nearest


def check_options(label: str, known: Sequence[inspect.Parameter], options: Mapping[str, Any]) -> None:
    """Compare the options of the stage `label` with the parameters of its function.

    Raises:
        ConfigError: it does not have one (naming the nearest), or lacks one that it needs.
    """
    if any(each.kind is each.VAR_KEYWORD for each in known):
        return
    names = [each.name for each in known if each.kind is not each.VAR_POSITIONAL]
    has = f"its options: {', '.join(names)}" if names else "it has none"
    for name in options:
        if name not in names:
            raise ConfigError(f"stage {label!r} has no option {name!r}{nearest(str(name), names)} ({has})")
    for each in known:
        if each.name in names and each.default is each.empty and each.name not in options:
            raise ConfigError(f"stage {label!r} needs its option {each.name!r} ({has})")
