"""The job's own training loop, run for a while with a clock beside it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from raytrain.study.alone import PARTS, AtCuts

WARM_UP_S = 3.0
WARM_AGAIN_S = 1.0  # with other batches


@dataclass(frozen=True)
class TimedLoop:
    """A training loop. `ctx.measured` gets `parts`, PARTS times the seconds of a rank for one of its samples,
    `memory_bytes`, the most that model, step and batch took of the accelerator (None on a CPU), and `moved`: of stages
    on the device `alone` and `beside` the model, by stage, seconds of a sample, and `parts` of steps with them; None
    without.

    Args:
        resident: after the batches of one epoch give the same ones again, which are on the device already.
        seconds: to be measured, after WARM_UP_S.
        moved: after that give this batch again and again, through all stages that may run on the device.
    """

    resident: bool
    seconds: float
    moved: AtCuts | None = None
    is_the_jobs = True  # as no loop is: the job's own has to be able to train on the data

    def __call__(self, ctx: Any) -> None:
        from raytrain.train.loop import loop_of

        loop_of(ctx.job)(TimedContext(ctx, self.resident, self.seconds / PARTS, self.moved))


class TimedContext:
    """A TrainContext whose batches end the loop once they have been timed, at the same step on every rank."""

    def __init__(self, ctx: Any, resident: bool, part_s: float, moved: AtCuts | None = None):
        self._ctx, self._resident, self._part_s, self._moved = ctx, resident, part_s, moved
        self._laps = Laps(ctx, part_s, WARM_UP_S)

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
            elif self._laps.done(len(batch.ids)):
                self._end()
        for batch in cycle(kept):  # else the epoch is over; the next goes on
            yield batch
            if self._laps.done(len(batch.ids)):
                break
        if kept:
            memory_bytes = self._memory_bytes()
            moved: dict[str, Any] = {}
            if self._moved is not None:
                yield from self._with_stages(self._moved, kept[-1], moved)
            self._end(memory_bytes, moved or None)

    def _with_stages(self, moved: AtCuts, like: Any, found: dict[str, Any]) -> Iterator[Any]:
        """Batches through stages on the device; what they take is put into `found`."""
        from raytrain.study.moved import MovedBatch

        batch, laps = MovedBatch(moved, self._ctx.device), Laps(self._ctx, self._part_s, WARM_AGAIN_S)
        found["alone"] = batch.alone(like, self._part_s)
        warm = over = False
        while not over:
            made = batch.again(like)
            yield made
            over = laps.done(made.size)
            if laps.warm and not warm:
                batch.taken()
                warm = True
        found |= {"beside": batch.taken(), "parts": laps.parts}

    def _memory_bytes(self) -> float | None:
        if self._ctx.device.type != "cuda":
            return None
        import torch

        return float(torch.cuda.max_memory_allocated(self._ctx.device))

    def _end(self, memory_bytes: float | None = None, moved: dict[str, Any] | None = None) -> None:
        from raytrain.train.contract import StopTraining

        self._ctx.measured = {
            "parts": self._laps.parts,
            "memory_bytes": self._memory_bytes() if memory_bytes is None else memory_bytes,
            "moved": moved,
        }
        raise StopTraining


class Laps:
    """PARTS parts of so many seconds each, after a warm-up; they end at the same steps on every rank.

    Attributes:
        parts: seconds of a sample.
        warm: whether the first has begun.
    """

    def __init__(self, ctx: Any, part_s: float, warm_up_s: float):
        self._ctx, self._part_s, self._warm_up_s = ctx, part_s, warm_up_s
        self.parts: list[float] = []
        self.warm = False
        self._began: float | None = None
        self._samples = 0

    def done(self, samples: int) -> bool:
        """A batch of this rank has been trained on; whether that was the last."""
        now = self._now()
        if self._began is None:
            self._began = now
            return False
        self._samples += samples
        over = now - self._began >= (self._part_s if self.warm else self._warm_up_s)
        if self._ctx.world_size > 1:
            over = self._ctx.sum_over_ranks(float(over))[0] > 0
        if not over:
            return False
        if self._ctx.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self._ctx.device)
            now = self._now()
        if self.warm and self._samples:
            self.parts.append((now - self._began) / self._samples)
        self.warm, self._began, self._samples = True, now, 0
        return len(self.parts) == PARTS

    def _now(self) -> float:
        return time.perf_counter() - self._ctx.checkpoint_s
