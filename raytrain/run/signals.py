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
        training: set by whoever begins to train.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.training = threading.Event()
        self._first_at: float | None = None

    def listen(self) -> None:
        """Put the handlers in place (again), where Python allows it: in the main thread."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._hear)

    def check(self) -> None:
        """
        Raises:
            Stopped: a signal has come before training began; whatever it interrupted may have taken its error for one
                of its own.
        """
        if self.number is not None and not self.training.is_set():
            raise Stopped("stopped before training began", self.number)

    def _hear(self, number: int, _frame: Any) -> None:
        now = time.monotonic()
        before, self._first_at = self._first_at, self._first_at or now
        self.number = number
        self.check()
        if before is not None and (number == signal.SIGINT or now - before > SAME_SIGNAL_S):
            raise Stopped("stopped at once, without waiting for a checkpoint", number)


@contextlib.contextmanager
def signals() -> Iterator[Signals]:
    """Listen to Ctrl-C and SIGTERM: before training they end the start-up at once, later they ask for a checkpoint
    first. Only in the main thread."""
    heard = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    heard.listen()
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
