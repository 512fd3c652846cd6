"""Ctrl-C and SIGTERM, and what each means when."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from raytrain.errors import Stopped

SAME_SIGNAL_S = 1.0  # a launcher and a shell's trap may both pass the same SIGTERM on


class Signalled(Protocol):
    """What is told of a signal."""

    signal_number: int | None


@contextlib.contextmanager
def signals(this: Signalled) -> Iterator[tuple[threading.Event, Callable[[], None]]]:
    """Ctrl-C and SIGTERM: before training they end the start-up at once, later they ask for a checkpoint first.

    Yields the event that says that training goes on, and a function that puts the handlers in place (again).
    """
    going = threading.Event()

    first: list[float] = []

    def handle(number: int, _frame: Any) -> None:
        first.append(time.monotonic())
        again = len(first) > 1 and (number == signal.SIGINT or first[-1] - first[0] > SAME_SIGNAL_S)
        this.signal_number = number
        if not going.is_set():
            raise Stopped("stopped before training began", number)
        if again:
            raise Stopped("stopped at once, without waiting for a checkpoint", number)

    if threading.current_thread() is not threading.main_thread():
        yield going, lambda: None
        return

    def listen() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, handle)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    listen()
    try:
        yield going, listen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
