"""What a model computes for a sample, counted without memory for its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raytrain.config.learning import Model
from raytrain.errors import ConfigError, named
from raytrain.train.models import build_model

BACKWARD = 2  # times the forward pass: for the gradients of the weights, and of what comes in
SAMPLES = 2  # of the batch that is counted; BatchNorm takes no single one


@dataclass(frozen=True)
class Work:
    """What training on samples takes.

    Attributes:
        flops: floating-point operations of one sample: two for every multiplication and addition.
        convolution_flops: those of them in convolutions.
        calls: of torch's operators for a batch, each of which starts work on the device: views do not.
    """

    flops: float
    convolution_flops: float
    calls: int


def training_work(model: Model, height: int, width: int, channels: int) -> Work:
    """Counted of the forward pass; the backward pass is taken as twice that, because torch counts too much of grouped
    convolutions there.

    Raises:
        ConfigError: the model cannot be built, or does not take such images.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import FlopCounterMode

    class Calls(TorchDispatchMode):
        number = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.number += not _is_view(func)
            return func(*args, **(kwargs or {}))

    if "pretrained" in model.options:  # what the weights are does not matter, and they would be downloaded
        model = model.model_copy(update={"options": {**model.options, "pretrained": False}})
    try:
        with torch.device("meta"):
            module = build_model(model)
            batch = torch.empty(SAMPLES, channels, height, width)
        with torch.no_grad():
            with FlopCounterMode(display=False) as counted:
                module(batch)
            with Calls() as calls:
                module(batch)
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a model's own code raises
        raise ConfigError(
            f"the operations of model {model.name!r} cannot be counted for images of {height}x{width}: {named(error)}"
        ) from None
    operations = counted.get_flop_counts().get("Global", {})
    convolutions = sum(number for operator, number in operations.items() if "convolution" in str(operator))
    scale = (1 + BACKWARD) / SAMPLES
    return Work(sum(operations.values()) * scale, convolutions * scale, calls.number * (1 + BACKWARD))


def _is_view(operator: Any) -> bool:
    """Whether what it returns is what it was given, seen otherwise."""
    if operator.name() == "aten::_unsafe_view":  # a view in all but its schema
        return True
    return getattr(operator, "is_view", False)  # operators that take functions do not say
