"""States of modules: read without executing code, and fitted into a module or refused in one line."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from raytrain.errors import CheckpointError, one_line

WITHIN = ("state_dict", "model_state_dict", "model")  # keys under which others' files keep it
BEFORE = ("module.", "_orig_mod.")  # what DDP and torch.compile put in front of every name
NAMED = 3  # that a message lists

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Misfit:
    """What keeps a state from fitting a module.

    Attributes:
        missing: names that the module has and the state lacks.
        unexpected: the other way round.
        sizes: by name, in the state and in the module.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    sizes: dict[str, tuple[torch.Size, torch.Size]]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.sizes)

    @property
    def first_axis(self) -> int | None:
        """Of the tensors whose sizes differ, in the state, where that is all that differs and they agree: the number
        of classes of a model that was built for another one."""
        found = {state[0] for state, _ in self.sizes.values() if state}
        return found.pop() if len(found) == 1 and not self.missing and not self.unexpected else None

    def told(self) -> str:
        sizes = [f"{name}: {_by(state)} and not {_by(own)}" for name, (state, own) in self.sizes.items()]
        parts = [
            _some(self.missing, "of the model's tensors are missing"),
            _some(self.unexpected, "are not the model's"),
            _some(sizes, "have another size"),
        ]
        return "; ".join(part for part in parts if part)


def _by(size: torch.Size) -> str:
    return "x".join(map(str, size)) or "one number"


def _some(names: tuple[str, ...] | list[str], what: str) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{len(names)} {what} ({', '.join(names[:NAMED])}{more})" if names else ""


def misfit(module: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> Misfit:
    own = {name: value for name, value in module.state_dict().items() if isinstance(value, torch.Tensor)}
    return Misfit(
        tuple(name for name in own if name not in state),
        tuple(name for name in state if name not in own),
        {n: (state[n].shape, own[n].shape) for n in own if n in state and state[n].shape != own[n].shape},
    )


def fit(module: torch.nn.Module, state: Mapping[str, torch.Tensor], told: str, name: str) -> None:
    """Give a module a state; `told` says where it is from, `name` which model it is.

    Raises:
        CheckpointError: it does not fit.
    """
    found = misfit(module, state)
    if found:
        raise CheckpointError(
            f"{told} does not fit model {name!r}: {found.told()}; give model.name and model.options as it was trained"
        )
    module.load_state_dict(state)


def read_state(data: bytes, told: str) -> State:
    """The state in a file of `torch.save`, or of safetensors where `told`, its path, ends so.

    Raises:
        CheckpointError: it holds anything else, or would execute code.
    """
    tree = _of_safetensors(data, told) if told.endswith(".safetensors") else _of_torch(data, told)
    if isinstance(tree, list):
        raise CheckpointError(f"{told} holds the states of {len(tree)} modules; save the one to predict with by itself")
    for key in WITHIN:
        if isinstance(tree, Mapping) and isinstance(tree.get(key), Mapping):
            tree = tree[key]
            break
    if not isinstance(tree, Mapping) or not tree or not all(isinstance(v, torch.Tensor) for v in tree.values()):
        raise CheckpointError(
            f"{told} holds no state of a module: names and their tensors, by themselves or below one of "
            f"{', '.join(WITHIN)}"
        )
    return _without_prefixes({str(name): value for name, value in tree.items()})


def _of_safetensors(data: bytes, told: str) -> Any:
    from safetensors.torch import load

    try:
        return load(data)
    except Exception as error:  # noqa: BLE001 - its own errors, and those of what it calls
        raise CheckpointError(f"cannot read {told}: {one_line(error, 200)}") from None


def _of_torch(data: bytes, told: str) -> Any:
    if not data.startswith((b"PK\x03\x04", b"\x80\x02")):  # a zip archive, or before torch 1.6 a pickle
        raise CheckpointError(f"{told} is no file of torch.save")
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{told} holds more than tensors and plain values, and is not loaded since that would execute code; save "
            "the state_dict alone"
        ) from None
    except Exception as error:  # noqa: BLE001 - of a damaged file torch raises anything
        raise CheckpointError(f"{told} was cut off, or is no file of torch.save: {one_line(error, 200)}") from None


def _without_prefixes(state: State) -> State:
    for prefix in BEFORE * 2:  # in either order
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state
