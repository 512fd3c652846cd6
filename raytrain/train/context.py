"""What a training loop is given: the model made ready, batches, and one call at the end of a step."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist

from raytrain.config import Job
from raytrain.errors import TrainingError, one_line
from raytrain.ledger import Ledger
from raytrain.train import checkpoint

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Stream(Protocol):
    """What the training room needs of the data room (`raytrain.data.ingest.RankIngest`)."""

    plan: Any
    meter: Any
    figures: dict[str, Any]
    stopped: bool

    def segment_of(self, epoch: int, split: str) -> int | None: ...

    def num_batches(self, number: int) -> int: ...

    def segment(self, number: int) -> Iterator[Any]: ...


class StopTraining(BaseException):
    """Ends the loop from within when the run has been asked to stop; not an error, and not for users to catch."""


@dataclass(frozen=True)
class Restored:
    """A checkpoint that the run goes on from."""

    facts: checkpoint.Facts
    state: dict[str, Any]


class TrainContext:
    """One rank's view of the run.

    Attributes:
        job: the job description.
        device: where batches arrive and the model should be.
        rank, world_size: of this process.
        num_classes: of the training data.
        steps: batches that this rank has trained on, over the whole run.
        updates: optimizer steps, likewise.
    """

    def __init__(
        self,
        job: Job,
        stream: Stream,
        *,
        device: torch.device,
        rank: int,
        world_size: int,
        fingerprint: str,
        num_train: int,
        num_classes: int,
        restored: Restored | None,
        keep: Callable[[checkpoint.Facts, dict[str, Any]], None],
    ):
        self.job, self.device, self.rank, self.world_size = job, device, rank, world_size
        self.num_classes = num_classes
        self._stream, self._fingerprint, self._num_train = stream, fingerprint, num_train
        self._restored, self._keep, self._objects = restored, keep, []
        facts = restored.facts if restored else None
        self.steps = facts.steps if facts else 0
        self.updates = facts.updates if facts else 0
        self._samples_before = facts.samples if facts else 0
        self._own_samples = 0
        self.history: list[dict[str, Any]] = list(facts.history) if facts else []
        self._epoch = facts.epoch if facts else 0
        self._ledger = Ledger(num_train, self._restored_mask())
        self._pending: list[np.ndarray] = []
        self._opened, self._delivered, self._checked = -1, 0, False
        self._epoch_metrics: dict[str, float] = {}
        self._losses: list[torch.Tensor] = []
        self._last_checkpoint_step = self.steps
        self._rate_mark: tuple[float, int, dict[str, Any]] | None = None

    # --- what a loop calls ---

    def prepare(self, *objects: Any) -> Any:
        """Make objects part of the run: modules go to the device and get DDP, everything goes into checkpoints.

        Call it once, with the model, the optimizer and whatever else has a `state_dict`. Returns them in that order.

        Raises:
            CheckpointError: the restored checkpoint holds another number of objects, or does not fit them.
        """
        from ray.train.torch import prepare_model

        assert not self._objects, "ctx.prepare is called once, with every object"
        objects = tuple(o.to(self.device) if isinstance(o, torch.nn.Module) else o for o in objects)
        self._objects = list(objects)
        if self._restored is not None:
            self._restore_objects()
        ready = tuple(
            prepare_model(o, move_to_device=self.device, parallel_strategy="ddp" if self.world_size > 1 else None)
            if isinstance(o, torch.nn.Module)
            else o
            for o in objects
        )
        if self._restored is not None:
            self._restore_rng()
        return ready if len(ready) > 1 else ready[0]

    def epochs(self) -> Iterator[int]:
        """Epoch numbers from where the run stands, 0-based; each ends with a checkpoint."""
        last = max((s.epoch for s in self._stream.plan.segments), default=-1)
        for epoch in range(self._epoch, last + 1):
            self._epoch, began, self._delivered = epoch, time.time(), 0
            steps, samples = self.steps, self._own_samples
            yield epoch
            if self._stream.stopped:
                raise StopTraining
            self._end_epoch(epoch, time.time() - began, self.steps - steps, self._own_samples - samples)

    def batches(self, split: str = "train") -> Iterator[Any]:
        """The (rest of the) epoch's batches of a split, on the device: training first, then validation.

        Raises:
            TrainingError: a split that this epoch has passed.
        """
        number = self._stream.segment_of(self._epoch, split)
        if number is None:
            return
        if number <= self._opened:
            raise TrainingError("ctx.batches: take 'train', then 'validation', each once an epoch")
        self._opened = number
        began = time.perf_counter()
        for batch in self._stream.segment(number):
            if split == "train":
                self._pending.append(batch.ids)
                self._delivered = batch.index + 1
            yield batch
        if split != "train":
            self._stream.meter.evaluate_s += time.perf_counter() - began
        if self._stream.stopped:
            self._stop()

    def num_batches(self, split: str = "train") -> int:
        """How many batches `batches(split)` gives this rank, undecodable ones included."""
        number = self._stream.segment_of(self._epoch, split)
        return 0 if number is None else self._stream.num_batches(number)

    def num_updates(self, batches_per_update: int = 1) -> int:
        """Optimizer steps still to come, when gradients of that many batches are accumulated."""
        plan = self._stream.plan
        own = (s.num_batches // plan.world_size for s in plan.segments if s.split == "train")
        return sum(-(-n // batches_per_update) for n in own)

    def autocast(self) -> contextlib.AbstractContextManager:
        """The job's precision."""
        dtype = PRECISIONS.get(self.job.training.precision)
        return torch.autocast(self.device.type, dtype=dtype) if dtype else contextlib.nullcontext()

    def report(self, loss: torch.Tensor | float, *, updated: bool = True) -> None:
        """End of a step. With `updated=False` the batch's gradients are still to be applied (accumulation).

        Once the optimizer has stepped, the samples of the batches since then count as consumed; a checkpoint is
        written when one is due.
        """
        self._losses.append(torch.as_tensor(loss).detach())
        self.steps += 1
        self._stream.meter.stepped(len(self._pending[-1]) if self._pending else 0)
        if not updated:
            return
        for ids in self._pending:
            self._ledger.add(ids)
            self._own_samples += len(ids)
        self._pending.clear()
        self.updates += 1
        self._show()
        every = self.job.training.checkpoint.every_steps
        if every and self.steps - self._last_checkpoint_step >= every:
            self._checkpoint(self._epoch, whole_epoch=False)

    def log(self, **metrics: float) -> None:
        """Figures of this epoch, such as validation accuracy, for the table and the record."""
        self._epoch_metrics.update({name: float(value) for name, value in metrics.items()})

    def sum_over_ranks(self, *values: float) -> list[float]:
        """Each value summed over all ranks."""
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.world_size > 1:
            dist.all_reduce(total)
        return total.tolist()

    @property
    def checkpoint_s(self) -> float:
        """Seconds that this rank has spent on checkpoints."""
        return self._stream.meter.checkpoint_s

    # --- behind it ---

    def _restored_mask(self) -> np.ndarray | None:
        consumed = self._restored.state["consumed"] if self._restored else None
        return None if consumed is None else consumed.numpy()

    def _restore_objects(self) -> None:
        states = self._restored.state["objects"]
        if len(states) != len(self._objects):
            raise checkpoint.CheckpointError(
                f"the checkpoint holds {len(states)} objects, the loop prepares {len(self._objects)}"
            )
        for thing, state in zip(self._objects, states, strict=True):
            try:
                thing.load_state_dict(state)
            except (RuntimeError, ValueError, KeyError) as error:
                raise checkpoint.CheckpointError(
                    f"the checkpoint does not fit this {type(thing).__name__}: {one_line(error, 300)}"
                ) from None

    def _restore_rng(self) -> None:
        states = self._restored.state["rng"]
        if self.rank < len(states):
            checkpoint.set_rng_state(states[self.rank])

    def _stop(self) -> None:
        """Leave a resumable checkpoint and end the loop."""
        self._pending.clear()  # gradients that were not applied: those samples come again
        if self.steps > self._last_checkpoint_step and self._objects:
            self._checkpoint(self._epoch, whole_epoch=False)
        raise StopTraining

    def _end_epoch(self, epoch: int, seconds: float, steps: int, samples: int) -> None:
        loss = torch.stack([x.float() for x in self._losses]).mean().item() if self._losses else float("nan")
        total_loss, samples = self.sum_over_ranks(loss, samples)
        self._losses.clear()
        entry = {
            "epoch": epoch + 1,
            "loss": total_loss / self.world_size,
            "seconds": seconds,
            "steps": steps,
            "samples_per_s": samples / seconds if seconds else 0.0,
            **self._epoch_metrics,
        }
        # JSON knows no NaN: a loss that diverged, or of an epoch whose training had been done before a resume, is null
        self.history.append({name: value if math.isfinite(value) else None for name, value in entry.items()})
        self._epoch_metrics = {}
        self._pending.clear()
        if self._is_over(epoch):
            self._checkpoint(epoch + 1, whole_epoch=True)
            self._ledger = Ledger(self._num_train)
        else:
            self._checkpoint(epoch, whole_epoch=False)
        self._show()

    def _is_over(self, epoch: int) -> bool:
        """Whether a resumed run should go on after this epoch: not when `steps`, or the loop, ended it half-way."""
        segments = self._stream.plan.segments
        part = segments[self._stream.segment_of(epoch, "train")]
        whole = part.whole and self._delivered == self._stream.num_batches(part.number)
        return whole or epoch < max(s.epoch for s in segments)

    def _checkpoint(self, epoch: int, *, whole_epoch: bool) -> None:
        """Write and report a checkpoint, together with all other ranks."""
        import ray.train

        began = time.perf_counter()
        if not self._checked:
            checkpoint.check_objects(self._objects)
            self._checked = True
        everyone: list[Any] = [None] * self.world_size
        mine = {"rng": checkpoint.rng_state(), "own": self._ledger.packed(), "samples": self._own_samples}
        if self.world_size > 1:
            dist.all_gather_object(everyone, mine)
        else:
            everyone[0] = mine
        metrics = {"epoch": epoch, "steps": self.steps}
        if self.rank != 0:
            ray.train.report(metrics)
        else:
            consumed = None if whole_epoch else self._ledger.union([e["own"] for e in everyone])
            facts = checkpoint.Facts(
                epoch=epoch,
                steps=self.steps,
                updates=self.updates,
                samples=self._samples_before + sum(e["samples"] for e in everyone),
                consumed_in_epoch=0 if consumed is None else int(consumed.sum()),
                fingerprint=self._fingerprint,
                seed=self.job.seed,
                world_size=self.world_size,
                history=self.history,
            )
            state = {
                "objects": [thing.state_dict() for thing in self._objects],
                "modules": [i for i, thing in enumerate(self._objects) if isinstance(thing, torch.nn.Module)],
                "rng": [e["rng"] for e in everyone],
                "consumed": None if consumed is None else torch.from_numpy(consumed),
            }
            self._keep(facts, state)
            ray.train.report(metrics)
        self._last_checkpoint_step = self.steps
        self._stream.meter.checkpoint_s += time.perf_counter() - began

    def _show(self) -> None:
        """Figures for the live panel and the timeline; the loss is read off the device only as often as it is shown."""
        now = time.monotonic()
        samples = self._own_samples * self.world_size
        mark_time, mark_samples, shown = self._rate_mark or (now, samples, {})
        if self._rate_mark is None or now - mark_time >= 0.5:
            rate = (samples - mark_samples) / (now - mark_time) if now > mark_time else 0.0
            shown = {
                "loss": float(self._losses[-1]) if self._losses else shown.get("loss"),
                "samples_per_s": rate,
                "wait_share": self._stream.meter.wait_share,
            }
            self._rate_mark = (now, samples, shown)
        plan = self._stream.plan
        self._stream.figures = {
            "epoch": self._epoch + 1,
            "epochs": max((s.epoch for s in plan.segments), default=0) + 1,
            "step": self.steps,
            "total_steps": plan.total_steps,
            "history": self.history[-10:],
            **self._stream.meter.so_far(),
            **shown,
        }
