"""Which sample comes when: the seeded order of an epoch, and the plan of the stream.

Everything here is a pure function of (seed, epoch, number of samples): any worker of any cluster computes the same
ids, so that only numbers travel, never lists of ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from raytrain.ledger import remaining

Split = Literal["train", "validation"]
GROUPS_IN_A_WINDOW = 8


def epoch_order(num_samples: int, seed: int, epoch: int, group_starts: np.ndarray | None = None) -> np.ndarray:
    """A full permutation of `range(num_samples)`, int64.

    With `group_starts` (first id of every stored run) the runs are permuted and ids shuffled within windows of
    GROUPS_IN_A_WINDOW runs, so that a reader need not fetch a whole run for every sample.
    """
    rng = np.random.default_rng((seed, epoch))
    if group_starts is None or len(group_starts) <= 1:
        return rng.permutation(num_samples)
    bounds = np.append(group_starts, num_samples)
    groups = rng.permutation(len(group_starts))
    windows = []
    for first in range(0, len(groups), GROUPS_IN_A_WINDOW):
        window = groups[first : first + GROUPS_IN_A_WINDOW]
        ids = np.concatenate([np.arange(bounds[g], bounds[g + 1]) for g in window])
        windows.append(rng.permutation(ids))
    return np.concatenate(windows)


def batch_sizes(num_ids: int, batch_size: int, world_size: int) -> np.ndarray:
    """Sizes of the batches of a segment, int64: always a multiple of `world_size`, so that all ranks step alike.

    Full batches first; what is left over (less than one batch for every rank) is shared out as evenly as it goes in
    one last round. Leftovers too few to give every rank a sample join the last full round instead.
    """
    assert num_ids >= 0 and batch_size > 0 and world_size > 0
    rounds, rest = divmod(num_ids, batch_size * world_size)
    if rest == 0:
        return np.full(rounds * world_size, batch_size, dtype=np.int64)
    if rest < world_size and rounds > 0:
        rounds, rest = rounds - 1, rest + batch_size * world_size
    tail = np.full(world_size, rest // world_size, dtype=np.int64)
    tail[: rest % world_size] += 1
    return np.concatenate([np.full(rounds * world_size, batch_size, dtype=np.int64), tail])


class SampleRng:
    """The random numbers of every sample: Philox, keyed by (seed, epoch), with the sample's id in its counter.

    One generator is set anew for each sample, which takes 1 µs where seeding one takes 20; a stage must not keep it.
    """

    def __init__(self, seed: int):
        self._seed, self._epoch = seed, -1
        self._bits = np.random.Philox()
        self._generator = np.random.Generator(self._bits)
        self._state = self._bits.state  # nothing drawn ahead

    def of(self, epoch: int, index: int) -> np.random.Generator:
        """The generator at the start of the sample's numbers; valid until the next call."""
        if epoch != self._epoch:
            key = np.random.SeedSequence((self._seed, epoch)).generate_state(2, np.uint64)
            self._state["state"], self._epoch = {"counter": np.zeros(4, np.uint64), "key": key}, epoch
        self._state["state"]["counter"][1] = index  # 2 ** 64 blocks away from the next sample's
        self._bits.state = self._state
        return self._generator


@dataclass(frozen=True)
class Position:
    """Where a run stands: in which epoch, and what of it is done.

    Attributes:
        epoch: 0-based.
        consumed: bool by training id, or None when nothing of the epoch is done.
    """

    epoch: int = 0
    consumed: np.ndarray | None = None


@dataclass(frozen=True)
class Segment:
    """A stretch of the stream: one pass over a split; not `whole` when `steps` ends the run within it."""

    number: int
    epoch: int
    split: Split
    num_ids: int
    sizes: np.ndarray
    whole: bool = True

    @property
    def num_batches(self) -> int:
        return len(self.sizes)


@dataclass(frozen=True)
class StreamSpec:
    """What never changes within a run: the two splits, the batch, the seed, and how long to go on.

    Exactly one of `epochs` and `steps` is set; `steps` counts batches a rank from the very start of the run.
    """

    num_train: int
    num_validation: int
    batch_size: int
    seed: int
    epochs: int | None = None
    steps: int | None = None


class StreamPlan:
    """Every batch still to come, in order: (rest of) an epoch, its validation, the next epoch, ..."""

    def __init__(self, spec: StreamSpec, position: Position, world_size: int, steps_done: int = 0):
        self.spec, self.position, self.world_size = spec, position, world_size
        self.segments: list[Segment] = []
        epoch, steps = position.epoch, steps_done
        while self._goes_on(epoch, steps):
            consumed = position.consumed if epoch == position.epoch else None
            num_ids = spec.num_train - (0 if consumed is None else int(consumed.sum()))
            sizes = batch_sizes(num_ids, spec.batch_size, world_size)
            if spec.steps is not None:
                sizes = sizes[: (spec.steps - steps) * world_size]
            steps += len(sizes) // world_size
            self._append(epoch, "train", sizes, whole=int(sizes.sum()) == num_ids)
            if spec.num_validation:
                self._append(epoch, "validation", batch_sizes(spec.num_validation, spec.batch_size, world_size))
            epoch += 1
        self.total_steps = steps
        self._offsets = [np.concatenate([[0], np.cumsum(s.sizes)]) for s in self.segments]

    @property
    def total_batches(self) -> int:
        """Of all ranks and both splits."""
        return sum(segment.num_batches for segment in self.segments)

    def places(self) -> np.ndarray:
        """Every batch in order, int64 (total_batches, 2) of (segment, batch)."""
        counts = [segment.num_batches for segment in self.segments]
        segments = np.repeat(np.arange(len(counts)), counts)
        return np.column_stack([segments, np.concatenate([np.arange(0), *map(np.arange, counts)])])

    def _goes_on(self, epoch: int, steps: int) -> bool:
        return epoch < self.spec.epochs if self.spec.epochs is not None else steps < self.spec.steps

    def _append(self, epoch: int, split: Split, sizes: np.ndarray, whole: bool = True) -> None:
        self.segments.append(Segment(len(self.segments), epoch, split, int(sizes.sum()), sizes, whole))

    def bounds(self, segment: int, batch: int) -> tuple[int, int]:
        """Start and stop of a batch within the segment's ids."""
        offsets = self._offsets[segment]
        return int(offsets[batch]), int(offsets[batch + 1])

    def segment_ids(self, segment: int, group_starts: np.ndarray | None = None) -> np.ndarray:
        """The ids of a segment in the order they are prepared, int64. Validation is not shuffled."""
        part = self.segments[segment]
        if part.split == "validation":
            return np.arange(self.spec.num_validation)
        order = epoch_order(self.spec.num_train, self.spec.seed, part.epoch, group_starts)
        if part.epoch == self.position.epoch and self.position.consumed is not None:
            order = remaining(order, self.position.consumed)
        return order[: part.num_ids]
