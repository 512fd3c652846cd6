"""A batch as the training loop sees it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Ragged:
    """Values of different lengths, behind one another.

    Attributes:
        values: (total, ...) on the device.
        offsets: (samples + 1,) int64 on the device: where each begins, and where the last ends.
        lengths: (samples,) int64 NumPy.
    """

    values: torch.Tensor
    offsets: torch.Tensor
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Of each sample, (length, ...)."""
        return iter(self.values.split(self.lengths.tolist()))

    def nested(self) -> torch.Tensor:
        """As torch's nested tensor (jagged), (samples, *, ...), over the same memory."""
        return torch.nested.nested_tensor_from_jagged(self.values, self.offsets)


@dataclass
class DeviceBatch(Mapping[str, Any]):
    """A batch as the training loop sees it: `batch["image"]`, and so on for every field.

    A field is a tensor (size, ...) on the device, in the dtype in which it was sent; `Ragged` where lengths vary; a
    list of text or bytes. An image, (size, channels, height, width), is float32 and normalised, unless `data.fields`
    says something else, and lies in memory as the last stage left it: channels last but for torchvision's transforms.

    Attributes:
        fields: by name.
        size: samples; 1 where it is a stand-in.
        ids: (samples,) int64 NumPy.
        parts: (samples,) int64 NumPy: which of the samples that a stage has made of one; 0 where none has.
        index: the batch's number among this rank's batches of the pass, from 0.
        weight: of the batch's mean loss, so that the mean gradient of all ranks is that of the mean over the step's
            samples: `(loss * batch.weight).backward()`. A float32 scalar on the device where there are several ranks.
        step_samples: that all ranks have at this step; a float32 scalar on the device where there are several.
        stand_in: one blank sample without an id, because this rank has none at this step and every rank must step;
            its weight is 0.
        carried: (batch,) bool NumPy, samples that the epoch before left over (`data.tail: carry`).
        repeated: of the samples, the last so many that the epoch has had already (`data.tail: pad`).
        left_out: int64 NumPy, keys (see StreamPlan) of samples that are not in the batch, because they could not be
            prepared or because a stage did not want them.
        filtered: how many of those a stage did not want.
    """

    fields: dict[str, Any]
    size: int
    ids: np.ndarray
    index: int
    parts: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    weight: torch.Tensor | float = 1.0
    step_samples: torch.Tensor | int = 0
    stand_in: bool = False
    carried: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    repeated: int = 0
    left_out: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    filtered: int = 0

    def __getitem__(self, name: str) -> Any:
        """
        Raises:
            KeyError: there is no such field, naming those that there are.
        """
        if name not in self.fields:
            raise KeyError(f"a batch has no field {name!r}; it has {', '.join(self.fields)}")
        return self.fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.fields)

    def __len__(self) -> int:
        """The number of fields, as of any mapping; `size` is that of the samples."""
        return len(self.fields)

    @property
    def image(self) -> torch.Tensor:
        """`batch["image"]`."""
        return self._member("image")

    @property
    def label(self) -> torch.Tensor:
        """`batch["label"]`."""
        return self._member("label")

    def _member(self, name: str) -> torch.Tensor:
        """
        Raises:
            AttributeError: there is no such field, so that `hasattr` and debuggers can tell.
        """
        try:
            return self[name]  # type: ignore[no-any-return]
        except KeyError as error:
            raise AttributeError(error.args[0]) from None

    def empty(self) -> None:
        """Take the blank sample out of a stand-in."""
        self.size = 0
        self.fields = {name: _emptied(value) for name, value in self.fields.items()}


def _emptied(value: Any) -> Any:
    if isinstance(value, Ragged):
        return Ragged(value.values[:0], value.offsets[:1], value.lengths[:0])
    return value[:0]
