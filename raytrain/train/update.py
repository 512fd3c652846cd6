"""One optimizer step: the gradient of the mean over the samples of all ranks and of all batches since the last one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist

from raytrain.config.job import Job

LossOf = Callable[[Any], torch.Tensor]


class Steps(Protocol):
    """What an updater needs of a training context (`raytrain.train.context.TrainContext`)."""

    job: Job
    device: torch.device
    world_size: int
    accumulates: bool

    def window(self, index: int, batches_per_update: int) -> tuple[range, int]: ...

    def autocast(self) -> contextlib.AbstractContextManager: ...

    def report(self, loss: torch.Tensor, *, updated: bool = True, skipped: bool = False) -> None: ...

    def sum_over_ranks(self, *values: float) -> list[float]: ...


class Updater:
    """Turns batches into optimizer steps.

    A window of `accumulate` batches, fewer at the end of an epoch, makes one. DDP averages the ranks' gradients. Each
    batch's mean loss has the weight samples * world_size / planned, where `planned` is how many samples all ranks
    should have in the window, and the averaged gradient that of planned / samples that there were, which differ by what
    could not be decoded. Together that is the gradient of the mean over the window's samples, whoever has how many.

    Args:
        model: as `ctx.prepare` returned it, and so are the others.
        scheduler: moved by one after every step of the optimizer.
        scaler: scales the loss of fp16; a step that it skips is none.
        accumulate: batches.
        clip_norm: of all gradients together.
    """

    def __init__(
        self,
        ctx: Steps,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        scaler: torch.amp.GradScaler | None = None,
        accumulate: int = 1,
        clip_norm: float | None = None,
    ):
        self._ctx, self._model, self._optimizer, self._scheduler = ctx, model, optimizer, scheduler
        self._scaler = scaler or torch.amp.GradScaler(ctx.device.type, enabled=False)
        self._accumulate, self._clip_norm = accumulate, clip_norm
        ctx.accumulates |= accumulate > 1
        self._skips_nan = ctx.job.training.on_nan == "skip"
        self._begin_window()

    def __call__(self, batch: Any, loss_of: LossOf) -> torch.Tensor:
        """Take a batch, and make a step if it is the last of its window.

        Args:
            loss_of: of the batch, its mean loss over the samples; called once, with autocast.

        Returns:
            That loss, detached.
        """
        window, samples = self._ctx.window(batch.index, self._accumulate)
        planned = samples if len(window) > 1 else None  # of one batch the weight is known
        last = batch.index == window[-1]
        if batch.index == window[0] and self._begun:  # the loop has left the window before half-way
            self._optimizer.zero_grad(set_to_none=True)
            self._begin_window()
        with contextlib.nullcontext() if last or not hasattr(self._model, "no_sync") else self._model.no_sync():
            with self._ctx.autocast():
                loss = loss_of(batch)
            self._scaler.scale(self._weighed(loss, batch, planned)).backward()
        self._begun, self._seen = True, self._seen + batch.step_samples
        self._empty &= batch.stand_in
        if self._skips_nan:
            self._bad |= not (batch.stand_in or bool(torch.isfinite(loss.detach())))
        if not last:
            self._ctx.report(loss, updated=False)
            return loss.detach()
        stepped = not self._is_void() and self._step(planned)
        self._optimizer.zero_grad(set_to_none=True)
        self._begin_window()
        self._ctx.report(loss, skipped=not stepped)
        return loss.detach()

    def _begin_window(self) -> None:
        self._begun = False
        self._seen: torch.Tensor | float = 0  # samples of all ranks
        self._empty, self._bad = True, False  # this rank: had no sample; had a loss that is no number

    def _weighed(self, loss: torch.Tensor, batch: Any, planned: int | None) -> torch.Tensor:
        if batch.stand_in:
            return torch.nan_to_num(loss) * 0.0
        if planned is None:
            return loss * batch.weight
        return loss * (batch.size * self._ctx.world_size / planned)

    def _is_void(self) -> bool:
        """Whether there is nothing to step with, on all ranks alike."""
        if self._empty and float(self._seen) == 0:
            return True
        if not self._skips_nan:
            return False
        return self._ctx.sum_over_ranks(float(self._bad))[0] > 0 or not self._finite_gradients()

    def _finite_gradients(self) -> bool:
        """They are the same on every rank. Those of fp16 are the scaler's to look at."""
        return self._scaler.is_enabled() or bool(torch.isfinite(torch.nn.utils.get_total_norm(self._gradients())))

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [each for group in self._optimizer.param_groups for each in group["params"] if each.grad is not None]

    def _gradients(self) -> list[torch.Tensor]:
        return [each.grad for each in self._parameters()]

    def _step(self, planned: int | None) -> bool:
        """Whether the optimizer did step: the scaler skips gradients that have overflowed."""
        if planned is not None:
            correction = planned / self._seen
            for gradient in self._gradients():
                gradient.mul_(correction)
        if self._clip_norm is not None:
            self._scaler.unscale_(self._optimizer)
            torch.nn.utils.clip_grad_norm_(self._parameters(), self._clip_norm)
        scale = self._scaler.get_scale()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        stepped = self._scaler.get_scale() >= scale
        if stepped and self._scheduler is not None:
            self._scheduler.step()
        return stepped


def sum_of_bits(bits: np.ndarray, device: torch.device, world_size: int) -> np.ndarray:
    """Of all ranks' `bits`, uint8, where they fit into it."""
    if world_size == 1:
        return bits
    total = torch.from_numpy(bits).to(device, copy=True)
    dist.all_reduce(total)
    return total.cpu().numpy()


def step_samples(own: int, device: torch.device, world_size: int) -> torch.Tensor | int:
    """Samples that all ranks have at this step; where there are several, a float32 scalar that nobody waits for."""
    if world_size == 1:
        return own
    total = torch.full((), float(own), device=device)
    dist.all_reduce(total)
    return total
