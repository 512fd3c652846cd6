"""What the sections `model` and `training` say of how a model learns."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from raytrain.config.section import PositiveInt, Section, Share, is_smaller_better

NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class Brief(Section):
    """A text alone stands for its first key."""

    @model_validator(mode="before")
    @classmethod
    def _by_first(cls, value: Any) -> Any:
        return {next(iter(cls.model_fields)): value} if isinstance(value, str) else value


class Named(Brief):
    """By its name alone where it has no options."""

    name: str = Field(description="the name, or `package.module:callable`")
    options: dict[str, Any] = Field(default_factory=dict, description="passed to it")


class Weights(Brief):
    """What the model begins with; by its path alone where everything must fit."""

    path: str = Field(description="safetensors, or what torch.save wrote of a state_dict; local, or s3://")
    skip: list[str] = Field(
        default_factory=list, description="patterns of names that keep their first values, such as `head.*`"
    )


class Model(Named):
    """By its name alone where it has no options: `model: resnet18`."""

    name: str = Field(description="a timm model name, or `package.module:callable` that returns a torch module")
    options: dict[str, Any] = Field(default_factory=dict, description="passed to the model's constructor")
    weights: Weights | None = Field(None, description="file of weights to begin with")
    freeze: list[str] = Field(
        default_factory=list,
        description="patterns of parameter names, such as `blocks.*`, that are not trained; BatchNorm of which all "
        "parameters are frozen keeps its statistics",
    )
    compile: bool | str = Field(False, description="with torch.compile; true, or the name of one of its backends")
    channels_last: bool = Field(False, description="weights and images of four axes lie channels last")
    gradient_checkpointing: bool = Field(
        False, description="activations are computed again in the backward pass; models with timm's switch for it"
    )


class Group(Section):
    """Parameters that are optimized otherwise than the others."""

    match: str = Field(description="pattern of their names: `*` is anything, `?` a character")
    lr: Positive | None = Field(None, description="in place of the optimizer's")
    weight_decay: NonNegative | None = Field(None, description="in place of the optimizer's, of one axis or more")


class Optimizer(Section):
    """What makes an update of a gradient."""

    name: str = Field(
        "sgd", description="sgd, adamw, any class of torch.optim, a name of timm's, or `package.module:callable`"
    )
    lr: Positive = Field(0.001, description="learning rate at the schedule's peak")
    momentum: Share = Field(0.9, description="of `sgd`")
    weight_decay: NonNegative = Field(0.0, description="torch's; biases and norms (parameters of one axis) have none")
    options: dict[str, Any] = Field(default_factory=dict, description="passed to the optimizer")
    groups: list[Group] = Field(default_factory=list, description="parameters with values of their own")


class Schedule(Section):
    """The learning rate by update, as a factor of `lr`."""

    name: str = Field(
        "constant",
        description="`constant`: 1; `cosine`: `final_share + (1 - final_share) * (1 + cos(pi * p)) / 2` for p from 0 "
        "to 1 of what is left; a class of torch.optim.lr_scheduler or timm.scheduler, or `package.module:callable`",
    )
    warmup_share: Share = Field(
        0.0, description="share of all updates in which it grows linearly to 1; of `constant` and `cosine`"
    )
    final_share: Share = Field(0.0, description="learning rate at the end as a share of the peak, of `cosine`")
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="passed to a class or callable, which is told the number of updates as `T_max`, `total_steps` or "
        "`t_initial` where it has one of these and the options do not",
    )


class Ema(Section):
    """After each update the average is `decay * average + (1 - decay) * weights`."""

    decay: Share = Field(0.999, description="of an update")


class EarlyStopping(Section):
    """Looked at after every epoch."""

    metric: str = Field("validation_loss", description="name of a figure that the loop logs")
    mode: Literal["max", "min"] | None = Field(None, description="default: min for a metric whose name ends in loss")
    patience: PositiveInt = Field(3, description="epochs without a better one after which training ends")
    min_delta: NonNegative = Field(0.0, description="by how much it must be better")

    def is_better(self, value: float, best: float | None) -> bool:
        if best is None or value != value:  # the first, but for one that is no number
            return value == value
        gain = best - value if is_smaller_better(self.mode, self.metric) else value - best
        return gain > self.min_delta


class Backends(Section):
    """Switches of torch, while the job's own loop runs."""

    tf32: bool = Field(True, description="CUDA multiplies float32 matrices in TF32")
    cudnn_benchmark: bool = Field(False, description="cuDNN tries which algorithm is the fastest for a shape")
    deterministic: bool = Field(
        False,
        description="only algorithms that always give the same; slower, and CUDA wants "
        "CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment",
    )
