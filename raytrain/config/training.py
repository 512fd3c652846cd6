"""The sections `model` and `training`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from raytrain.config.section import ObjectPath, PositiveInt, Section, Share


class Model(Section):
    """By its name alone where it has no options: `model: resnet18`."""

    name: str = Field(description="a timm model name, or `package.module:callable` that returns a torch module")
    options: dict[str, Any] = Field(default_factory=dict, description="passed to the model's constructor")

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class Optimizer(Section):
    """What makes an update of a gradient."""

    name: Literal["sgd", "adamw"] = Field("sgd", description="torch's")
    lr: Annotated[float, Field(gt=0)] = Field(0.001, description="learning rate at the schedule's peak")
    momentum: Share = Field(0.9, description="of `sgd`")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        0.0, description="torch's; biases and norms (parameters of one axis) have none"
    )


class Schedule(Section):
    """The learning rate by update, as a factor of `lr`."""

    name: Literal["constant", "cosine"] = Field(
        "constant",
        description="1, or `final_share + (1 - final_share) * (1 + cos(pi * p)) / 2` for p from 0 to 1 of what is left",
    )
    warmup_share: Share = Field(0.0, description="share of all updates in which it grows linearly to 1")
    final_share: Share = Field(0.0, description="learning rate at the end as a share of the peak")


class CheckpointPolicy(Section):
    """When the state of the run is written down, and what is kept of it."""

    every_steps: PositiveInt | None = Field(
        None, description="batches a rank; beside the one at the end of every epoch"
    )
    keep: PositiveInt = Field(2, description="of the latest, over all attempts")
    best: str | None = Field("validation_accuracy", description="metric whose best checkpoint is kept beside them")
    best_is: Literal["max", "min"] | None = Field(None, description="default: min for a metric whose name ends in loss")

    def score(self, metrics: Mapping[str, float | None]) -> float | None:
        """What the best is chosen by, more is better; None where the metric was not logged."""
        value = None if self.best is None else metrics.get(self.best)
        if value is None:
            return None
        return -value if self._smaller else value

    @property
    def goal(self) -> str | None:
        """Scores of one goal can be compared."""
        return self.best and f"{'min' if self._smaller else 'max'} {self.best}"

    @property
    def _smaller(self) -> bool:
        return self.best_is == "min" or (self.best_is is None and (self.best or "").endswith("loss"))


class Task(Section):
    """What is learnt from which field."""

    input: str = Field("image", description="field that the model is given")
    target: str = Field("label", description="field that it predicts")


class Training(Section):
    """What is learnt, how, and for how long."""

    task: Task = Task()
    loop: ObjectPath | None = Field(
        None, description="called with a TrainContext on every rank; default: supervised image classification"
    )
    epochs: PositiveInt | None = Field(None, description="passes over the training data; this or `steps`")
    steps: PositiveInt | None = Field(None, description="batches a rank, over the whole run; this or `epochs`")
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="that the model computes in (autocast; `fp16` with a scaled loss)"
    )
    accumulate: PositiveInt = Field(1, description="batches whose gradients are summed before a step")
    clip_norm: Annotated[float, Field(gt=0)] | None = Field(
        None, description="a gradient of a larger norm is scaled down to it"
    )
    label_smoothing: Share = Field(
        0.0, description="x: a target is 1 - x of its class, and x spread evenly over all classes"
    )
    checkpoint: CheckpointPolicy = CheckpointPolicy()
    max_failures: Annotated[int, Field(ge=0)] = Field(3, description="restarts after a lost rank or host")
    hang_timeout_s: Annotated[float, Field(gt=0)] | None = Field(
        1800.0,
        description="seconds in which no rank does a batch though there are some to do (ten times as many before its "
        "first); then all begin anew from the last checkpoint, and the run's folder has what they were at; null: never",
    )
    on_nan: Literal["stop", "skip"] = Field(
        "stop", description="a loss that is no finite number ends the run, or its optimizer step is left out"
    )
    sync_batchnorm: bool = Field(False, description="BatchNorm over the batches of all ranks together; needs GPUs")
    threads: PositiveInt | None = Field(None, description="torch threads of a CPU rank; default: its host's CPUs")

    @model_validator(mode="after")
    def _one_length(self) -> Training:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of `epochs` and `steps`")
        return self
