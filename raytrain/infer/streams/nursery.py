"""The zygote as the process sees it that wants streams."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from raytrain.errors import ConfigError, PredictionError
from raytrain.infer.streams.zygote import END, FORK, READY

LIFE = "raytrain.infer.streams.life:live"
IMPORTS_S = 300.0  # importing torch on a host that is busy and has not read it before
FAREWELL_S = 10.0
CODE = "import sys; sys.path[:] = {path!r}; from raytrain.infer.streams.zygote import serve; serve({arguments})"


class Nursery:
    """A process in an environment of its own that forks others.

    Args:
        environment: all of it.
        modules: imported there beforehand.
        log: what its processes write to standard output and error.
        life: `package.module:function` that a forked process is; it is given its `Connection`.

    Raises:
        PredictionError: it does not start.
        ConfigError: the allocator that its environment preloads cannot be loaded.
    """

    def __init__(self, environment: Mapping[str, str], modules: Sequence[str], log: Path, life: str = LIFE):
        self._log = log
        self._read = 0  # bytes of the log that belong to earlier processes
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        arguments = f"{theirs.fileno()}, {list(modules)!r}, {life!r}"
        with theirs, log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-c", CODE.format(path=sys.path, arguments=arguments)],
                env=dict(environment),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is this process's, which ends it
            )
        try:
            self._wait(environment.get("LD_PRELOAD", ""))
        except BaseException:
            self.close()
            raise

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    def bear(self) -> Connection:
        """Another process; the connection to it. That it has died shows there."""
        ours, theirs = socket.socketpair()
        with theirs, contextlib.suppress(BrokenPipeError, ConnectionResetError):  # then the connection says so
            socket.send_fds(self._socket, [FORK], [theirs.fileno()])
        return Connection(ours.detach())

    def end(self, dead: int | None = None) -> int | None:
        """All that it has forked.

        Args:
            dead: the number of one, in the order of birth, that has ended by itself.

        Returns:
            its exit status, or minus the signal that ended it; None where nobody knows any more.
        """
        try:
            self._socket.settimeout(FAREWELL_S)
            self._socket.send(END if dead is None else END + b" %d" % dead)
            return int(self._socket.recv(64))
        except (OSError, ValueError):  # the zygote has died, and they with it
            self.close()
            return None
        finally:
            self._read = self._log.stat().st_size

    def last_line(self) -> str:
        """That its processes wrote since the last ones were ended; empty for nothing."""
        with self._log.open("rb") as log:
            log.seek(self._read)
            lines = log.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def close(self) -> None:
        """Nothing of it is left running."""
        self._socket.close()
        try:
            self._process.wait(FAREWELL_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _wait(self, preloaded: str) -> None:
        self._socket.settimeout(IMPORTS_S)
        try:
            word = self._socket.recv(64)
        except TimeoutError:
            word = b""
        if word != READY:
            raise PredictionError(f"a process for streams did not start: {self.last_line() or 'it wrote nothing'}")
        maps = Path(f"/proc/{self._process.pid}/maps").read_text(encoding="utf-8", errors="replace")
        for path in preloaded.split(":"):
            if path.startswith("/") and str(Path(path).resolve()) not in maps:
                raise ConfigError(f"{path} could not be preloaded; is it a library of this machine's architecture?")


def how_it_ended(status: int | None, line: str) -> str:
    """For a message."""
    if status is None:
        told = "died, and the process that started it too"
    elif status < 0:
        told = f"was ended by {signal.Signals(-status).name}"
        told += ", as Linux does where memory is short" if -status == signal.SIGKILL else ""
    else:
        told = f"ended with exit status {status}"
    return f"{told}; it wrote: {line[:300]}" if line else told
