"""Ctrl-C and SIGTERM, and what each means when."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from raytrain.errors import Stopped

SAME_SIGNAL_S = 1.0  # a launcher and a shell's trap may both pass the same SIGTERM on


class Signals:
    """What has been heard.

    Attributes:
        number: of the last signal; None so far.
        begun: set by whoever begins what a stop must end in order.
    """

    def __init__(self, before: str, at_once: str) -> None:
        self.number: int | None = None
        self.begun = threading.Event()
        self._before, self._at_once = before, at_once
        self._first_at: float | None = None

    def listen(self) -> None:
        """Put the handlers in place (again), where Python allows it: in the main thread."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._hear)

    def check(self) -> None:
        """
        Raises:
            Stopped: a signal has come before that began; whatever it interrupted may have taken its error for one of
                its own.
        """
        if self.number is not None and not self.begun.is_set():
            raise Stopped(self._before, self.number)

    def _hear(self, number: int, _frame: Any) -> None:
        now = time.monotonic()
        before, self._first_at = self._first_at, self._first_at or now
        self.number = number
        self.check()
        if before is not None and (number == signal.SIGINT or now - before > SAME_SIGNAL_S):
            raise Stopped(self._at_once, number)


@contextlib.contextmanager
def signals(before: str, at_once: str) -> Iterator[Signals]:
    """Listen to Ctrl-C and SIGTERM: they end the start-up at once, and later, when something has begun, ask for its end
    in order. Only in the main thread.

    Args:
        before: what is told of a stop before it has begun.
        at_once: and of a second one, which does not wait for that end.
    """
    heard = Signals(before, at_once)
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    heard.listen()
    try:
        yield heard
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
