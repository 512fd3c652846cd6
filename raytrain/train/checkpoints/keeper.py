"""The actor that keeps a run's checkpoints in the run's folder, on the driver's host: ranks on other hosts need not
share a file system with it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from raytrain.errors import CheckpointError
from raytrain.train.checkpoints import shelf

DRAFT = "part_"
FULL = (errno.ENOSPC, errno.EDQUOT)


def make_folder(folder: Path, attempt: str) -> None:
    """For the checkpoints of an attempt. The keeper itself makes none: where a store was mounted, and is gone for a
    minute, it would write beneath it.

    Raises:
        CheckpointError: it cannot be made.
    """
    try:
        (folder / attempt).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot make the folder {folder / attempt}: {error.strerror}") from None


class Keeper:
    """One a run. The last few checkpoints of all its attempts are kept, and the one with the best score beside them.

    A checkpoint comes in pieces, each with its place in its file, so that one that comes twice does no harm, and this
    process may begin anew in between; it gets its name once all of it is on disk.

    Args:
        folder: of all the run's checkpoints; each attempt has a folder of its own below (`make_folder`).
        attempt: the name of this attempt.
        keep: how many.
        world_size: ranks that read a checkpoint before they begin.
    """

    def __init__(self, folder: str, attempt: str, keep: int, world_size: int = 1):
        self._all, self._own, self._keep = Path(folder), Path(folder) / attempt, keep
        self._world_size, self._readers = world_size, 0
        self._read: tuple[str, Any] | None = None

    def begin(self, draft: str) -> str | None:
        """A checkpoint is going to come in pieces, and any other that had begun to is not. Returns why that could not
        be, or None; so do the next two."""
        self._read = None

        def begin() -> None:
            for path in list(self._all.glob(f"*/{DRAFT}*")):
                shutil.rmtree(path, ignore_errors=True)
            self._draft(draft).mkdir()

        return self._done(draft, begin)

    def write(self, draft: str, name: str, at: int, piece: np.ndarray) -> str | None:
        """
        Args:
            name: of the file.
            at: place in it, bytes.
            piece: uint8.
        """
        return self._done(draft, lambda: _write_at(self._draft(draft) / name, at, piece))

    def finish(self, draft: str, facts: str, sizes: Mapping[str, int]) -> str | None:
        """All pieces have come: from here on it counts, and older ones go.

        Args:
            facts: as `shelf.describe` made it.
            sizes: of the files, bytes.
        """

        def finish() -> None:
            folder = self._draft(draft)
            _write_at(folder / shelf.FACTS, 0, np.frombuffer(facts.encode(), np.uint8))
            for name, size in {**sizes, shelf.FACTS: len(facts.encode())}.items():
                _sync_file(folder / name, size)
            _sync_folder(folder)
            folder.rename(self._own / f"checkpoint_{self._next_number()}")
            for each in (self._own, self._all):
                _sync_folder(each)

        why = self._done(draft, finish)
        if why is None:
            with contextlib.suppress(OSError):  # next time, then
                self._forget([path for path, _ in self._whole()[-self._keep :]], self._ours())
        return why

    def latest(self) -> str | None:
        """The newest checkpoint of this attempt."""
        own = [path for path, _ in self._whole() if path.parent == self._own]
        return str(own[-1]) if own else None

    def read(self, path: str) -> tuple[str, dict[str, Any]]:
        """`checkpoint.json`, and references to the contents of the other files by name; every host fetches what its
        ranks ask for once. They are let go of when the last rank has asked, or when the next checkpoint comes."""
        import ray

        if self._read is None or self._read[0] != path:
            names = shelf.read_facts(Path(path)).sha256
            files = {name: ray.put(np.fromfile(Path(path) / name, np.uint8)) for name in names}
            self._read, self._readers = (path, ((Path(path) / shelf.FACTS).read_text(), files)), 0
        answer, self._readers = self._read[1], self._readers + 1
        if self._readers == self._world_size:
            self._read = None
        return answer

    def _draft(self, draft: str) -> Path:
        return self._own / f"{DRAFT}{draft}"

    def _done(self, draft: str, act: Callable[[], None]) -> str | None:
        """Once more where the store was full and there was something to forget. What could not be is gone."""
        try:
            try:
                act()
            except OSError as error:
                if error.errno not in FULL or not self._make_room():
                    raise
                act()
        except OSError as error:
            shutil.rmtree(self._draft(draft), ignore_errors=True)
            return f"cannot write a checkpoint into {self._own}: {error.strerror or error}"
        return None

    def _make_room(self) -> bool:
        """Forget what the checkpoint to come is to take the place of, but nothing that is newer than the last one that
        is sure to be whole. Whether there was anything."""
        newest = shelf.latest(self._all)
        if newest is None:
            return False
        found = [path for path, _ in self._whole()]
        return self._forget([*found[-max(self._keep - 1, 1) :], newest], found[: found.index(newest)])

    def _whole(self) -> list[tuple[Path, shelf.Facts]]:
        return shelf.whole(self._all)

    def _ours(self) -> list[Path]:
        """Damaged ones too."""
        return [path for path in self._all.glob("*/checkpoint_*") if shelf.number_of(path) >= 0]

    def _next_number(self) -> int:
        """Nanoseconds, but always more than before: the clock of the host that went on may be behind."""
        return max(time.time_ns(), *(shelf.number_of(path) + 1 for path in self._ours()), 0)

    def _forget(self, kept: list[Path], among: list[Path]) -> bool:
        """Whether there was one, beside those that are kept and the best."""
        best = [path for path, _ in shelf.by_score(self._whole())[-1:]]
        gone = set(among) - {*kept, *best}
        for path in gone:
            shutil.rmtree(path, ignore_errors=True)
            attempt = path.parent
            if attempt != self._own and not any(attempt.glob("checkpoint_*")):
                shutil.rmtree(attempt, ignore_errors=True)
        return bool(gone)


def _write_at(path: Path, at: int, data: np.ndarray) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        rest = memoryview(data)
        while len(rest):
            done = os.pwrite(descriptor, rest, at)
            rest, at = rest[done:], at + done
    finally:
        os.close(descriptor)


def _sync_file(path: Path, size: int) -> None:
    """So that it survives a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if os.fstat(descriptor).st_size != size:
            raise OSError(errno.EIO, f"{path.name} has not come whole")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """So that what was created or renamed in it survives a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
