"""Clocks: of a rank, whose time they share out among waiting, transferring and computing; of a worker's stages."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from raytrain.data.meter import RankMeter

CopyEvents = tuple[Any, Any] | None
"""CUDA events before and after a batch's copy to the device."""


class StageClock:
    """Wall time and CPU time of the stages of one batch, in a worker.

    A worker whose core others use too is off the CPU for a part of the wall time, and one that reads waits: only CPU
    time says how many CPUs a job needs.

    The task's own thread has a clock that is read after every stage. Some work goes on in other threads of the
    process: Arrow's when it decodes Parquet, those that read from a remote file system, those of a library that a
    user's stage calls. A worker has one task at a time, so that the CPU time of the whole process less that of the
    own thread is what they did for this batch (a little of it is Ray's own). The clock of a process goes through all
    of its threads, dozens under Ray, too dear for every stage of every sample: `settle` reads it, twice a batch.
    """

    def __init__(self, stages: Iterable[str]):
        self.wall_s = dict.fromkeys(stages, 0.0)
        self.cpu_s = dict(self.wall_s)
        self._process_at, self._thread_at = time.process_time(), time.thread_time()
        self.begin()

    def begin(self) -> None:
        """What came before is no stage's."""
        self._wall_mark, self._cpu_mark = time.perf_counter(), time.thread_time()

    def lap(self, stage: str) -> None:
        """The time since `begin` or the last lap was this stage's."""
        wall, cpu = time.perf_counter(), time.thread_time()
        self.wall_s[stage] += wall - self._wall_mark
        self.cpu_s[stage] += cpu - self._cpu_mark
        self._wall_mark, self._cpu_mark = wall, cpu

    def settle(self, stages: Sequence[str]) -> None:
        """Share out among `stages`, by their wall time, what other threads did since the last time."""
        process, thread = time.process_time(), time.thread_time()
        elsewhere = max((process - self._process_at) - (thread - self._thread_at), 0.0)
        total = sum(self.wall_s[stage] for stage in stages)
        for stage in stages if total else ():
            self.cpu_s[stage] += elsewhere * self.wall_s[stage] / total
        self._process_at, self._thread_at = process, thread


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
    computation: `transfer_s` overlaps the other two.
    """

    def __init__(self, meter: RankMeter):
        self._meter = meter
        meter.transfer_overlaps = True
        self._steps: list[tuple[Any, Any, CopyEvents, float]] = []
        self._start: Any = None
        self._copied_between: CopyEvents = None
        self._last_end: Any = None

    def begin(self) -> None:
        """A pass begins: what the GPU did since the last step (evaluation, say) was no waiting for data."""
        self._drain(wait=True)
        self._last_end = None

    def waiting(self) -> None:
        self._drain(wait=False)

    def arrived(self) -> None:
        self._start = self._event()

    def ready(self, copied_between: CopyEvents) -> None:
        self._copied_between = copied_between

    def done(self, aside_s: float) -> None:
        self._steps.append((self._start, self._event(), self._copied_between, aside_s))

    def close(self) -> None:
        self._drain(wait=True)

    @staticmethod
    def _event() -> Any:
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _drain(self, wait: bool) -> None:
        while self._steps and (wait or self._steps[0][1].query()):
            start, end, copied_between, aside_s = self._steps.pop(0)
            end.synchronize()
            self._meter.compute_s += max(start.elapsed_time(end) / 1e3 - aside_s, 0.0)
            if self._last_end is not None:
                self._meter.wait_s += self._last_end.elapsed_time(start) / 1e3
            if copied_between is not None:
                self._meter.transfer_s += copied_between[0].elapsed_time(copied_between[1]) / 1e3
            self._last_end = end
