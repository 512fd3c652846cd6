"""The user's program as a child: how it is called, what it says last, how it is stopped, how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from raytrain.errors import ConfigError

TAIL_BYTES = 1 << 16
CONNECTED = "raytrain.bootstrap.connected"
FAILURE_CHARACTERS = 1000
MESSAGE_LINES = 20  # what follows an exception's line for longer is not its message
SHELLS = ("sh", "bash", "dash", "zsh", "ksh")
PIPE_END_S = 2.0  # how long a background process of the program may hold its standard error open

_COLOURS = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_PREFIX = re.compile(r"^\[rank\d+\]: ?")  # torch, before every line of a rank's exception
_TRACEBACK = re.compile(
    r"(?P<group>Exception Group )?Traceback \(most recent call last\):$"
)  # a progress bar may precede
_NOISE = re.compile(r"^\([^()]*(?:pid=|raylet|autoscaler)[^()]*\) |\d+%\||^$")  # forwarded by Ray; progress bars; blank
_AFTERWARDS = re.compile(r"^(Exception ignored in|Error in atexit|Exception in thread)")
_EXCEPTION = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?::\s|$)")
_FATAL = re.compile(r"^Fatal Python error: ")


def command(words: Sequence[str], connect: bool = False) -> list[str]:
    """What to execute for a `.py` file, a `.sh` file or any other program.

    Raises:
        ConfigError: no program, no such file, no such command, or one that cannot be connected.
    """
    if not words:
        raise ConfigError("there is no program to run; name it after --, as in raytrain bootstrap -- train.py")
    first, *rest = words
    if connect and not first.endswith(".py"):
        raise ConfigError(f"--connect is for a .py program, and {first!r} is none; it can call ray.init() itself")
    if first.endswith((".py", ".sh")):
        if not Path(first).is_file():
            raise ConfigError(f"there is no program {first!r} in {Path.cwd()}")
        python = [sys.executable, "-u", *(["-m", CONNECTED] if connect else [])]
        return [*python, first, *rest] if first.endswith(".py") else ["bash", first, *rest]
    found = shutil.which(first)
    if found is None:
        raise ConfigError(f"there is no command {first!r} on this host's PATH")
    return [found, *rest]


def exit_status(returncode: int) -> int:
    """As a shell has it: the program's own, or 128 + the number of the signal that ended it."""
    return 128 - returncode if returncode < 0 else returncode


def failure_text(name: str, returncode: int, standard_error: str) -> str:
    """Why a program failed, in a line: its exception, else its last line on standard error, else how it ended."""
    said = last_error(standard_error, returncode)
    if returncode < 0:
        number = -returncode
        known = signal.Signals(number).name if number in list(signal.Signals) else f"signal {number}"
        hint = " (often: out of memory)" if number == signal.SIGKILL else ""
        return f"{name} was ended by {known}{hint}" + (f"; it last said: {said}" if said else "")
    return said or f"{name} ended with exit code {returncode}"


def last_error(text: str, returncode: int = 1) -> str:
    """The exception that `text` ends with, where the program ended as Python does for one; else its last line."""
    lines = [_PREFIX.sub("", _COLOURS.sub("", line)).rstrip() for line in text.splitlines()]
    cut = next((number for number, line in enumerate(lines) if _AFTERWARDS.match(line)), len(lines))
    lines = lines[:cut] or lines
    while lines and _NOISE.search(lines[-1]):
        lines.pop()
    fatal = next((line for line in lines if _FATAL.match(line)), None) if returncode < 0 else None
    starts = [number for number, line in enumerate(lines) if _TRACEBACK.search(line)] if returncode == 1 else []
    found = fatal or (_exception(lines[starts[-1] :]) if starts else None)
    return " ".join((found or "".join(lines[-1:])).split())[:FAILURE_CHARACTERS]


def _exception(lines: list[str]) -> str | None:
    """The exception's line, its message, and the last line should more have been said after a blank one."""
    grouped = _TRACEBACK.search(lines[0])["group"] is not None
    for number, line in enumerate(lines[1:], start=1):
        line = line.lstrip("| +") if grouped else line
        if _EXCEPTION.match(line):
            rest = [] if grouped else lines[number + 1 :]
            message = rest[: rest.index("")] if "" in rest else rest
            if len(message) > MESSAGE_LINES:
                return None
            after = rest[len(message) :]
            return " ".join([line, *message, *after[-1:]])
    return None


class Program:
    """A running program: its own session and process group, standard output as it comes, standard error copied.

    Attributes:
        is_shell: known once it was signalled; a shell may go before the commands that it ran.
    """

    def __init__(self, name: str, process: asyncio.subprocess.Process, reading: int):
        self.name = name
        self.process = process
        self.is_shell = False
        self._tail = bytearray()
        self._copier = threading.Thread(target=self._copy, args=(reading,), name="raytrain-stderr", daemon=True)
        self._copier.start()

    @classmethod
    async def start(cls, given: Sequence[str], environment: Mapping[str, str], connect: bool = False) -> Program:
        """Start what `command` makes of the user's words.

        Raises:
            ConfigError: the file cannot be executed.
        """
        words = command(given, connect)
        reading, writing = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *words,
                env={**environment, "PYTHONUNBUFFERED": "1"},
                stdin=asyncio.subprocess.DEVNULL,
                stderr=writing,
                start_new_session=True,
            )
        except OSError as error:
            os.close(reading)
            raise ConfigError(f"{words[0]} cannot be executed: {error.strerror}") from None
        finally:
            os.close(writing)
        return cls(Path(given[0]).name, process, reading)

    def _copy(self, reading: int) -> None:
        """Pass standard error on as it comes, and keep its end."""
        with open(reading, "rb", buffering=0) as pipe:
            while chunk := pipe.read(TAIL_BYTES):
                self._tail += chunk
                if len(self._tail) > 2 * TAIL_BYTES:
                    del self._tail[:-TAIL_BYTES]
                with contextlib.suppress(OSError):
                    while chunk:
                        chunk = chunk[os.write(sys.stderr.fileno(), chunk) :]

    async def wait(self) -> int:
        """Its return code, negative for a signal, when it has ended and what it said has been read."""
        returncode = await self.process.wait()
        await asyncio.to_thread(self._copier.join, PIPE_END_S)
        return returncode

    def failure(self, returncode: int) -> str:
        return failure_text(self.name, returncode, bytes(self._tail[-TAIL_BYTES:]).decode(errors="replace"))

    def signal(self, number: int) -> None:
        """Tell the program, and when it is a shell also the commands that the shell is running.

        Its other children are its own to tell: a data loader's worker that heard SIGTERM would die before the program
        could write its checkpoint.
        """
        with contextlib.suppress(psutil.NoSuchProcess):
            leader = psutil.Process(self.process.pid)
            self.is_shell = is_shell(leader)
            _tell(leader, number)

    def group_lives(self) -> bool:
        """Whether anything of the program's process group is left."""
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def kill(self) -> None:
        """End the whole process group at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


def _tell(process: psutil.Process, number: int) -> None:
    """Signal a process and, below a shell, what it runs; those that go meanwhile are passed by."""
    with contextlib.suppress(psutil.NoSuchProcess):
        children = process.children() if is_shell(process) else []
        process.send_signal(number)
        for child in children:
            _tell(child, number)


def is_shell(process: psutil.Process) -> bool:
    """By its program: a script without a suffix goes by the script's name."""
    with contextlib.suppress(psutil.Error):
        return Path(process.exe()).name in SHELLS or process.name() in SHELLS
    return False
