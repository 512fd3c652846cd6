"""The ledger: which samples of an epoch have been trained on. A bit a sample, on every rank and in every checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Ledger:
    """One rank's account of an epoch, by the samples' keys (see raytrain.data.order.StreamPlan).

    Args:
        num_samples: of the training split; there are twice as many keys.
        before: bool by key, what counts as consumed at the start: what the checkpoint says that the epoch was resumed
            from, or what was not carried over into it. None: nothing of the epoch is, and nothing was carried over.
    """

    def __init__(self, num_samples: int, before: np.ndarray | None = None):
        self._before = np.arange(2 * num_samples) >= num_samples if before is None else before.astype(bool)
        self._own = np.zeros(2 * num_samples, dtype=bool)
        assert self._before.shape == self._own.shape

    def add(self, keys: np.ndarray) -> None:
        """Note that `keys` (int64) were trained on. To consume a sample twice is a bug, never a rounding error."""
        twice = len(np.unique(keys)) != len(keys) or self._own[keys].any() or self._before[keys].any()
        assert not twice, "a sample was consumed twice"
        self._own[keys] = True

    @property
    def mask(self) -> np.ndarray:
        """bool by key: consumed before, or by this rank since."""
        return self._before | self._own

    def packed(self) -> np.ndarray:
        """This rank's own part, a bit a sample, for `union`."""
        return np.packbits(self._own)

    def union(self, packed: Sequence[np.ndarray]) -> np.ndarray:
        """bool by key: what all ranks together have consumed, given each one's `packed`."""
        counts = self._before.astype(np.int32)
        for bits in packed:
            counts += np.unpackbits(bits, count=len(counts))
        assert counts.max(initial=0) <= 1, "two ranks consumed the same sample"
        return counts.astype(bool)
