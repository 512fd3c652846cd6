"""What a training loop is given: the model made ready, batches, and one call at the end of a step."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from raytrain.config.job import Job
from raytrain.errors import TrainingError
from raytrain.record.status import RankProgress
from raytrain.train import modules
from raytrain.train.checkpoints import checkpoint
from raytrain.train.checkpoints.saving import Saving
from raytrain.train.contract import COUNTS, Awaiting, Keep, Restored, StopTraining, Stream
from raytrain.train.ledger import Ledger
from raytrain.train.losses import LossAccount
from raytrain.train.pace import Pace
from raytrain.train.tasks import Task
from raytrain.train.update import Updater, step_samples

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TrainContext(Saving):
    """One rank's view of the run.

    Attributes:
        job: the job description.
        device: where batches arrive and the model should be.
        rank, world_size: of this process.
        task: what is to be predicted from what, and the classes' names.
        accumulates: whether updates are made of several batches; says so to be bit by bit the same after a stop.
        steps: batches that this rank has trained on, over the whole run.
        updates: optimizer steps, likewise.
        counts: over the whole run, this rank's share of what record.schema.Unusual has. What an earlier attempt had
            counted, and what concerns all ranks, the first rank has.
        resumed: whether `prepare` gives the objects the state of a checkpoint.
        warn: tells whoever started the run something in a line, which its record keeps.
        measured: what the loop wants to tell whoever started the run, in plain values; see Status.results.
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
        task: Task,
        restored: Restored | None,
        keep: Keep,
        warn: Callable[[str], Any] = warnings.warn,
    ):
        self.job, self.device, self.rank, self.world_size = job, device, rank, world_size
        self.task, self.accumulates, self.warn = task, False, warn
        self.resumed = restored is not None
        self.measured: dict[str, Any] | None = None
        self._stream, self._fingerprint, self._num_train = stream, fingerprint, num_train
        self._restored, self._keep, self._objects, self._ready = restored, keep, [], ()
        facts = restored.facts if restored else None
        self.steps = facts.steps if facts else 0
        self.updates = facts.updates if facts else 0
        self.counts = dict.fromkeys(COUNTS, 0) | (facts.counts if facts and rank == 0 else {})
        self._samples_before = facts.samples if facts else 0
        self._own_samples = 0
        self.history: list[dict[str, Any]] = list(facts.history) if facts else []
        self._epoch = facts.epoch if facts else 0
        self._ledger = Ledger(num_train, *(restored.ledger if restored else ()))
        self._pending: list[Awaiting] = []
        self._opened, self._delivered = -1, 0
        self._epoch_metrics: dict[str, float] = {}
        self._forgiving = job.training.on_nan == "skip"
        before = (facts.loss_sum, facts.loss_samples) if facts and rank == 0 else (0.0, 0)
        self._losses = LossAccount(device, *before, forgiving=self._forgiving)
        self._last_checkpoint_step = self.steps
        self._late, self._checked_at, self._pace = False, -1, Pace()
        self._before: tuple[dict[str, Any], list[torch.Tensor]] | None = None  # random state and buffers, of the window

    # --- what a loop calls ---

    @property
    def num_classes(self) -> int | None:
        """Of the training data; None where it has no classes, or nobody knows how many."""
        return self.task.num_classes

    def prepare(self, *objects: Any) -> Any:
        """Make objects part of the run: modules go to the device and get DDP, everything goes into checkpoints.

        Call it once, with the model, the optimizer and whatever else has a `state_dict`. Returns them in that order.

        Raises:
            CheckpointError: the restored checkpoint holds another number of objects, or does not fit them.
        """
        assert not self._objects, "ctx.prepare is called once, with every object"
        objects = tuple(o.to(self.device) if isinstance(o, torch.nn.Module) else o for o in objects)
        self._objects = list(objects)
        if self._restored is not None:
            checkpoint.restore(self._objects, self._restored.objects, self.rank, self.world_size)
        self._ready = tuple(modules.distributed(each, self.device, self.world_size) for each in objects)
        if self._restored is not None:
            self._restore_rng()
            self._restored = None  # the run has no more use for it
        return self._ready if len(self._ready) > 1 else self._ready[0]

    def updater(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, **options: Any) -> Updater:
        """What turns batches into optimizer steps; see `raytrain.train.update.Updater` for the options."""
        return Updater(self, model, optimizer, **options)

    def epochs(self) -> Iterator[int]:
        """Epoch numbers from where the run stands, 0-based; each ends with a checkpoint."""
        for epoch in range(self._epoch, self._stream.plan.num_epochs):
            self._epoch, began, self._delivered = epoch, time.time(), 0
            steps, samples = self.steps, self._own_samples
            yield epoch
            if self._stream.stopped:
                raise StopTraining
            self._end_epoch(epoch, time.time() - began, self.steps - steps, self._own_samples - samples)

    def batches(self, split: str = "train") -> Iterator[Any]:
        """The (rest of the) epoch's batches of a split, on the device: training first, then validation, in which there
        are no stand-ins and forwards of prepared modules wait for no other rank.

        Raises:
            TrainingError: a split that this epoch has passed.
        """
        number = self._stream.segment_of(self._epoch, split)
        if number is None:
            return
        if number <= self._opened:
            raise TrainingError("ctx.batches: take 'train', then 'validation', each once an epoch")
        self._opened = number
        if split == "train":
            yield from self._training_batches(number)
        else:
            began = time.perf_counter()
            if self.world_size > 1:
                modules.broadcast_buffers(self._modules)
            with modules.forwards_alone(self._ready):
                yield from (batch for batch in self._stream.segment(number) if not batch.stand_in)
            self._stream.meter.evaluate_s += time.perf_counter() - began
        if self._stream.stopped:
            self._stop()

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that prints and writes what the run needs once."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.sum_over_ranks(0)

    def num_batches(self, split: str = "train") -> int:
        """How many batches `batches(split)` gives this rank; of validation at most, since empty ones are left out."""
        number = self._stream.segment_of(self._epoch, split)
        return 0 if number is None else self._stream.num_batches(number)

    def num_updates(self, batches_per_update: int = 1) -> int:
        """Optimizer steps still to come, when gradients of that many batches are accumulated."""
        plan = self._stream.plan
        own = (s.num_batches // plan.world_size for s in plan.segments if s.split == "train")
        return sum(-(-n // batches_per_update) for n in own)

    def window(self, index: int, batches_per_update: int) -> tuple[range, int]:
        """The batches of the open epoch that make an optimizer step with batch `index`, and how many samples all ranks
        together should have in them."""
        first = index - index % batches_per_update
        batches = range(first, min(first + batches_per_update, self._stream.num_batches(self._opened)))
        sizes = self._stream.plan.segments[self._opened].sizes
        return batches, int(sizes[batches.start * self.world_size : batches.stop * self.world_size].sum())

    def autocast(self) -> contextlib.AbstractContextManager:
        """The job's precision."""
        dtype = PRECISIONS.get(self.job.training.precision)
        return torch.autocast(self.device.type, dtype=dtype) if dtype else contextlib.nullcontext()

    def report(self, loss: torch.Tensor | float, *, updated: bool = True, skipped: bool = False) -> None:
        """End of a step.

        Once the optimizer has stepped, the samples of the batches since then count as consumed; when a checkpoint is
        due, the state is copied, and written meanwhile. One that is due before the last is on disk comes later.

        Args:
            loss: mean over the batch's samples.
            updated: False if the batch's gradients are still to be applied (accumulation).
            skipped: the optimizer did not step, and the gradients are gone: no update, and no sample was consumed.

        Raises:
            LossError: a loss is no finite number, and was not skipped.
            CheckpointError: an object's state could not be read again.
        """
        self._keep.check()
        self.steps += 1
        ids = self._pending[-1].ids if self._pending else ()
        self._losses.add(loss, len(ids), self.steps, self._epoch, ids)
        self._stream.meter.stepped(len(ids))
        if not updated and not skipped:
            return
        self._losses.settle(skipped)
        if skipped and self._forgiving and self._before is not None:
            modules.put_buffers_back(self._modules, self._before[1])  # BatchNorm has seen what made the loss
        for each in self._pending:
            self._settle(each, skipped)
        self._pending.clear()
        self.counts["skipped_steps"] += skipped and self.rank == 0
        self.updates += not skipped
        self._show()
        every = self.job.training.checkpoint.every_steps
        if every and self.steps - self._last_checkpoint_step >= every:
            self._checkpoint(self._epoch, every=every)

    def log(self, **metrics: float) -> None:
        """Figures of this epoch, such as validation accuracy, for the table and the record; whole numbers stay so."""
        kinds = {name: int if isinstance(value, int | np.integer) else float for name, value in metrics.items()}
        self._epoch_metrics.update({name: kind(metrics[name]) for name, kind in kinds.items()})

    @property
    def checkpoint_s(self) -> float:
        """Seconds that this rank's training has waited for checkpoints, which are written meanwhile."""
        return self._stream.meter.checkpoint_s

    # --- behind it ---

    def _training_batches(self, number: int) -> Iterator[Any]:
        """Batches with their weight, and with BatchNorm's statistics safe from those that have none."""
        alone_is_odd = self._stream.plan.batch_size > 1
        for batch in self._stream.segment(number):
            own = 0 if batch.stand_in else batch.size
            batch.step_samples = step_samples(own, self.device, self.world_size)
            if self.world_size > 1 and own:
                batch.weight = own * self.world_size / batch.step_samples
            if (self.accumulates or self._forgiving) and not self._pending:
                self._before = checkpoint.rng_state(), modules.copy_of_buffers(self._modules)
            self._pending.append(Awaiting.of(batch))
            self._delivered = batch.index + 1
            if batch.stand_in and self.world_size > 1 and modules.synchronises_batch_norm(self._modules):
                # it has to take part, with nothing
                batch.empty()
            alone = own == 0 or (own == 1 and alone_is_odd)
            with modules.frozen_statistics(self._modules, self.world_size) if alone else contextlib.nullcontext():
                yield batch

    def _settle(self, batch: Awaiting, skipped: bool) -> None:
        """A batch has become part of an update, or never will; what could not be prepared is done with either way."""
        self._ledger.add(batch.left_out)
        self.counts["filtered"] += batch.filtered
        self.counts["stand_ins"] += not len(batch.ids)
        if skipped:
            self.counts["skipped_samples"] += len(batch.ids)
            return
        keys = batch.ids + self._num_train * batch.carried
        fresh = len(keys) - batch.repeated
        self._ledger.add(keys[:fresh][batch.parts[:fresh] == 0])  # several of one sample are consumed with the first
        self.counts["repeated"] += batch.repeated
        self._own_samples += len(batch.ids)

    def _restore_rng(self) -> None:
        states = self._restored.state["rng"]
        if self.rank < len(states):
            checkpoint.set_rng_state(states[self.rank])

    def _stop(self) -> None:
        """Leave a resumable checkpoint and end the loop. Gradients that were not applied are lost: those samples come
        again, as if they had never come."""
        self.steps -= len(self._pending)
        if self._pending and self._before is not None:
            checkpoint.set_rng_state(self._before[0])
            modules.put_buffers_back(self._modules, self._before[1])
        self._pending.clear()
        if self.steps > self._last_checkpoint_step and self._objects:
            self._checkpoint(self._epoch)
        raise StopTraining

    def _end_epoch(self, epoch: int, seconds: float, steps: int, samples: int) -> None:
        loss_sum, loss_samples, samples = self.sum_over_ranks(*self._losses.totals(), samples)
        entry = {
            "epoch": epoch + 1,
            "loss": loss_sum / loss_samples if loss_samples else float("nan"),
            "seconds": seconds,
            "steps": steps,
            "samples_per_s": samples / seconds if seconds else 0.0,
            **self._epoch_metrics,
        }
        if self.history and self.history[-1]["epoch"] == epoch + 1:  # `steps` had ended it half-way, and it went on
            earlier = self.history.pop()
            entry |= {name: entry[name] + earlier[name] for name in ("seconds", "steps")}
        # JSON knows no NaN: a figure that is none, or the loss of an epoch that had no step, is null
        self.history.append({name: value if math.isfinite(value) else None for name, value in entry.items()})
        self._epoch_metrics = {}
        self._pending.clear()
        if over := self._is_over(epoch):
            self._losses.clear()
            part = self._stream.plan.segments[self._stream.segment_of(epoch, "train")]
            self.counts["dropped"] += part.dropped if self.rank == 0 else 0
            self.counts["carried"] += part.carried if self.rank == 0 else 0
            self._ledger = Ledger(self._num_train, owed=self._stream.plan.after(part.number))
        self._checkpoint(epoch + over, evaluated=True)
        self._show()

    def _is_over(self, epoch: int) -> bool:
        """Whether a resumed run should go on after this epoch: not when `steps`, or the loop, ended it half-way."""
        segments = self._stream.plan.segments
        part = segments[self._stream.segment_of(epoch, "train")]
        whole = part.whole and self._delivered == self._stream.num_batches(part.number)
        return whole or epoch < max(s.epoch for s in segments)

    def _show(self) -> None:
        """Figures for the live panel and the timeline."""
        plan, meter = self._stream.plan, self._stream.meter
        shown = self._pace.look(self._own_samples * self.world_size, self._losses.last, meter.wait_share)
        self._stream.progress = RankProgress(
            epoch=self._epoch + 1,
            epochs=plan.num_epochs,
            step=self.steps,
            total_steps=plan.total_steps,
            history=self.history[-10:],
            counts=dict(self.counts),
            times=meter.so_far(),
            **shown,
        )
