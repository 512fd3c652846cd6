"""What a rank does to the modules of a run: DDP around them, one set of buffers, clean statistics of BatchNorm."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from raytrain.errors import TrainingError


def is_distributed(module: torch.nn.Module, world_size: int) -> bool:
    """Whether the ranks exchange its gradients; a frozen one has none."""
    return world_size > 1 and any(parameter.requires_grad for parameter in module.parameters())


def distributed(module: Any, device: torch.device, world_size: int) -> Any:
    """A module with DDP, which also gives all ranks the first one's parameters and buffers; other things as is."""
    if not isinstance(module, torch.nn.Module) or not is_distributed(module, world_size):
        return module
    return DistributedDataParallel(module, device_ids=[device] if device.type == "cuda" else None)


def broadcast_buffers(modules: Sequence[torch.nn.Module]) -> None:
    """Give every rank the first one's, which are those of the checkpoint.

    DDP does so at the start of a training forward only; at the end of an epoch each rank's BatchNorm has seen its own
    batches.
    """
    with torch.no_grad():
        for module in modules:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)


@contextlib.contextmanager
def forwards_alone(modules: Sequence[object]) -> Iterator[None]:
    """Meanwhile DDP gives no rank the first one's buffers, for which every forward would wait for all ranks."""
    wrapped = [module for module in modules if isinstance(module, DistributedDataParallel)]
    before = [module.require_forward_param_sync for module in wrapped]
    for module in wrapped:
        module.require_forward_param_sync = False
    try:
        yield
    finally:
        for module, each in zip(wrapped, before, strict=True):
            module.require_forward_param_sync = each


def copy_of_buffers(modules: Sequence[torch.nn.Module]) -> list[torch.Tensor]:
    """For `put_buffers_back`."""
    return [buffer.detach().clone() for module in modules for buffer in module.buffers()]


def put_buffers_back(modules: Sequence[torch.nn.Module], copies: Sequence[torch.Tensor]) -> None:
    """As if the forwards since had not been."""
    with torch.no_grad():
        for buffer, copy in zip((buffer for module in modules for buffer in module.buffers()), copies, strict=True):
            buffer.copy_(copy)


def check_finite(modules: Sequence[torch.nn.Module], step: int) -> None:
    """Look at every trainable parameter; waits for the device once.

    Raises:
        TrainingError: one is no number.
    """
    parameters = [each.detach() for module in modules for each in module.parameters() if each.requires_grad]
    if not torch.isfinite(torch.nn.utils.get_total_norm(parameters)):
        raise TrainingError(
            f"the model's weights are no finite numbers at step {step}, though every loss was: a gradient has "
            "overflowed; a lower learning rate, training.clip_norm or precision bf16 may prevent it"
        )


def synchronises_batch_norm(modules: Sequence[torch.nn.Module]) -> bool:
    """Whether a forward of a module waits for the other ranks, where there are any."""
    return any(isinstance(part, torch.nn.SyncBatchNorm) for module in modules for part in module.modules())


@contextlib.contextmanager
def frozen_statistics(modules: Sequence[torch.nn.Module], world_size: int) -> Iterator[None]:
    """BatchNorm takes and keeps its running statistics meanwhile, for a batch that has none of its own.

    One that is synchronised over several ranks is left alone: the others wait for it.
    """
    shared = torch.nn.SyncBatchNorm if world_size > 1 else ()
    every = [part for module in modules for part in module.modules() if isinstance(part, _BatchNorm)]
    parts = [part for part in every if part.training and not isinstance(part, shared)]
    for part in parts:
        part.eval()
    try:
        yield
    finally:
        for part in parts:
            part.train()
