"""The actor that keeps a run's checkpoints in the run's folder, on the driver's host: ranks on other hosts need not
share a file system with it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raytrain.train.checkpoints import shelf

DRAFT = "part_"


class Keeper:
    """One a run. The last few checkpoints of all its attempts are kept, and the one with the best score beside them.

    Args:
        folder: of all the run's checkpoints; each attempt has a folder of its own below.
        attempt: the name of this attempt.
        keep: how many.
        world_size: ranks that read a checkpoint before they begin.
    """

    def __init__(self, folder: str, attempt: str, keep: int, world_size: int = 1):
        self._all, self._own, self._keep = Path(folder), Path(folder) / attempt, keep
        self._world_size, self._readers = world_size, 0
        self._read: tuple[str, Any] | None = None

    def save(self, facts: str, names: Sequence[str], *files: np.ndarray) -> str | None:
        """Write a checkpoint, whole or not at all; returns why that could not be, or None.

        Args:
            facts: as `shelf.describe` made it.
            names: of the files beside it.
            files: uint8, what `checkpoint.pack` made.
        """
        self._read = None
        draft, final = self._own / DRAFT, self._own / f"checkpoint_{self._next_number()}"
        try:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
            for name, data in [*zip(names, files, strict=True), ("checkpoint.json", facts.encode())]:
                with (draft / name).open("wb") as file:
                    file.write(memoryview(data))
                    file.flush()
                    os.fsync(file.fileno())
            _sync_folder(draft)
            draft.rename(final)
            for folder in (self._own, self._all):
                _sync_folder(folder)
        except OSError as error:
            shutil.rmtree(draft, ignore_errors=True)
            return f"cannot write a checkpoint into {self._own}: {error.strerror}"
        self._forget_old_ones()
        return None

    def latest(self) -> str | None:
        """The newest checkpoint of this attempt."""
        own = [path for path, _ in self._whole() if path.parent == self._own]
        return str(own[-1]) if own else None

    def read(self, path: str) -> tuple[str, dict[str, Any]]:
        """`checkpoint.json`, and references to the contents of the other files by name; every host fetches what its
        ranks ask for once. They are let go of when the last rank has asked, or with the next `save`."""
        import ray

        if self._read is None or self._read[0] != path:
            names = shelf.read_facts(Path(path)).sha256
            files = {name: ray.put(np.fromfile(Path(path) / name, np.uint8)) for name in names}
            self._read, self._readers = (path, ((Path(path) / "checkpoint.json").read_text(), files)), 0
        answer, self._readers = self._read[1], self._readers + 1
        if self._readers == self._world_size:
            self._read = None
        return answer

    def _whole(self) -> list[tuple[Path, shelf.Facts]]:
        return shelf.whole(self._all)

    def _next_number(self) -> int:
        """Nanoseconds, but always more than before: the clock of the host that went on may be behind."""
        before = (shelf.number_of(path) for path in self._all.glob("*/checkpoint_*"))
        return max(time.time_ns(), *(number + 1 for number in before), 0)

    def _forget_old_ones(self) -> None:
        found = self._whole()
        kept = {path for path, _ in [*found[-self._keep :], *shelf.by_score(found)[-1:]]}
        ours = [path for path in self._all.glob("*/checkpoint_*") if shelf.number_of(path) >= 0]
        for path in set(ours) - kept:  # damaged ones too
            shutil.rmtree(path, ignore_errors=True)
            attempt = path.parent
            if attempt != self._own and not any(attempt.glob("checkpoint_*")):
                shutil.rmtree(attempt, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    """So that what was created or renamed in it survives a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
