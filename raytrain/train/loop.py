"""The loop that runs on every rank when the user brings none: supervised learning, as the job says."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parallel import DistributedDataParallel

from raytrain.config.learning import Backends
from raytrain.config.own_code import import_object
from raytrain.errors import ConfigError, nearest
from raytrain.train.learning.averaged import Averaged
from raytrain.train.learning.metrics import Watch, watches
from raytrain.train.learning.named import made
from raytrain.train.learning.objectives import Objective
from raytrain.train.learning.optimizers import build_optimizer, build_scheduler, lengths_of
from raytrain.train.learning.stopping import Patience
from raytrain.train.learning.weights import freeze, load_weights
from raytrain.train.models import build_model, check_outputs

if TYPE_CHECKING:
    from raytrain.config.job import Job
    from raytrain.train.context import TrainContext


def loop_of(job: Job) -> Callable[[TrainContext], None]:
    """The one that the job names, or ours."""
    return import_object(job.training.loop, "training.loop") if job.training.loop else train_loop


def train_loop(ctx: TrainContext) -> None:
    """Train and evaluate as the job says."""
    with switched(ctx.job.training.backends, ctx.device):
        _train(ctx)


def _train(ctx: TrainContext) -> None:
    training = ctx.job.training
    model = made_model(ctx)
    optimizer = build_optimizer(model, training.optimizer)
    total_updates = ctx.updates + ctx.num_updates(training.accumulate)
    scheduler = build_scheduler(optimizer, training.schedule, total_updates)
    scaler = torch.amp.GradScaler(ctx.device.type, enabled=training.precision == "fp16")
    averaged = Averaged(model, optimizer, training.ema.decay) if training.ema else None
    objective = Objective(training, ctx.device, channels_last=ctx.job.model.channels_last)
    num_outputs = ctx.num_classes or ctx.job.model.options.get("num_classes")
    figures = [each.name for each in watches(training, num_outputs, ctx.device)]
    patience = None
    if training.early_stopping and ctx.num_batches("validation"):
        patience = Patience(training.early_stopping, ["loss", *figures])
    lengths = lengths_of(scheduler)
    more = [each for each in (averaged, patience) if each is not None]
    model, optimizer, scheduler, scaler, *_ = ctx.prepare(model, optimizer, scheduler, scaler, *more)
    vars(scheduler).update(lengths)
    model = compiled(model, ctx.job.model.compile)
    update = ctx.updater(
        model,
        optimizer,
        scheduler=scheduler,
        scaler=scaler,
        accumulate=training.accumulate,
        clip_norm=training.clip_norm,
    )

    def loss_of(batch: Any) -> torch.Tensor:
        output = objective.outputs(model, batch)
        if training.task.kind.endswith("classification"):
            check_outputs(ctx.job.model, output.shape[-1], ctx.num_classes or 0)
        return objective.loss(output, batch)

    for _ in ctx.epochs():
        if patience is not None and patience.over:
            if ctx.is_main:
                ctx.warn(patience.over)
            return
        model.train()
        for batch in ctx.batches("train"):
            update(batch, loss_of)
        found = {"learning_rate": scheduler.get_last_lr()[0]}  # as the epoch's last update left it
        if ctx.num_batches("validation"):
            seen = watches(training, num_outputs, ctx.device)
            found |= evaluate(ctx, averaged.module if averaged else model, objective, seen)
        ctx.log(**found)
        if patience is not None:
            patience.look(found)
            patience.over = ctx.all_gather(patience.over)[0]  # all ranks alike, whatever rounding does


def made_model(ctx: TrainContext) -> torch.nn.Module:
    """As the job describes it, on the device.

    Raises:
        ConfigError: it cannot be made so.
    """
    settings = ctx.job.model
    model = build_model(settings, ctx.num_classes)
    if settings.weights is not None and not ctx.resumed:
        told = load_weights(model, settings.weights)
        if ctx.rank == 0:
            ctx.warn(f"model.weights: {told}")
    if ctx.job.training.sync_batchnorm and ctx.world_size > 1:
        from timm.layers import convert_sync_batchnorm  # torch's forgets the activations inside timm's BatchNorm

        model = convert_sync_batchnorm(model)
    freeze(model, settings.freeze)
    if settings.gradient_checkpointing:
        if not hasattr(model, "set_grad_checkpointing"):
            raise ConfigError(
                f"model.gradient_checkpointing: {settings.name!r} has no `set_grad_checkpointing`, as timm's models do"
            )
        made(model.set_grad_checkpointing, "model.gradient_checkpointing", settings.name, True)
    model = model.to(ctx.device)
    if settings.channels_last:
        made(model.to, "model.channels_last", settings.name, memory_format=torch.channels_last)
    return model


def compiled(model: torch.nn.Module, how: bool | str) -> torch.nn.Module:
    """
    Raises:
        ConfigError: torch has no such backend.
    """
    if how is False:
        return model
    known = torch.compiler.list_backends(exclude_tags=())
    if how is not True and how not in known:
        raise ConfigError(
            f"model.compile: torch has no backend {how!r}{nearest(how, known)}; there are {', '.join(known)}"
        )
    found: torch.nn.Module = torch.compile(model, **({} if how is True else {"backend": how}))
    return found


def bare(model: torch.nn.Module) -> torch.nn.Module:
    """Without DDP: there is nothing to exchange."""
    for each in (model, getattr(model, "_orig_mod", None)):
        if isinstance(each, DistributedDataParallel):
            inner: torch.nn.Module = each.module
            return inner
    return model


@contextlib.contextmanager
def switched(settings: Backends, device: torch.device) -> Iterator[None]:
    """torch's switches meanwhile; those of CUDA are left alone elsewhere."""
    cudnn, before = torch.backends.cudnn, torch.get_float32_matmul_precision()
    others = cudnn.allow_tf32, cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(settings.deterministic)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if settings.tf32 else "highest")
        cudnn.allow_tf32, cudnn.benchmark = settings.tf32, settings.cudnn_benchmark
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(others[2])
        if device.type == "cuda":
            torch.set_float32_matmul_precision(before)
            cudnn.allow_tf32, cudnn.benchmark = others[:2]


@torch.no_grad()
def evaluate(
    ctx: TrainContext, model: torch.nn.Module, objective: Objective, seen: Sequence[Watch] = ()
) -> dict[str, float]:
    """Mean loss, and what others have seen, over the whole validation split, each sample once."""
    model = bare(model)
    model.eval()
    loss = count = 0.0
    for batch in ctx.batches("validation"):
        with ctx.autocast():
            output = objective.outputs(model, batch)
        loss += objective.validation_loss(output.float(), batch).item() * batch.size
        count += batch.size
        answers = objective.answers(output, batch) if seen else ()
        for each in seen:
            each.update(*answers)
    loss, count = ctx.sum_over_ranks(loss, count)
    figures = {name: value for each in seen for name, value in each.result(ctx).items()}
    return {"validation_loss": loss / max(count, 1), **{f"validation_{name}": each for name, each in figures.items()}}
