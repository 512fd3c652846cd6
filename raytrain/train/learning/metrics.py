"""Figures of the validation split: over all of its samples, whichever rank had them."""

from __future__ import annotations

import re
from typing import Any, Protocol

import torch

from raytrain.config.learning import Named
from raytrain.config.training import OF_CLASSES, Kind, Training
from raytrain.errors import ConfigError, TrainingError, one_line
from raytrain.train.learning.named import found, made, parameters_of

METRICS = "training.metrics"
DEFAULTS = {
    "multi_label": ("MultilabelF1Score",),
    "regression": ("MeanAbsoluteError",),
    "segmentation": ("MulticlassJaccardIndex",),
}
KINDS = ("Multiclass", "Multilabel", "Binary")


class Watch(Protocol):
    """What looks at every batch of an evaluation, as Objective.answers gives it.

    Attributes:
        name: of its figure.
    """

    name: str

    def update(self, output: torch.Tensor, target: torch.Tensor) -> None: ...

    def result(self, ctx: Any) -> dict[str, float]:
        """Figures, the same on all ranks; called once, by all of them together."""
        ...


def check_metrics(training: Training) -> None:
    """
    Raises:
        ConfigError: there is none of a name, or two would be logged alike.
    """
    names = ["loss", *(["accuracy"] if training.task.kind in OF_CLASSES else [])]
    for each in training.metrics or ():
        _metric_class(each.name)
        names.append(log_name(each.name))
        if names.count(names[-1]) > 1:
            raise ConfigError(f"{METRICS}: two are logged as validation_{names[-1]}; leave one out")


def log_name(name: str) -> str:
    """Of a class: `MulticlassF1Score` is `f1_score`."""
    last = re.split(r"[:.]", name)[-1]
    for kind in KINDS:
        last = last.removeprefix(kind)
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", last).lower()


def watches(training: Training, num_classes: int | None, device: torch.device) -> list[Watch]:
    """The metrics of a job, or its task's; accuracy always, where there are classes.

    Raises:
        ConfigError: one cannot be made.
    """
    check_metrics(training)
    found_: list[Watch] = [Accuracy()] if training.task.kind in OF_CLASSES else []
    named = training.metrics
    if named is None:
        named = [Named(name=name) for name in DEFAULTS.get(training.task.kind, ())]
    return [*found_, *(OfTorchmetrics(each, training.task.kind, num_classes, device) for each in named)]


class Accuracy:
    """Of elements, the share whose largest output is the target's."""

    name = "accuracy"

    def __init__(self) -> None:
        self._right = self._total = 0

    def update(self, output: torch.Tensor, target: torch.Tensor) -> None:
        self._right += int((output.argmax(-1) == target).sum())
        self._total += target.numel()

    def result(self, ctx: Any) -> dict[str, float]:
        right, total = ctx.sum_over_ranks(self._right, self._total)
        return {"accuracy": right / max(total, 1)}


class OfTorchmetrics:
    """One that torchmetrics has, or that has its form. It gathers what the ranks have seen by itself."""

    def __init__(self, named: Named, kind: Kind, num_classes: int | None, device: torch.device):
        name = self._named = named.name
        self.name = log_name(name)
        make = _metric_class(name)
        takes = parameters_of(make)
        filled: dict[str, Any] = {}
        if "task" in takes:
            filled["task"] = "multilabel" if kind == "multi_label" else "multiclass"
        if num_classes is not None and kind != "regression":
            number = "num_labels" if kind == "multi_label" else "num_classes"
            filled |= {number: num_classes} if number in takes else {}
        self._metric = made(make, METRICS, name, **{**filled, **named.options})
        if not all(hasattr(self._metric, method) for method in ("update", "compute", "to")):
            raise ConfigError(f"{METRICS}: {name!r} must be one of torchmetrics, not {type(self._metric).__name__}")
        self._metric = self._metric.to(device)

    def update(self, output: torch.Tensor, target: torch.Tensor) -> None:
        try:
            self._metric.update(output, target)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise TrainingError(f"{METRICS}: {self._named} does not fit: {one_line(error, 200)}") from None

    def result(self, ctx: Any) -> dict[str, float]:
        self._metric.dist_sync_fn = lambda tensor, group=None: _gathered(ctx, tensor)
        try:
            found_ = self._metric.compute()
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise TrainingError(f"{METRICS}: {self._named} cannot be computed: {one_line(error, 200)}") from None
        if not isinstance(found_, torch.Tensor) or found_.numel() != 1:
            raise TrainingError(f"{METRICS}: {self._named} gives no single number; an option such as average may help")
        return {self.name: float(found_)}


def _gathered(ctx: Any, tensor: torch.Tensor) -> list[torch.Tensor]:
    """Of all ranks. torchmetrics' own ends the process where a rank has seen nothing, and its stand-in for that has
    another shape and dtype than what the others have."""
    everyone: list[torch.Tensor] = ctx.all_gather(tensor)
    return [each for each in everyone if each.numel()] or everyone


def _metric_class(name: str) -> Any:
    import torchmetrics
    import torchmetrics.classification

    kind = torchmetrics.Metric
    places = (
        ("torchmetrics", torchmetrics, object),
        ("torchmetrics.classification", torchmetrics.classification, kind),
    )
    return found(name, METRICS, *places)
