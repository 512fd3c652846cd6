"""How a training context has checkpoints written: together with all ranks, and when one may wait."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from raytrain.config.job import Job
from raytrain.train import modules
from raytrain.train.checkpoints import checkpoint
from raytrain.train.checkpoints.shelf import Facts
from raytrain.train.contract import COUNTS, Keep, Stream
from raytrain.train.learning.averaged import Averaged
from raytrain.train.ledger import Ledger, count_bits
from raytrain.train.losses import LossAccount
from raytrain.train.tasks import Task
from raytrain.train.update import sum_of_bits


class Saving:
    """What is behind a TrainContext, which has all that stands here."""

    job: Job
    device: torch.device
    rank: int
    world_size: int
    task: Task
    steps: int
    updates: int
    counts: dict[str, int]
    history: list[dict[str, Any]]
    _stream: Stream
    _keep: Keep
    _ledger: Ledger
    _losses: LossAccount
    _objects: list[Any]
    _fingerprint: str
    _own_samples: int
    _samples_before: int
    _checked_at: int
    _last_checkpoint_step: int
    _late: bool

    def sum_over_ranks(self, *values: float) -> list[float]:
        """Each value summed over all ranks."""
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.world_size > 1:
            dist.all_reduce(total)
        return total.tolist()

    def all_gather(self, value: Any) -> list[Any]:
        """What each rank has, in their order: tensors of any length along their first axis, or plain values."""
        everyone = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(everyone, value.cpu() if isinstance(value, torch.Tensor) else value)
        return [each.to(self.device) if isinstance(each, torch.Tensor) else each for each in everyone]

    @property
    def _modules(self) -> list[torch.nn.Module]:
        return [each for each in self._objects if isinstance(each, torch.nn.Module)]

    def _check(self) -> None:
        """Raises LossError of a loss that nobody had looked at, and TrainingError if the model is broken."""
        self._losses.check()
        if self._checked_at != self.steps:
            modules.check_finite(self._modules, self.steps)
            self._checked_at = self.steps

    def _put_off(self, every: int) -> bool:
        """Whether a checkpoint that is due is not to be yet, on all ranks alike: the one before is being written."""
        if not self._late:
            self._check()  # before anybody waits for a rank that has found something
        busy = self.sum_over_ranks(float(self.rank == 0 and self._keep.busy))[0] > 0
        if busy and not self._late and self.rank == 0:
            self._keep.late(every)
        self._late = busy
        return busy

    def _checkpoint(self, epoch: int, *, evaluated: bool = False, every: int | None = None) -> None:
        """Have a checkpoint written, together with all ranks; one of those `every` so many steps may be put off."""
        began = time.perf_counter()
        if every is None or not self._put_off(every):
            self._check()
            everyone = self.all_gather(self._own_part())
            own = sum_of_bits(self._ledger.own, self.device, self.world_size)
            if self.rank == 0:
                self._write(epoch, everyone, own, evaluated)
            self._last_checkpoint_step, self._late = self.steps, False
        self._stream.meter.checkpoint_s += time.perf_counter() - began

    def _own_part(self) -> dict[str, Any]:
        loss_sum, loss_samples = self._losses.totals()
        return {
            "rng": checkpoint.rng_state(),
            "own": self._ledger.num_own,
            "paid": self._ledger.paid,
            "samples": self._own_samples,
            "counts": self.counts,
            "loss_sum": loss_sum,
            "loss_samples": loss_samples,
        }

    def _write(self, epoch: int, everyone: list[dict[str, Any]], own: np.ndarray, evaluated: bool) -> None:
        counts, paid = ([each[name] for each in everyone] for name in ("own", "paid"))
        consumed, owed = self._ledger.union(own, counts, paid)
        facts = Facts(
            epoch=epoch,
            steps=self.steps,
            updates=self.updates,
            samples=self._samples_before + sum(each["samples"] for each in everyone),
            consumed_in_epoch=count_bits(consumed),
            fingerprint=self._fingerprint,
            classes=list(self.task.classes),
            seed=self.job.seed,
            world_size=self.world_size,
            history=self.history,
            counts={name: sum(each["counts"][name] for each in everyone) for name in COUNTS},
            loss_sum=sum(each["loss_sum"] for each in everyone),
            loss_samples=sum(each["loss_samples"] for each in everyone),
            metric=self.job.training.checkpoint.goal if evaluated else None,
            score=self.job.training.checkpoint.score(self.history[-1]) if evaluated else None,
        )
        state = {
            "modules": [i for i, thing in enumerate(self._objects) if isinstance(thing, torch.nn.Module)],
            "averaged": [i for i, thing in enumerate(self._objects) if isinstance(thing, Averaged)],
            "rng": [each["rng"] for each in everyone],
            "consumed": torch.from_numpy(consumed),
            "owed": torch.from_numpy(owed),
        }
        self._keep(facts, state, self._objects)
