"""The ledger: which samples of an epoch have been trained on. A bit a sample, on every rank and in every checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

NOTHING = np.zeros(0, np.uint8)
TWICE = "a sample was consumed twice"


class Ledger:
    """One rank's account of an epoch, by the samples' keys (see raytrain.data.order.StreamPlan).

    Args:
        num_samples: of the training split.
        consumed: a bit an id, as `np.packbits` has them: what the checkpoint says that the epoch was resumed from;
            empty where nothing of the epoch is.
        owed: ids that were carried over into the epoch and are still to come, in that order; less than a step has.

    Attributes:
        own: a bit an id, uint8: what this rank has consumed since.
        paid: ids of those owed, likewise.
    """

    def __init__(self, num_samples: int, consumed: np.ndarray = NOTHING, owed: Iterable[int] = ()):
        self._num_samples = num_samples
        self._before = np.zeros(-(-num_samples // 8), np.uint8)
        self._before[: len(consumed)] = consumed
        self._owed = dict.fromkeys(map(int, owed))
        self.own = np.zeros_like(self._before)
        self.paid: set[int] = set()

    def add(self, keys: np.ndarray) -> None:
        """Note that `keys` (int64) were trained on. To consume a sample twice is a bug, never a rounding error."""
        ordered = np.sort(keys)
        assert not (ordered[1:] == ordered[:-1]).any(), TWICE
        own = keys < self._num_samples
        ids, late = keys[own], (keys[~own] - self._num_samples).tolist()
        assert all(index in self._owed and index not in self.paid for index in late), TWICE
        self.paid.update(late)
        places, bits = ids >> 3, np.uint8(128) >> (ids & 7).astype(np.uint8)
        assert not ((self._before[places] | self.own[places]) & bits).any(), TWICE
        np.bitwise_or.at(self.own, places, bits)  # several of them may be in one byte

    @property
    def consumed(self) -> np.ndarray:
        """A bit an id: before, or by this rank since."""
        return self._before | self.own

    @property
    def owed(self) -> np.ndarray:
        """Ids of the epoch before that this rank has not consumed, int64."""
        return self._still_owed(self.paid)

    def union(self, own: np.ndarray, counts: Sequence[int], paid: Sequence[set[int]]) -> tuple[np.ndarray, np.ndarray]:
        """What all ranks together have consumed, a bit an id, empty where it is nothing; and the ids still owed.

        Args:
            own: the sum of all ranks' `own`, which is their union as long as no sample is of two ranks.
            counts, paid: each one's `num_own` and `paid`.
        """
        everyone = set[int]().union(*paid)
        once = count_bits(own) == sum(counts) and not (self._before & own).any()
        assert once and len(everyone) == sum(map(len, paid)), "two ranks consumed the same sample"
        consumed = self._before | own
        return consumed if consumed.any() else NOTHING, self._still_owed(everyone)

    @property
    def num_own(self) -> int:
        return count_bits(self.own)

    def _still_owed(self, paid: set[int]) -> np.ndarray:
        return np.array([index for index in self._owed if index not in paid], dtype=np.int64)


def count_bits(bits: np.ndarray) -> int:
    return int(np.bitwise_count(bits).sum(dtype=np.int64))
