"""The clock of a worker's stages."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence


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
