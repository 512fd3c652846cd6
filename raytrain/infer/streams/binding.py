"""Bind a process to the cores and the memory of its stream."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from pathlib import Path

from raytrain.infer.contract import StreamShape

THREADS = Path("/proc/self/task")
MPOL_BIND = 2  # linux/mempolicy.h
SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237}  # number of the system call
MAX_NODES = 1024
BITS = 64


def bind(shape: StreamShape) -> str | None:
    """All threads of this process to the CPUs of a stream, its memory to the node, torch to its threads.

    Best called before anything is loaded: memory that is there stays where it is, and torch must not have run yet.
    Threads that start later have it from those that start them.

    Returns:
        what could not be done, for people; a container may not set the memory's node, and then Linux takes memory from
        the node of the CPU that first writes to it, which is the same where that is not full.
    """
    if shape.cpus:
        _bind_threads(shape.cpus)
    refused = [None if shape.node is None else bind_memory(shape.node), _set_torch_threads(shape.threads)]
    return "; ".join(filter(None, refused)) or None


def bind_memory(node: int) -> str | None:
    """What this thread and those that it starts allocate from now on. Returns why not."""
    words = MAX_NODES // BITS
    mask = (ctypes.c_ulong * words)()
    mask[node // BITS] = 1 << (node % BITS)
    try:
        call = ctypes.CDLL("libnuma.so.1", use_errno=True).set_mempolicy
    except (OSError, AttributeError):  # not installed
        number = SET_MEMPOLICY.get(platform.machine())
        if number is None:
            return f"memory is not bound to node {node}: libnuma is not installed (Debian: libnuma1)"
        call = ctypes.CDLL(None, use_errno=True).syscall
        failed = call(ctypes.c_long(number), MPOL_BIND, mask, ctypes.c_ulong(MAX_NODES))
    else:
        failed = call(MPOL_BIND, mask, ctypes.c_ulong(MAX_NODES))
    return f"memory is not bound to node {node}: {os.strerror(ctypes.get_errno())}" if failed else None


def _bind_threads(cpus: tuple[int, ...]) -> None:
    bound: set[int] = set()
    while more := {int(path.name) for path in THREADS.iterdir()} - bound:
        for thread in more:
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.sched_setaffinity(thread, cpus)
        bound |= more


def _set_torch_threads(threads: int) -> str | None:
    """A stream computes with torch whatever its back end, if only to make its batches."""
    import torch

    torch.set_num_threads(threads)
    if torch.get_num_interop_threads() != 1:
        try:
            torch.set_num_interop_threads(1)
        except RuntimeError:  # only before the first use of them
            return f"torch keeps its {torch.get_num_interop_threads()} inter-op threads, since it has run before"
    return None
