"""The actor that keeps a run's checkpoints in the run's folder, on the driver's host: ranks on other hosts need not
share a file system with it."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

DRAFT = "part_"


class Keeper:
    """One a run. Checkpoints of a whole attempt lie side by side; the last few are kept.

    Args:
        folder: of this attempt.
        keep: how many.
    """

    def __init__(self, folder: str, keep: int):
        self._folder, self._keep = Path(folder), keep
        self._read: tuple[str, list[Any]] | None = None

    def save(self, facts: str, state: np.ndarray) -> str | None:
        """Write what `checkpoint.pack` made, whole or not at all; returns why that could not be, or None."""
        name = f"checkpoint_{time.time_ns()}"
        draft = self._folder / f"{DRAFT}{name}"
        try:
            draft.mkdir(parents=True)
            with (draft / "state.pt").open("wb") as file:
                file.write(state.data)
                os.fsync(file.fileno())
            (draft / "checkpoint.json").write_text(facts)
            draft.rename(self._folder / name)
        except OSError as error:
            shutil.rmtree(draft, ignore_errors=True)
            return f"cannot write a checkpoint into {self._folder}: {error.strerror}"
        for old in self._whole()[: -self._keep]:
            shutil.rmtree(old, ignore_errors=True)
        return None

    def latest(self) -> str | None:
        """The newest checkpoint of this attempt."""
        found = self._whole()
        return str(found[-1]) if found else None

    def read(self, path: str) -> list[Any]:
        """References to what `checkpoint.unpack` takes; every host fetches the objects once, however many ranks ask."""
        import ray

        if self._read is None or self._read[0] != path:
            folder = Path(path)
            state = np.fromfile(folder / "state.pt", np.uint8)
            self._read = (path, [ray.put((folder / "checkpoint.json").read_text()), ray.put(state)])
        return self._read[1]

    def _whole(self) -> list[Path]:
        return sorted(self._folder.glob("checkpoint_*"), key=lambda path: int(path.name.rpartition("_")[2]))
