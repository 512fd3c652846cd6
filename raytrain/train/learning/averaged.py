"""An exponential moving average of the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

WEIGHTS = "averaged_weights"


class Averaged:
    """Follows the optimizer: after each of its steps, and of none that was skipped. Part of a checkpoint, where
    `WEIGHTS` is a state_dict of the model.

    Buffers, such as BatchNorm's statistics, are the model's own.

    Args:
        model: on its device, before DDP and torch.compile.

    Attributes:
        module: the model with the averaged weights.
    """

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, decay: float):
        self._averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.module: torch.nn.Module = self._averaged.module
        self.module.requires_grad_(False)
        for part, own in zip(self.module.modules(), model.modules(), strict=True):
            part._buffers.update(own._buffers)
        optimizer.register_step_post_hook(lambda *_: self._follow(model, optimizer))

    def _follow(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        overflowed = getattr(optimizer, "found_inf", None)  # a fused one is called by a GradScaler even then
        if overflowed is None or not bool(overflowed):
            self._averaged.update_parameters(model)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self._averaged.n_averaged, WEIGHTS: self.module.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._averaged.n_averaged.copy_(state["updates"])
        self.module.load_state_dict(state[WEIGHTS])
