"""What a model computes for a sample, counted without memory for its weights."""

from __future__ import annotations

from raytrain.config import Model
from raytrain.errors import ConfigError, named
from raytrain.train.models import build_model

BACKWARD = 2  # times the forward pass: for the gradients of the weights, and of what comes in
SAMPLES = 2  # of the batch that is counted; BatchNorm takes no single one


def training_flops(model: Model, height: int, width: int, channels: int) -> float:
    """Floating-point operations of one sample, forward and backward: two for every multiplication and addition.

    The backward pass is taken as twice the forward pass, because torch counts too much of grouped convolutions there.

    Raises:
        ConfigError: the model cannot be built, or does not take such images.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    if "pretrained" in model.options:  # what the weights are does not matter, and they would be downloaded
        model = model.model_copy(update={"options": {**model.options, "pretrained": False}})
    try:
        with torch.device("meta"):
            module = build_model(model)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(torch.empty(SAMPLES, channels, height, width, device="meta"))
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a model's own code raises
        raise ConfigError(
            f"the operations of model {model.name!r} cannot be counted for images of {height}x{width}: {named(error)}"
        ) from None
    return counter.get_total_flops() / SAMPLES * (1 + BACKWARD)
