"""A torch module as it predicts: built from its file, called with its arguments in order, asked for its output."""

from __future__ import annotations

import inspect
import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from raytrain.errors import ConfigError, nearest
from raytrain.infer.contract import ModelFile
from raytrain.train.models import build_model

SEED = 0
LOGITS = "logits"


def built(file: ModelFile) -> torch.nn.Module:
    """The module of a file, fp32 on the CPU, for prediction.

    Raises:
        ConfigError: it cannot be built here.
    """
    assert file.kind == "module" and file.model is not None, file.kind
    module = seeded(file)
    if file.data:
        module.load_state_dict(torch.load(io.BytesIO(file.data), map_location="cpu", weights_only=True))
    return module.eval().requires_grad_(False)


def seeded(file: ModelFile) -> torch.nn.Module:
    """With the random weights that it has everywhere."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return build_model(file.model, file.num_classes)


def check_arguments(module: torch.nn.Module, arguments: Sequence[str], name: str) -> None:
    """
    Raises:
        ConfigError: the module takes none of that name.
    """
    parameters = inspect.signature(module.forward).parameters
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        return
    for argument in arguments:
        if argument and argument not in parameters:
            raise ConfigError(
                f"model.inputs: model {name!r} takes no argument {argument!r}{nearest(argument, parameters)}; it takes "
                f"{', '.join(parameters) or 'none'}"
            )


class Predictor(torch.nn.Module):
    """
    Args:
        arguments: as in ModelFile.
        embeddings: as well; of a timm model, computed in the same pass: its head, which is run twice, is small.

    Raises:
        ConfigError: embeddings are asked for and the module has none.
    """

    def __init__(self, module: torch.nn.Module, arguments: Sequence[str] = ("",), embeddings: bool = False):
        super().__init__()
        self.module, self._arguments, self._embeddings = module, tuple(arguments), embeddings
        if embeddings and not _has_embeddings(module):
            raise ConfigError(
                f"model.embeddings: {type(module).__name__} has no forward_features and forward_head(pre_logits), as "
                "timm's models have; leave it out, or return them from a module of your own with model.task: raw"
            )

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(output,) or (output, embeddings)."""
        if self._embeddings:
            features = self.module.forward_features(*inputs)
            return self.module.forward_head(features), self.module.forward_head(features, pre_logits=True).flatten(1)
        if self._arguments == ("",):
            return (output_of(self.module(*inputs)),)
        return (output_of(self.module(**dict(zip(self._arguments, inputs, strict=True)))),)


class First(Predictor):
    """Returns its output alone."""

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(*inputs)[0]


def _has_embeddings(module: torch.nn.Module) -> bool:
    head = getattr(module, "forward_head", None)
    return (
        callable(getattr(module, "forward_features", None))
        and callable(head)
        and "pre_logits" in inspect.signature(head).parameters
    )


def output_of(returned: Any) -> torch.Tensor:
    """Of several outputs the one called `logits`, else the first.

    Raises:
        ConfigError: that is no tensor.
    """
    if isinstance(returned, Mapping):
        found = returned[LOGITS] if LOGITS in returned else next(iter(returned.values()), None)
    elif isinstance(getattr(returned, LOGITS, None), torch.Tensor):
        found = returned.logits
    elif isinstance(returned, (tuple, list)):
        found = returned[0] if returned else None
    else:
        found = returned
    if not isinstance(found, torch.Tensor):
        raise ConfigError(
            f"the model returns {type(returned).__name__}: it must return a tensor, or several with `logits` or the "
            "prediction first"
        )
    return found
