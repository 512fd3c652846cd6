"""Forms of the stages in `data/stages/mixing.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from raytrain.data.samples.fields import Kind
from raytrain.device.forms.tensors import per_sample, rounded
from raytrain.device.forms.values import in_boxes


def mixup(value: torch.Tensor, drawn: np.ndarray, kind: Kind, num_classes: int, **_: Any) -> torch.Tensor:
    if kind != "image":
        return _blended(_soft(value, num_classes), drawn[:, 0])
    mixed = _blended(value.to(torch.float32), drawn[:, 0])
    return mixed.to(value.dtype) if value.dtype.is_floating_point else rounded(mixed, value.dtype)


def cutmix(value: torch.Tensor, drawn: np.ndarray, kind: Kind, num_classes: int, **_: Any) -> torch.Tensor:
    if kind != "image":
        return _blended(_soft(value, num_classes), drawn[:, 4])
    return torch.where(in_boxes(value, drawn[:, :4]), value.flip(0), value)


def _blended(value: torch.Tensor, own: np.ndarray) -> torch.Tensor:
    """(samples, ...) with those in the opposite order; `own` is (samples,), the weight of each itself."""
    weight = per_sample(own, value, value.dtype)
    return value * weight + value.flip(0) * (1 - weight)


def _soft(label: torch.Tensor, num_classes: int) -> torch.Tensor:
    """(samples, num_classes) float32."""
    if label.ndim == 2:  # it has been mixed before
        return label.to(torch.float32)
    return torch.nn.functional.one_hot(label.long(), num_classes).to(torch.float32)
