"""What a field of a batch is: whether the next batch's agrees with it, and what stands in for one without a sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from raytrain.data.samples.collate import Form, padded_names


@dataclass(frozen=True)
class Like:
    """What a field of a batch is.

    Attributes:
        dtype, shape: of a tensor, the shape behind its first axis; of images of many sizes, of the first.
    """

    form: Form
    dtype: torch.dtype | None = None
    shape: torch.Size = torch.Size()

    @classmethod
    def of(cls, value: Any, form: Form) -> Like:
        if isinstance(value, torch.Tensor):
            return cls(form, value.dtype, value.shape[1:])
        if form == "dense" and value:  # decoded on the device
            return cls(form, value[0].dtype, value[0].shape)
        return cls(form)

    def agrees(self, other: Like) -> bool:
        """Sizes may differ from batch to batch, as padding makes them."""
        mine, others = ((each.form, each.dtype, len(each.shape)) for each in (self, other))
        return mine == others or (self.form == other.form == "dense" and None in (self.dtype, other.dtype))

    def blank(self, device: torch.device) -> Any:
        """Of a batch of one sample."""
        if self.dtype is not None:
            return torch.zeros((1, *self.shape), dtype=self.dtype, device=device)
        return [b""] if self.form == "bytes" else [""]

    def __str__(self) -> str:
        if self.dtype is None:
            return self.form
        return f"{str(self.dtype).removeprefix('torch.')} with {len(self.shape)} axes"


def blank_fields(like: Mapping[str, Like], device: torch.device) -> dict[str, Any]:
    """Of a batch of one blank sample: zeros, of which what is padded is full, or a mean over what there is would be no
    number."""
    blank = {name: each.blank(device) for name, each in like.items()}
    for mask, length in map(padded_names, like):
        if mask in like and length in like and like[mask].dtype == torch.bool:
            full = torch.ones_like(blank[mask])
            if blank[length].numel() == full.ndim - 1:
                blank[mask] = full
                blank[length] = torch.tensor(full.shape[1:], device=device).reshape(blank[length].shape)
    return blank
