"""What a model begins with, and what of it is trained."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatch

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from raytrain.config.learning import Weights
from raytrain.data.sources.files import filesystem_of
from raytrain.errors import ConfigError, one_line
from raytrain.train.learning.named import matched
from raytrain.train.learning.state import misfit, read_state

KEY = "model.weights"


def load_weights(model: torch.nn.Module, settings: Weights) -> str:
    """Give a model the weights of a file. Returns what was taken, in a line.

    Raises:
        ConfigError: the file cannot be read, or does not fit but for what may keep its first values.
        CheckpointError: it holds something else, or would execute code.
    """
    state, own = read_state(_read(settings.path), settings.path), model.state_dict()
    for pattern in settings.skip:
        if not any(fnmatch(name, pattern) for name in {**own, **state}):
            raise ConfigError(f"{KEY}.skip: no name matches {pattern!r}")

    def is_skipped(name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in settings.skip)

    kept = {name: each for name, each in own.items() if is_skipped(name)}
    state = {name: each for name, each in state.items() if not is_skipped(name)} | kept
    if found := misfit(model, state):
        raise ConfigError(
            f"{KEY}: {settings.path} does not fit this model: {found.told()}; {KEY}.skip names what keeps its first "
            "values"
        )
    model.load_state_dict(state)
    rest = f", {len(kept)} keep their first values" if kept else ""
    return f"{len(own) - len(kept)} of {len(own)} tensors are from {settings.path}{rest}"


def _read(path: str) -> bytes:
    files, at = filesystem_of(path)
    try:
        with files.open_input_file(at) as file:
            data: bytes = file.read()
    except OSError as error:
        raise ConfigError(f"{KEY}: cannot read {path}: {one_line(error, 200)}") from None
    return data


def freeze(model: torch.nn.Module, patterns: Iterable[str]) -> None:
    """Parameters that match get no gradient; BatchNorm with no other ones keeps its statistics.

    Raises:
        ConfigError: a pattern matches nothing.
    """
    parameters = dict(model.named_parameters())
    for pattern in dict.fromkeys(patterns):
        for name in matched([pattern], parameters, "model.freeze"):
            parameters[name].requires_grad_(False)
    for part in model.modules():
        own = list(part.parameters(recurse=False))
        if isinstance(part, _BatchNorm) and own and not any(each.requires_grad for each in own):
            part.eval()
            part.train = lambda mode=True, part=part: part  # type: ignore[assignment,misc]
