"""Clocks of a rank, whose time they share out among waiting, transferring and computing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any, Protocol

from raytrain.device.busy import BusyWatch
from raytrain.device.meter import RankMeter

STEPS_AHEAD = 2  # of the GPU, that a host may be: kernels are never lacking, however short it sleeps too long
CopyEvents = tuple[Any, Any] | None
"""CUDA events before and after a batch's copy to the device."""


class HostClock:
    """Times a CPU rank: what it computes is done when the next batch is asked for.

    The wait for the first batch of all is start-up, not training, as it is on a GPU.
    """

    def __init__(self, meter: RankMeter):
        self._meter, self._mark = meter, 0.0

    def begin(self) -> None:
        pass

    def waiting(self) -> None:
        self._mark = time.perf_counter()

    def arrived(self) -> None:
        waited = self._lap()
        if self._meter.first_batch_at is not None:
            self._meter.wait_s += waited

    def ready(self, copied_between: CopyEvents) -> None:
        self._meter.transfer_s += self._lap()

    def done(self, aside_s: float) -> None:
        """The batch has been trained on, `aside_s` of the time having gone into checkpoints."""
        self._meter.compute_s += self._lap() - aside_s

    def close(self) -> None:
        pass

    def _lap(self) -> float:
        before, self._mark = self._mark, time.perf_counter()
        return self._mark - before


class DeviceClock:
    """Times a GPU rank by the GPU's own timeline, without making the host wait for it.

    An event marks where each step starts and ends on the compute stream: between a step's end and the next one's
    start the GPU had nothing to do, which is what a stall is, however early the host asked. Copies run beside the
    computation: `transfer_s` overlaps the other two. Within a step the GPU also has nothing to do when the host is late
    with its kernels; the events do not see that, but the driver does.

    Args:
        busy: tells how much of the training time kernels ran; None where nobody can.
    """

    def __init__(self, meter: RankMeter, busy: BusyWatch | None = None):
        self._meter, self._busy = meter, busy
        meter.transfer_overlaps = True
        self._steps: list[tuple[Any, Any, CopyEvents, float, float]] = []
        self._start: Any = None
        self._copied_between: CopyEvents = None
        self._last_end: Any = None
        self._at_s: float | None = None  # time.time() of the GPU's timeline, as far as it has been drained

    def begin(self) -> None:
        """A pass begins: what the GPU did since the last step (evaluation, say) was no waiting for data."""
        self._drain(wait=True)
        self._last_end, self._at_s = None, None

    def waiting(self) -> None:
        """Before the next step is launched. A host that is far ahead of the GPU would spin in the driver, on a core
        that stages could use, once no more kernels can be queued: it sleeps here, with two steps still to come."""
        self._drain(wait=False)
        if len(self._steps) > STEPS_AHEAD:
            self._steps[-1 - STEPS_AHEAD][1].synchronize()

    def arrived(self) -> None:
        self._start = event()
        if self._busy is not None and self._at_s is None:
            self._start.synchronize()  # once a pass, when the GPU has nothing to do but the batch's copy
            self._at_s = time.time()

    def ready(self, copied_between: CopyEvents) -> None:
        self._copied_between = copied_between

    def done(self, aside_s: float) -> None:
        self._steps.append((self._start, event(), self._copied_between, aside_s, time.time()))

    def close(self) -> None:
        self._drain(wait=True)
        if self._busy is not None:
            self._meter.part_gaps(self._busy.close())

    def _drain(self, wait: bool) -> None:
        while self._steps and (wait or self._steps[0][1].query()):
            start, end, copied_between, aside_s, done_at_s = self._steps.pop(0)
            end.synchronize()
            step_s, wait_s = start.elapsed_time(end) / 1e3, 0.0
            if self._last_end is not None:
                wait_s = self._last_end.elapsed_time(start) / 1e3
            self._meter.compute_s += max(step_s - aside_s, 0.0)
            self._meter.wait_s += wait_s
            if copied_between is not None:
                self._meter.transfer_s += copied_between[0].elapsed_time(copied_between[1]) / 1e3
            self._last_end = end
            if self._busy is not None:
                self._trained(wait_s + step_s, aside_s, done_at_s)

    def _trained(self, seconds: float, aside_s: float, done_at_s: float) -> None:
        """Tell the watch when there was a step and the wait before it. A checkpoint is the last thing of a step."""
        began_s, self._at_s = self._at_s, self._at_s + seconds
        if aside_s:
            self._busy.trained(began_s, min(done_at_s - aside_s, self._at_s))
            began_s = max(done_at_s, began_s)
        self._busy.trained(began_s, self._at_s)


def event() -> Any:
    """On the compute stream, of CUDA."""
    import torch

    made = torch.cuda.Event(enable_timing=True, blocking=True)  # who waits for it sleeps
    made.record()
    return made


class StageTimer(Protocol):
    """What stages on the device take."""

    def timing(self, split: str, stage: str, samples: int) -> contextlib.AbstractContextManager[None]: ...

    def close(self) -> None: ...


class HostStageTimer:
    """On a CPU rank."""

    def __init__(self, meter: RankMeter):
        self._meter = meter

    @contextlib.contextmanager
    def timing(self, split: str, stage: str, samples: int) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._meter.staged(split, stage, samples, time.perf_counter() - began)

    def close(self) -> None:
        pass


class DeviceStageTimer:
    """By events on the compute stream, which are read when they have come to pass."""

    def __init__(self, meter: RankMeter):
        self._meter = meter
        self._events: list[tuple[str, str, int, Any, Any]] = []

    @contextlib.contextmanager
    def timing(self, split: str, stage: str, samples: int) -> Iterator[None]:
        start = event()
        yield
        self._events.append((split, stage, samples, start, event()))
        while self._events and self._events[0][-1].query():
            self._read()

    def close(self) -> None:
        while self._events:
            self._events[0][-1].synchronize()
            self._read()

    def _read(self) -> None:
        split, stage, samples, start, end = self._events.pop(0)
        self._meter.staged(split, stage, samples, start.elapsed_time(end) / 1e3)
