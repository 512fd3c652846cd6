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
FAILURE_CHARACTERS = 1000
MESSAGE_LINES = 20  # what follows an exception's line for longer is not its message
SHELLS = ("sh", "bash", "dash", "zsh", "ksh")
PIPE_END_S = 2.0  # how long a background process of the program may hold its standard error open

_COLOURS = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_TRACEBACK = re.compile(r"^\s*(?:\+ )?(?:Exception Group )?Traceback \(most recent call last\):$")
_FORWARDED = re.compile(r"^\([^()]*(?:pid=|raylet|autoscaler)[^()]*\) ")  # what Ray passes on from its workers
_EXCEPTION = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?::\s|$)")


def command(words: Sequence[str]) -> list[str]:
    """What to execute for a `.py` file, a `.sh` file or any other program.

    Raises:
        ConfigError: no program, no such file, or no such command.
    """
    if not words:
        raise ConfigError("there is no program to run; name it after --, as in raytrain bootstrap -- train.py")
    first, *rest = words
    if first.endswith((".py", ".sh")):
        if not Path(first).is_file():
            raise ConfigError(f"there is no program {first!r} in {Path.cwd()}")
        return [sys.executable, "-u", first, *rest] if first.endswith(".py") else ["bash", first, *rest]
    found = shutil.which(first)
    if found is None:
        raise ConfigError(f"there is no command {first!r} on this host's PATH")
    return [found, *rest]


def exit_status(returncode: int) -> int:
    """As a shell has it: the program's own, or 128 + the number of the signal that ended it."""
    return 128 - returncode if returncode < 0 else returncode


def failure_text(name: str, returncode: int, standard_error: str) -> str:
    """Why a program failed, in a line: its exception, else its last line on standard error, else how it ended."""
    said = last_error(standard_error)
    if returncode < 0:
        number = -returncode
        known = signal.Signals(number).name if number in list(signal.Signals) else f"signal {number}"
        hint = " (often: out of memory)" if number == signal.SIGKILL else ""
        return f"{name} was ended by {known}{hint}" + (f"; it last said: {said}" if said else "")
    return said or f"{name} ended with exit code {returncode}"


def last_error(text: str) -> str:
    """The text of the Python exception that `text` ends with, else its last line that is not blank."""
    lines = [_COLOURS.sub("", line).rstrip() for line in text.splitlines()]
    while lines and (not lines[-1] or _FORWARDED.match(lines[-1])):
        lines.pop()
    starts = [number for number, line in enumerate(lines) if _TRACEBACK.match(line)]
    found = _exception(lines[starts[-1] :]) if starts else None
    return " ".join((found or "".join(lines[-1:])).split())[:FAILURE_CHARACTERS]


def _exception(lines: list[str]) -> str | None:
    """The exception's line and the lines of its message, unless something else was said after them."""
    grouped = "Group" in lines[0]
    for number, line in enumerate(lines[1:], start=1):
        line = line.lstrip("| +") if grouped else line
        if _EXCEPTION.match(line):
            rest = [] if grouped else lines[number + 1 :]
            blank = rest.index("") if "" in rest else len(rest)
            return None if rest[blank + 1 :] or blank > MESSAGE_LINES else " ".join([line, *rest])
    return None


class Program:
    """A running program: its own session and process group, standard output as it comes, standard error copied."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, reading: int):
        self.name = name
        self.process = process
        self._tail = bytearray()
        self._copier = threading.Thread(target=self._copy, args=(reading,), name="raytrain-stderr", daemon=True)
        self._copier.start()

    @classmethod
    async def start(cls, words: Sequence[str], environment: Mapping[str, str]) -> Program:
        """Start what `command` made of the user's words.

        Raises:
            ConfigError: the file cannot be executed.
        """
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
        name = words[1] if Path(words[0]).name == "bash" else words[2] if words[1:2] == ["-u"] else words[0]
        return cls(Path(name).name, process, reading)

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
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            for process in _with_commands(psutil.Process(self.process.pid)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)

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


def _with_commands(process: psutil.Process) -> list[psutil.Process]:
    if process.name() not in SHELLS:
        return [process]
    return [process, *(deeper for child in process.children() for deeper in _with_commands(child))]
