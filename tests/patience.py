"""How long tests wait: for an event, never for a time, and longer where the machine is slow or busy.

An upper bound of a test tells a mechanism that works from one that hangs or waits out a default of a minute. It is
written for a quiet machine and stretched by one factor, measured once when the tests start.
"""

from __future__ import annotations

import functools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PIECE = """
import asyncio, decimal, email.mime.text, http.client, json, logging.config, xml.dom.minidom
sum(range(3_000_000))
"""
PIECE_S = 0.4  # what two processes at once for this piece of work take on two quiet cores
AT_ONCE = min(os.cpu_count() or 1, 4)  # a busy core is felt though another is free: Ray starts ten processes
ROUNDS = 4
MOST = 10.0
VARIABLE = "RAYTRAIN_TEST_PATIENCE"


@functools.cache
def factor() -> float:
    """How much slower this machine is now than two quiet cores, from 1 to 10; or what RAYTRAIN_TEST_PATIENCE says."""
    asked = os.environ.get(VARIABLE)
    return float(asked) if asked else min(max(_measured() / PIECE_S, 1.0), MOST)


def _measured() -> float:
    seconds = []
    for _ in range(ROUNDS):
        began = time.monotonic()
        for process in [subprocess.Popen([sys.executable, "-I", "-c", PIECE]) for _ in range(AT_ONCE)]:
            assert process.wait() == 0
        seconds.append(time.monotonic() - began)
    return statistics.median(seconds)


def patient(seconds: float) -> float:
    """What is `seconds` on a quiet machine, in whole seconds from 2 on: messages name them."""
    stretched = seconds * factor()
    return float(round(stretched)) if seconds >= 2 else stretched


def wait_for(
    condition: Callable[[], T],
    seconds: float,
    what: str,
    state: Callable[[], object] | None = None,
    every_s: float = 0.05,
) -> T:
    """The first true value of `condition`, which may itself fail the test where waiting on is in vain.

    Args:
        seconds: on a quiet machine.
        what: is awaited, for the message.
        state: what to show beside it; by default the condition's last value.
    """
    began, within = time.monotonic(), patient(seconds)
    while not (value := condition()):
        if time.monotonic() > began + within:
            raise AssertionError(f"within {within:g} s not: {what}; last: {state() if state else value!r}")
        time.sleep(every_s)
    return value
