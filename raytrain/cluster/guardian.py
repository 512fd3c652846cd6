"""A small process that outlives a killed driver just long enough to end the Ray processes it started.

Ray's own processes follow their driver, but the agents of its nodes stay behind when they are orphaned. Run as
`python -m raytrain.cluster.guardian PID...`: it notes the processes below those, waits for its standard input to
close, and kills what is left, by process id. A line `done` on its input tells it that nothing is left to do.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Sequence

import psutil

NOTE_EVERY_S = 2.0
NOTES = 15  # the agents start with their nodes; workers that come later end with their raylet


def start(pids: Sequence[int]) -> subprocess.Popen[bytes]:
    """Guard the processes `pids` and what they start; in a session of its own, so that Ctrl-C passes it by."""
    command = [sys.executable, "-m", "raytrain.cluster.guardian", *map(str, pids)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def dismiss(guardian: subprocess.Popen[bytes]) -> None:
    """The cluster has been taken down in the regular way."""
    with contextlib.suppress(OSError):
        guardian.stdin.write(b"done\n")
        guardian.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        guardian.wait(timeout=5)


def family(pids: Sequence[int]) -> list[psutil.Process]:
    """The living processes among `pids` and everything below them."""
    found: dict[int, psutil.Process] = {}
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            found.update({p.pid: p for p in (process, *process.children(recursive=True))})
    return list(found.values())


def kill(processes: Sequence[psutil.Process], wait_s: float) -> None:
    """SIGKILL to each that still is the process it was, then wait."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=wait_s)


def _guard(pids: Sequence[int]) -> None:
    known: dict[int, psutil.Process] = {}
    over = threading.Event()

    def note() -> None:
        for _ in range(NOTES):
            known.update({p.pid: p for p in family(pids)})
            if over.wait(NOTE_EVERY_S):
                return

    threading.Thread(target=note, daemon=True).start()
    last_words = sys.stdin.buffer.read()
    over.set()
    if b"done" not in last_words:
        kill(list({**known, **{p.pid: p for p in family(pids)}}.values()), wait_s=5)


if __name__ == "__main__":
    _guard([int(argument) for argument in sys.argv[1:]])
