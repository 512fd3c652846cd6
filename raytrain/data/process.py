"""What a preprocessing process does before its first sample."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, TypeVar

# glibc's mallopt parameters (malloc.h): never give memory back, never map an allocation of its own.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_TOP_PAD = -1, -3, -2

T = TypeVar("T")


def undisturbed(make: Callable[[], T]) -> T:
    """What `make` returns or raises, in a thread of its own: Ray ends a task by an exception in the main thread, and a
    process whose import of torch was ended so can never import it again."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append((make(), None))
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            found.append((None, error))

    thread = threading.Thread(target=run, name="raytrain-imports")
    thread.start()
    thread.join()
    made, error = found[0]
    if error is not None:
        raise error
    return made


def bind_submodules(package: str) -> None:
    """Make the submodules that are loaded attributes of their packages, as an import does in its end.

    One that was ended half-way, by a task that Ray ended, leaves them loaded and its package not; the next import makes
    the package anew, finds them, and binds none: `import pandas`, and there is no `pandas.core`.
    """
    for name, module in list(sys.modules.items()):
        above, _, last = name.rpartition(".")
        if name.startswith(f"{package}.") and above in sys.modules and last not in vars(sys.modules[above]):
            setattr(sys.modules[above], last, module)


@cache
def prepare_process() -> None:
    """Once a process: one thread per task, and an allocator that keeps its pages.

    Ray Data, which is imported before it calls us, looks for `pandas.core` at every batch.

    glibc maps and unmaps every temporary above 128 kB, page fault by page fault, which halves image preprocessing.
    Clusters that raytrain starts have this in the environment; on any other cluster it is set here.
    """
    bind_submodules("pandas")
    undisturbed(lambda: import_module("cv2")).setNumThreads(0)
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # glibc refuses more than half of its 64 MiB heap
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TOP_PAD, 64 << 20)
