"""The section `training`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from raytrain.config.learning import Backends, EarlyStopping, Ema, Named, Optimizer, Schedule
from raytrain.config.section import ObjectPath, PositiveInt, Section, Share, is_smaller_better


class CheckpointPolicy(Section):
    """When the state of the run is written down, and what is kept of it."""

    every_steps: PositiveInt | None = Field(
        None, description="batches a rank; beside the one at the end of every epoch"
    )
    keep: PositiveInt = Field(2, description="of the latest, over all attempts")
    best: str | None = Field(
        "validation_accuracy",
        description="metric whose best checkpoint is kept beside them; of multi_label and regression validation_loss",
    )
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
        return is_smaller_better(self.best_is, self.best or "")


Kind = Literal[
    "classification", "multi_label", "regression", "segmentation", "token_classification", "sequence_classification"
]
OF_ONE = ("classification", "sequence_classification")  # class a sample
OF_ELEMENTS = ("segmentation", "token_classification")
OF_TOKENS = ("sequence_classification", "token_classification")
OF_CLASSES = (*OF_ONE, *OF_ELEMENTS)


class Task(Section):
    """What is learnt from which field."""

    kind: Kind = Field("classification", description="what is predicted of a sample; see docs/tasks.md")
    input: str = Field("image", description="field that the model is given")
    target: str = Field("label", description="field that it predicts")
    ignore: int | None = Field(
        None, description="value of the target that is no class: left out of loss and metrics, such as 255 of a mask"
    )


class Training(Section):
    """What is learnt, how, and for how long."""

    task: Task = Task()
    loop: ObjectPath | None = Field(
        None, description="called with a TrainContext on every rank; default: supervised image classification"
    )
    epochs: PositiveInt | None = Field(None, description="passes over the training data; this or `steps`")
    steps: PositiveInt | None = Field(None, description="batches a rank, over the whole run; this or `epochs`")
    loss: Named | None = Field(
        None, description="a class of torch.nn, or `package.module:callable`, of (output, target); default: the task's"
    )
    metrics: list[Named] | None = Field(
        None,
        description="classes of torchmetrics, or `package.module:callable` that returns one, logged as `validation_` "
        "and their name; default: the task's",
    )
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    ema: Ema | None = Field(
        None, description="an average of the weights, which is evaluated and exported in their place"
    )
    early_stopping: EarlyStopping | None = Field(None, description="an end before `epochs`, when nothing improves")
    backends: Backends = Backends()
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
    def _best_by_task(self) -> Training:
        """Where nobody says what the best checkpoint is chosen by."""
        if self.task.kind in ("multi_label", "regression") and "best" not in self.checkpoint.model_fields_set:
            policy = self.checkpoint.model_copy(update={"best": "validation_loss"})
            object.__setattr__(self, "checkpoint", policy)
        return self

    @model_validator(mode="after")
    def _one_length(self) -> Training:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of `epochs` and `steps`")
        return self
