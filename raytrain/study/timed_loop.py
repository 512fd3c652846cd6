"""The job's own training loop, run for a while with a clock beside it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from raytrain.study.alone import PARTS

WARM_UP_S = 3.0


@dataclass(frozen=True)
class TimedLoop:
    """A training loop. `ctx.measured` gets `parts`, PARTS times the seconds of a rank for one of its samples, and
    `memory_bytes`, the most that model, step and batch took of the accelerator (None on a CPU).

    Args:
        resident: after the batches of one epoch give the same ones again, which are on the device already.
        seconds: to be measured, after WARM_UP_S.
    """

    resident: bool
    seconds: float
    is_the_jobs = True  # as no loop is: the job's own has to be able to train on the data

    def __call__(self, ctx: Any) -> None:
        from raytrain.train.loop import loop_of

        loop_of(ctx.job)(TimedContext(ctx, self.resident, self.seconds / PARTS))


class TimedContext:
    """A TrainContext whose batches end the loop once they have been timed, at the same step on every rank."""

    def __init__(self, ctx: Any, resident: bool, part_s: float):
        self._ctx, self._resident, self._part_s = ctx, resident, part_s
        self._parts: list[float] = []
        self._began: float | None = None
        self._warm, self._samples = False, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)

    def batches(self, split: str = "train") -> Iterator[Any]:
        """Nothing is validated."""
        if split != "train":
            return
        kept = []
        for batch in self._ctx.batches("train"):
            yield batch
            if self._resident:
                kept.append(batch)
            else:
                self._done(len(batch.ids))
        while kept:  # else the epoch is over; the next goes on
            for batch in kept:
                yield batch
                self._done(len(batch.ids))

    def _done(self, samples: int) -> None:
        """A batch of this rank has been trained on."""
        now = self._now()
        if self._began is None:
            self._began = now
            return
        self._samples += samples
        over = now - self._began >= (self._part_s if self._warm else WARM_UP_S)
        if self._ctx.world_size > 1:
            over = self._ctx.sum_over_ranks(float(over))[0] > 0
        if not over:
            return
        if self._ctx.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self._ctx.device)
            now = self._now()
        if self._warm and self._samples:
            self._parts.append((now - self._began) / self._samples)
        self._warm, self._began, self._samples = True, now, 0
        if len(self._parts) == PARTS:
            self._end()

    def _now(self) -> float:
        return time.perf_counter() - self._ctx.checkpoint_s

    def _end(self) -> None:
        from raytrain.train.contract import StopTraining

        memory_bytes = None
        if self._ctx.device.type == "cuda":
            import torch

            memory_bytes = float(torch.cuda.max_memory_allocated(self._ctx.device))
        self._ctx.measured = {"parts": self._parts, "memory_bytes": memory_bytes}
        raise StopTraining
