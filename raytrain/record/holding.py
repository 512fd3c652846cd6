"""A folder that one process holds at a time."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

from raytrain.errors import ConfigError

LOCK = ".lock"


def hold(folder: Path, instead: str = "choose another name") -> IO[str]:
    """Until the file that is returned is closed, or this process ends.

    Args:
        instead: of waiting, what the user can do.

    Raises:
        ConfigError: another process does.
        OSError: nothing can be written there.
    """
    file = (folder / LOCK).open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ConfigError(f"another raytrain process is using {folder}; wait for it or {instead}") from None
    return file


def folder_of(run_dir: str, name: str) -> Path:
    """`<run_dir>/<name>`, absolute, so that a message is of use wherever it is read."""
    return Path(run_dir).expanduser().absolute() / name


def check_is_here(run_dir: str) -> None:
    """
    Raises:
        ConfigError: it is not on this host.
    """
    if "://" in run_dir:
        raise ConfigError(f"run_dir must be a folder of this host, or one that is mounted here, not {run_dir!r}")


def take(folder: Path) -> IO[str]:
    """`hold` it, and make it where it is not there.

    Raises:
        ConfigError: another process holds it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return hold(folder)
    except OSError as error:
        why = error.strerror or error
        todo = "make it one that can be written to, or choose another run_dir"
        raise ConfigError(f"cannot use the run folder {folder}: {why}; {todo}") from None
