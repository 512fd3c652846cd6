"""The state of a run as it is at one moment, in host memory: the next step changes what the copy was made of."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

About = tuple[Any, ...]


def mapped(state: Any, of_tensor: Callable[[torch.Tensor], torch.Tensor], of_other: Callable[[Any], Any]) -> Any:
    """What a `state_dict` returns, with other tensors and other leaves, in containers of its own."""
    if isinstance(state, torch.Tensor):
        return of_tensor(state.detach())
    if isinstance(state, dict):
        twin = copy.copy(state)  # an OrderedDict with its attributes: torch keeps the versions of modules there
        for name, each in state.items():
            twin[name] = mapped(each, of_tensor, of_other)
        return twin
    if type(state) in (list, tuple):
        return type(state)(mapped(each, of_tensor, of_other) for each in state)
    return of_other(state)


class HostCopy:
    """Copies what a `state_dict` returns into memory that the next copy uses again, so that no more than one is ever
    held, and its pages are asked of the system once."""

    def __init__(self) -> None:
        self._memory: dict[About, list[torch.Tensor]] = {}

    def take(self, state: Any) -> Any:
        """The same with tensors of its own, on the CPU. What an earlier call returned is overwritten."""
        before, self._memory = self._memory, {}
        seen: dict[About, torch.Tensor] = {}

        def copied(tensor: torch.Tensor) -> torch.Tensor:
            if type(tensor) is not torch.Tensor or tensor.layout != torch.strided or tensor.is_quantized:
                return tensor.to("cpu", copy=True)
            about = (tensor.dtype, tensor.shape, tensor.stride())
            same = (tensor.device, tensor.data_ptr(), *about)
            if tensor.numel() and same in seen:  # weights that are tied stay one
                return seen[same]
            free = before.get(about)
            twin = free.pop() if free else torch.empty_like(tensor, device="cpu")
            seen[same] = twin.copy_(tensor)
            self._memory.setdefault(about, []).append(twin)
            return twin

        return mapped(state, copied, copy.deepcopy)
