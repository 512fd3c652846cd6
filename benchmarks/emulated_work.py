"""What `scale.py` emulates: a transform that waits, in the workers, and an accelerator that is a clock, in the rank."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

WRAP_S = 10_000.0  # a time of day modulo this fits into a float32 to the millisecond
ON_ITS_WAY_S = 0.4  # from worker to rank it takes half of that
GIVEN_UP = 200  # and 16 a CPU: batches after which the warm-up ends though CPUs are missing or batches still lie ready


class WaitingTransform:
    """A CPU stage that takes `sample_s` by sleeping and returns a real array, which says in which process and when.

    What a sleep took too long is taken off the next, at most one sample's time.
    """

    def __init__(self, sample_s: float, shape: tuple[int, int, int]):
        self._sample_s, self._shape = sample_s, shape
        self._late_s, self._payload = 0.0, None

    def __call__(self, sample: np.ndarray) -> np.ndarray:
        if self._payload is None:
            self._payload = np.random.default_rng(0).random(self._shape, np.float32)
            self._payload[0, 0, 0] = os.getpid()  # below 2**24
        began, wanted_s = time.perf_counter(), self._sample_s - self._late_s
        result = self._payload.copy()  # a real transform makes a new array too
        time.sleep(max(wanted_s - (time.perf_counter() - began), 0.0))
        result[0, 0, 1] = time.monotonic() % WRAP_S
        self._late_s = min(time.perf_counter() - began - wanted_s, self._sample_s)
        return result


def emulated_accelerator(*, step_s: float, batch_s: float, cpus: int, window: int, into: Path) -> Callable[[Any], None]:
    """A training loop whose steps only take time, and in the warm-up none, so that nothing is left ready before.

    Args:
        batch_s: that a CPU takes to make a batch.
        window: batches to measure; then the loop ends.
        into: file for [start, end, seconds that the batch had lain ready] of every step, in monotonic seconds, and for
            the number of the first one measured.
    """

    def loop(ctx: Any) -> None:
        steps: list[tuple[float, float, float]] = []
        workers: set[float] = set()
        free_at, since_new, fresh, first = 0.0, 0, 0, None
        for _ in ctx.epochs():
            for batch in ctx.batches("train"):
                arrived = time.monotonic()
                worker, made_at = batch.image[-1, :2, 0, 0].tolist()
                lay_ready_s = (arrived - made_at) % WRAP_S
                time.sleep(max(free_at - arrived, 0.0))  # this step waits on the device while the one before it runs
                started = max(free_at, arrived)
                free_at = started + (0.0 if first is None else step_s)
                steps.append((started, free_at, lay_ready_s))
                since_new = since_new + 1 if worker in workers else 0
                fresh = fresh + 1 if lay_ready_s < max(batch_s / 2, ON_ITS_WAY_S) else 0
                workers.add(worker)
                ctx.report(0.0)
                warm = len(workers) >= cpus and min(since_new, fresh) >= 2 * cpus
                if first is None and (warm or since_new >= GIVEN_UP + 16 * cpus):
                    first = len(steps)
                if first is not None and len(steps) == first + window:
                    into.write_text(json.dumps({"steps": steps, "first": first, "workers": len(workers)}))
                    return

    return loop
