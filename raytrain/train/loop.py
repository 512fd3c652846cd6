"""The loop that runs on every rank when the user brings none: supervised image classification."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from raytrain.config.own_code import import_object
from raytrain.config.training import Optimizer, Schedule
from raytrain.train.models import build_model, check_outputs

if TYPE_CHECKING:
    from raytrain.config.job import Job
    from raytrain.train.context import TrainContext


def loop_of(job: Job) -> Callable[[TrainContext], None]:
    """The one that the job names, or ours."""
    return import_object(job.training.loop, "training.loop") if job.training.loop else train_loop


def train_loop(ctx: TrainContext) -> None:
    """Train and evaluate as the job says."""
    training = ctx.job.training
    model = build_model(ctx.job.model, ctx.num_classes)
    if training.sync_batchnorm and ctx.world_size > 1:
        from timm.layers import convert_sync_batchnorm  # torch's forgets the activations inside timm's BatchNorm

        model = convert_sync_batchnorm(model)
    optimizer = build_optimizer(model, training.optimizer)
    total_updates = ctx.updates + ctx.num_updates(training.accumulate)
    scheduler = build_scheduler(optimizer, training.schedule, total_updates)
    scaler = torch.amp.GradScaler(ctx.device.type, enabled=training.precision == "fp16")
    model, optimizer, scheduler, scaler = ctx.prepare(model, optimizer, scheduler, scaler)
    update = ctx.updater(
        model,
        optimizer,
        scheduler=scheduler,
        scaler=scaler,
        accumulate=training.accumulate,
        clip_norm=training.clip_norm,
    )

    def loss_of(batch: Any) -> torch.Tensor:
        logits = model(batch[ctx.task.input])
        check_outputs(ctx.job.model, logits.shape[-1], ctx.num_classes or 0)
        target = batch[ctx.task.target]
        target = target if target.is_floating_point() else target.long()  # shares of classes where labels are mixed
        return F.cross_entropy(logits, target, label_smoothing=training.label_smoothing)

    for _ in ctx.epochs():
        model.train()
        for batch in ctx.batches("train"):
            update(batch, loss_of)
        ctx.log(learning_rate=scheduler.get_last_lr()[0])  # as the epoch's last update left it
        if ctx.num_batches("validation"):
            ctx.log(**evaluate(ctx, model))


@torch.no_grad()
def evaluate(ctx: TrainContext, model: torch.nn.Module) -> dict[str, float]:
    """Mean loss and accuracy over the whole validation split, each sample once."""
    model = getattr(model, "module", model)  # without DDP: there is nothing to exchange
    model.eval()
    loss = correct = count = 0.0
    for batch in ctx.batches("validation"):
        with ctx.autocast():
            logits = model(batch[ctx.task.input])
        target = batch[ctx.task.target].long()
        loss += F.cross_entropy(logits.float(), target, reduction="sum").item()
        correct += (logits.argmax(1) == target).sum().item()
        count += batch.size
    loss, correct, count = ctx.sum_over_ranks(loss, correct, count)
    return {"validation_loss": loss / max(count, 1), "validation_accuracy": correct / max(count, 1)}


def build_optimizer(model: torch.nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """Weight decay leaves biases and norms (one-dimensional parameters) alone."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum)
    return torch.optim.AdamW(groups, lr=settings.lr)


def build_scheduler(
    optimizer: torch.optim.Optimizer, settings: Schedule, total_updates: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """The learning rate by optimizer step."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(settings, step, total_updates))


def lr_factor(settings: Schedule, step: int, total_steps: int) -> float:
    """Learning rate at `step` of `total_steps` as a share of the peak: linear warm-up, then flat or half a cosine."""
    warmup = round(settings.warmup_share * total_steps)
    if step < warmup:
        return (step + 1) / warmup
    if settings.name == "constant":
        return 1.0
    progress = min((step - warmup) / max(total_steps - warmup, 1), 1.0)
    return settings.final_share + (1 - settings.final_share) * 0.5 * (1 + math.cos(math.pi * progress))
