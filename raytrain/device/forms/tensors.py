"""Between NumPy on the host and tensors on a device."""

from __future__ import annotations

import numpy as np
import torch


def to_device(values: np.ndarray, device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A small array, without waiting for it."""
    values = np.ascontiguousarray(values)
    made = torch.from_numpy(values if values.flags.writeable else values.copy())  # torch warns of what is not
    return made.to(device, dtype, non_blocking=True)


def per_sample(values: np.ndarray, like: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """(samples,) to (samples, 1, ...), with as many axes as `like`."""
    return to_device(values, like.device, dtype).reshape(-1, *[1] * (like.ndim - 1))


def exact(dtype: torch.dtype) -> torch.dtype:
    """The type of float in which values of `dtype` are computed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def rounded(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """To an integer type to the nearest number within its range; to a float type as they are."""
    if dtype.is_floating_point:
        return values.to(dtype)
    limits = torch.iinfo(dtype)
    return values.round().clamp(limits.min, limits.max).to(dtype)


def name_of(dtype: torch.dtype) -> str:
    """NumPy's."""
    return str(dtype).removeprefix("torch.")


def stacked(values: list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
    """(samples, ...) where their shapes agree."""
    alike = len({value.shape for value in values}) == 1
    return torch.stack(values) if alike else values
