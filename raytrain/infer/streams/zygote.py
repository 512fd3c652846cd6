"""A process that has torch imported and forks one for each stream, so that none pays seconds of imports.

It runs in an environment of its own, since allocators are chosen when a process starts, and does not import the user's
script. When the process that it serves ends, it ends too, and with it all that it has forked.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import NoReturn

FORK = b"fork"  # comes with the new process's end of a socket
END = b"end"  # all of them; `end 3` also asks how the fourth ended, which has done so by itself
READY = b"ready"
ENDS_S = 5.0  # from closing its files to its end
PR_SET_PDEATHSIG = 1  # linux/prctl.h

Live = Callable[[Connection], None]


def serve(number: int, modules: Sequence[str], life: str) -> NoReturn:
    """
    Args:
        number: of the file that is the socket (SOCK_SEQPACKET) on which it is told what to do.
        modules: to import beforehand; they must start no threads.
        life: `package.module:function` that a forked process is.
    """
    import gc

    told = socket.socket(fileno=number)
    for name in modules:
        importlib.import_module(name)
    module, _, function = life.partition(":")
    live: Live = getattr(importlib.import_module(module), function)
    gc.collect()
    gc.freeze()  # so that children do not write to every object of their parent's
    told.send(READY)
    children: list[int] = []
    while True:
        word, files, _, _ = socket.recv_fds(told, 64, 1)
        if word == FORK:
            children.append(_fork(files[0], told, live))
            os.close(files[0])
            continue
        asked = word[len(END) :].decode()
        status = _status(children.pop(int(asked))) if asked else 0
        for child in children:
            _kill(child)
        children = []
        if not word:
            os._exit(0)  # at once: torch takes most of a second to be torn down
        told.send(str(status).encode())


def _fork(file: int, told: socket.socket, live: Live) -> int:
    parent = os.getpid()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()  # Linux shares CPUs out by session (autogroup): in one, two streams would have half a share each
        if os.getppid() == parent:  # else it has ended before the line above
            told.close()
            live(Connection(file))
            status = 0
    finally:
        os._exit(status)  # whatever happened has been told; nothing of the parent's is to be flushed or closed


def _status(child: int) -> int:
    """The exit status of a process that is ending, or minus the signal that ended it."""
    deadline = time.monotonic() + ENDS_S
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return _kill(child)


def _kill(child: int) -> int:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
