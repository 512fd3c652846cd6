"""A keeper of checkpoints in this process, where a run has an actor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from raytrain.train.checkpoints.keeper import Keeper, make_folder


def keeper_of(folder: Path, attempt: str, keep: int) -> Keeper:
    """As the driver starts it."""
    make_folder(folder, attempt)
    return Keeper(str(folder), attempt, keep)


def save(keeper: Keeper, facts: str, files: Mapping[str, np.ndarray]) -> str | None:
    """All files of a checkpoint, each in one piece."""
    why = keeper.begin("draft")
    for name, data in files.items():
        why = why or keeper.write("draft", name, 0, data)
    return why or keeper.finish("draft", facts, {name: data.size for name, data in files.items()})


def asked(keeper: Keeper) -> Callable[..., Callable[[], str | None]]:
    """What a writer asks (see `raytrain.run.rank.asked`)."""

    def ask(method: str, *args) -> Callable[[], str | None]:
        why = getattr(keeper, method)(*args)
        return lambda: why

    return ask
