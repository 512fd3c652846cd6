"""Optimizers and schedules by name."""

from __future__ import annotations

import math
from typing import Any

import torch

from raytrain.config.learning import Optimizer, Schedule
from raytrain.errors import ConfigError, nearest
from raytrain.train.learning.named import classes_of, found, made, matched, parameters_of

OPTIMIZER, SCHEDULE = "training.optimizer", "training.schedule"
UPDATES = ("T_max", "total_steps", "t_initial")  # what schedules call the number of updates


def check_optimizer(settings: Optimizer) -> None:
    """
    Raises:
        ConfigError: there is none of this name.
    """
    _optimizer_class(settings.name)


def check_schedule(settings: Schedule) -> None:
    """
    Raises:
        ConfigError: there is none of this name, or it wants a metric.
    """
    if settings.name not in ("constant", "cosine"):
        _schedule_class(settings.name)


def build_optimizer(model: torch.nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """Of the parameters that are trained. Weight decay leaves biases and norms (parameters of one axis) alone, but in
    groups that say a decay of their own.

    Raises:
        ConfigError: see `check_optimizer`; options that it does not take; a group that matches nothing.
    """
    named = {name: each for name, each in model.named_parameters() if each.requires_grad}
    if not named:
        raise ConfigError("model.freeze: no parameter is left to be trained")
    of = matched([each.match for each in settings.groups], named, f"{OPTIMIZER}.groups")
    own = {each.match: each for each in settings.groups}
    groups: dict[tuple[str | None, bool], dict[str, Any]] = {}
    for name, parameter in named.items():
        pattern, plain = of.get(name), parameter.ndim <= 1
        group = own[pattern] if pattern else None
        decay = 0.0 if plain else settings.weight_decay
        if group is not None and group.weight_decay is not None:
            decay = group.weight_decay
        made_of = groups.setdefault((pattern, plain), {"params": [], "weight_decay": decay})
        if group is not None and group.lr is not None:
            made_of["lr"] = group.lr
        made_of["params"].append(parameter)
    ordered = sorted(
        groups.items(), key=lambda each: (list(own).index(each[0][0]) + 1 if each[0][0] else 0, each[0][1])
    )
    options = {"momentum": settings.momentum} if settings.name == "sgd" else {}
    if given_twice := {"lr", "weight_decay"} & settings.options.keys():
        raise ConfigError(f"{OPTIMIZER}.options: {min(given_twice)} is a key of {OPTIMIZER} itself")
    make = _optimizer_class(settings.name)
    given = [group for _, group in ordered]
    optimizer = made(make, OPTIMIZER, settings.name, given, lr=settings.lr, **{**options, **settings.options})
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(
            f"{OPTIMIZER}: {settings.name!r} must return a torch optimizer, not {type(optimizer).__name__}"
        )
    return optimizer


def _optimizer_class(name: str) -> Any:
    plain = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
    if name in plain:
        return plain[name]
    if name == "LBFGS":
        raise ConfigError(f"{OPTIMIZER}: LBFGS computes the loss again within a step, which a job file cannot have")
    if name[:1].islower() and ":" not in name:
        import timm.optim

        known = timm.optim.list_optimizers()
        if name not in known:
            near = nearest(name, [*plain, *known, *classes_of(torch.optim, torch.optim.Optimizer)])
            raise ConfigError(
                f"{OPTIMIZER}: there is no {name!r}{near}; see torch.optim and timm.optim.list_optimizers()"
            )
        return lambda groups, lr, **options: timm.optim.create_optimizer_v2(groups, name, lr=lr, **options)
    return found(name, OPTIMIZER, ("torch.optim", torch.optim, torch.optim.Optimizer))


def build_scheduler(optimizer: torch.optim.Optimizer, settings: Schedule, total_updates: int) -> Any:
    """The learning rate by optimizer step.

    Raises:
        ConfigError: see `check_schedule`; options that it does not take.
    """
    if settings.name in ("constant", "cosine"):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(settings, step, total_updates))
    make, options = _schedule_class(settings.name), dict(settings.options)
    takes = parameters_of(make)
    if not {*UPDATES, "epochs"} & options.keys():
        names = (*UPDATES, "total_iters") if settings.name == "PolynomialLR" else UPDATES
        options |= {name: max(total_updates, 1) for name in names if name in takes}
    if "t_in_epochs" in takes:
        options.setdefault("t_in_epochs", False)
    schedule = made(make, SCHEDULE, settings.name, optimizer, **options)
    return ByUpdate(schedule, optimizer) if hasattr(schedule, "step_update") else schedule


def _schedule_class(name: str) -> Any:
    import timm.scheduler
    from timm.scheduler.scheduler import Scheduler

    theirs = torch.optim.lr_scheduler
    kind = found(
        name,
        SCHEDULE,
        ("torch.optim.lr_scheduler", theirs, theirs.LRScheduler),
        ("timm.scheduler", timm.scheduler, Scheduler),
    )
    if "Plateau" in name:
        raise ConfigError(f"{SCHEDULE}: {name} wants a metric at every step; a schedule here goes by updates")
    return kind


def lengths_of(schedule: Any) -> dict[str, Any]:
    """What a schedule knows of how long the run is. A checkpoint would bring back what was known when it was made."""
    names = (*UPDATES, "total_iters", "_schedule_phases")
    return {name: value for name, value in vars(schedule).items() if name in names}


class ByUpdate:
    """One of timm's, moved as torch's are."""

    def __init__(self, schedule: Any, optimizer: torch.optim.Optimizer):
        self._schedule, self._optimizer, self._done = schedule, optimizer, 0
        schedule.step_update(0)

    def step(self) -> None:
        self._done += 1
        self._schedule.step_update(self._done)

    def get_last_lr(self) -> list[float]:
        return [float(group["lr"]) for group in self._optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self._done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._done = int(state["updates"])
        self._schedule.step_update(self._done)


def lr_factor(settings: Schedule, step: int, total_steps: int) -> float:
    """Learning rate at `step` of `total_steps` as a share of the peak: linear warm-up, then flat or half a cosine."""
    warmup = round(settings.warmup_share * total_steps)
    if step < warmup:
        return (step + 1) / warmup
    if settings.name == "constant":
        return 1.0
    progress = min((step - warmup) / max(total_steps - warmup, 1), 1.0)
    return settings.final_share + (1 - settings.final_share) * 0.5 * (1 + math.cos(math.pi * progress))
