"""Ends a worker that is at one stage of one sample for too long.

Imported by every preprocessing worker: the standard library and nothing else.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading

from raytrain.data.worker.crumb import Crumb, Spot

LOOK_EVERY_S = 1.0
EXIT_CODE = 75


class Patience:
    """How long a worker has been where it is, counted in looks and not by a clock: a process that was suspended, and a
    machine that slept, have not looked. Pure."""

    def __init__(self, timeout_s: float):
        self.every_s = min(LOOK_EVERY_S, timeout_s / 4)
        self._most = round(timeout_s / self.every_s)
        self._last: Spot | None = None
        self._looks = 0

    def is_over(self, spot: Spot) -> bool:
        """To be asked every `every_s`."""
        self._looks = self._looks + 1 if spot == self._last and spot.at else 0
        self._last = spot
        return self._looks >= self._most


class Watchdog:
    """A thread that looks once a second at what its process is at.

    A stage that never lets go of the interpreter's lock keeps this thread from looking: faulthandler's own, which is C,
    then ends the process as long after the last look.
    """

    def __init__(self, crumb: Crumb, timeout_s: float):
        self._crumb, self._timeout_s = crumb, timeout_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look, name="raytrain-watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Another takes its place, or none."""
        self._stopped.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def _look(self) -> None:
        patience = Patience(self._timeout_s)
        while True:
            # at any time, since this thread may not get to see the stage that keeps it from looking
            faulthandler.dump_traceback_later(self._timeout_s + patience.every_s, exit=True, file=_where())
            if patience.is_over(self._crumb.spot):
                self._exit()
            if self._stopped.wait(patience.every_s):
                return

    def _exit(self) -> None:
        self._crumb.hangs()
        print(f"a stage has taken longer than {self._timeout_s:g} s; its worker ends", file=sys.stderr, flush=True)  # noqa: T201
        faulthandler.dump_traceback(file=sys.stderr)
        os._exit(EXIT_CODE)


_LOG: list[int] = []


def log_to(file: int | None) -> None:
    """Where this process writes its threads' stacks when it ends, by the file's number; None for standard error."""
    _LOG[:] = [] if file is None else [file]
    faulthandler.disable()  # other handlers may have been put above its own
    faulthandler.enable(file=_where())


def _where() -> int:
    return _LOG[0] if _LOG else sys.stderr.fileno()
