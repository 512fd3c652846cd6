"""A folder that one process holds at a time."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

from raytrain.errors import ConfigError

LOCK = ".lock"


def hold(folder: Path) -> IO[str]:
    """Until the file that is returned is closed, or this process ends.

    Raises:
        ConfigError: another process does.
        OSError: nothing can be written there.
    """
    file = (folder / LOCK).open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ConfigError(f"another raytrain process is using {folder}; wait for it or choose another name") from None
    return file
