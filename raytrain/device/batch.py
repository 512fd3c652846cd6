"""A batch as the training loop sees it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch


@dataclass
class DeviceBatch:
    """A batch as the training loop sees it.

    Attributes:
        image: (batch, channels, height, width) on the device, float32, normalised; in memory as the last stage left
            it, which is channels last but for torchvision's transforms.
        label: (batch,) int64 on the device.
        ids: (batch,) int64 NumPy, the samples' ids.
        index: the batch's number among this rank's batches of the pass, from 0.
        weight: of the batch's mean loss, so that the mean gradient of all ranks is that of the mean over the step's
            samples: `(loss * batch.weight).backward()`. A float32 scalar on the device where there are several ranks.
        step_samples: that all ranks have at this step; a float32 scalar on the device where there are several.
        stand_in: one blank image without an id, because this rank has no sample at this step and every rank must step;
            its weight is 0.
        carried: (batch,) bool NumPy, samples that the epoch before left over (`data.tail: carry`).
        repeated: of the samples, the last so many that the epoch has had already (`data.tail: pad`).
        left_out: int64 NumPy, keys (see StreamPlan) of samples that could not be prepared and are not in the batch.
    """

    image: torch.Tensor
    label: torch.Tensor
    ids: np.ndarray
    index: int
    weight: torch.Tensor | float = 1.0
    step_samples: torch.Tensor | int = 0
    stand_in: bool = False
    carried: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    repeated: int = 0
    left_out: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
