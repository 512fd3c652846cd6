"""`<run_dir>/<name>`: where a run keeps its record and checkpoints. Nothing in it is ever overwritten unasked."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil

from raytrain.config.job import Job
from raytrain.errors import CheckpointError, ConfigError
from raytrain.record.holding import LOCK, check_is_here, folder_of, hold, take
from raytrain.record.schema import RunRecord, read_record


@dataclass
class RunFolder:
    """The folder of one run, held by one driver at a time.

    Attributes:
        path: `<run_dir>/<name>`.
        set_aside: where an earlier run of the same name was moved, if there was one.
        made: the folders that were made for it, the innermost first.
    """

    path: Path
    set_aside: Path | None = None
    made: tuple[Path, ...] = ()
    _lock: IO[str] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, job: Job) -> RunFolder:
        """Where a job's run is, whoever holds it."""
        return cls(folder_of(job.run_dir, job.name))

    @property
    def record(self) -> Path:
        return self.path / "record.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def close(self) -> None:
        """Let go of it; a run that came to nothing leaves no folder that was made for it."""
        if self._lock is None:
            return
        with contextlib.suppress(OSError):  # somebody else has put something there, or taken it away
            if self.made and self._is_empty():
                (self.path / LOCK).unlink()
                for folder in self.made:
                    folder.rmdir()
        self._lock.close()
        self._lock = None

    def _is_empty(self) -> bool:
        return all(child.name == LOCK for child in self.path.iterdir())

    def set_aside_earlier_run(self) -> None:
        """Move what an earlier run left here to `<name>~<time>`; called when the new one is sure to start.

        Raises:
            ConfigError: it cannot be moved.
        """
        if self._is_empty():
            return
        aside = self.path.with_name(f"{self.path.name}~{time.strftime('%Y%m%d-%H%M%S')}")
        while aside.exists():
            aside = aside.with_name(aside.name + "+")
        before = self._lock
        try:
            self.path.rename(aside)
            self.path.mkdir()
        except OSError as error:
            raise ConfigError(f"cannot set the earlier run in {self.path} aside: {error.strerror}") from None
        self._lock = hold(self.path)
        before.close()
        self.set_aside = aside

    def finished_record(self) -> RunRecord | None:
        """Of the run that finished here; None if none did, or was killed before it wrote one."""
        record = read_record(self.record) if self.record.is_file() else None
        return record if record is not None and record.status == "finished" else None

    def keep_earlier_record(self) -> None:
        """Before a resumed run writes its own record: `record.json` becomes `record.1.json`, and so on."""
        if self.record.exists():
            number = 1
            while (kept := self.record.with_name(f"record.{number}.json")).exists():
                number += 1
            self.record.rename(kept)


def read_run(path: Path) -> RunRecord:
    """The record of a run, given its file or the run's folder.

    Raises:
        ConfigError: as `read_record`, or the folder has no record.
    """
    if not path.is_dir():
        return read_record(path)
    if not (path / "record.json").is_file():
        raise ConfigError(f"{path} has no record.json: give the folder of a run that has ended, or its record")
    return read_record(path / "record.json")


def open_run_folder(run_dir: str, name: str, *, resume: bool, afresh: str = "start without --resume") -> RunFolder:
    """Take the run's folder; `afresh` says how to begin anew.

    Raises:
        CheckpointError: `resume`, and there is nothing to go on from.
        ConfigError: another process is using it, or it cannot be made.
    """
    check_is_here(run_dir)
    path = folder_of(run_dir, name)
    made = tuple(folder for folder in (path, *path.parents) if not os.path.exists(folder))
    if resume and not (path / "checkpoints").is_dir():
        raise CheckpointError(f"{path} has no checkpoint to resume from; {afresh}")
    return RunFolder(path, made=made, _lock=take(path))


def process_started_at() -> float:
    """time.time() at which this process began, imports included."""
    return psutil.Process().create_time()
