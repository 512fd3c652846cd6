"""Which sample comes when: the seeded order of an epoch, and the plan of the stream.

Everything here is a pure function of (seed, epoch, number of samples): any worker of any cluster computes the same
ids, so that only numbers travel, never lists of ids.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Split = Literal["train", "validation"]
Tail = Literal["share", "drop_last", "pad", "carry"]
GROUPS_IN_A_WINDOW = 8


@dataclass(frozen=True)
class Groups:
    """Samples that are stored together, the row groups of Parquet files say.

    Attributes:
        starts: int64, the first id of each run of them.
        window: so many runs are shuffled together.
    """

    starts: np.ndarray
    window: int = GROUPS_IN_A_WINDOW


@dataclass(frozen=True)
class Buckets:
    """Batches of samples of like length.

    Attributes:
        lengths: by id, int64.
        batch_size: samples.
        batches: so many are drawn together, sorted by length, and shuffled among each other.
    """

    lengths: np.ndarray
    batch_size: int
    batches: int


def epoch_order(
    num_samples: int,
    seed: int,
    epoch: int,
    groups: Groups | None = None,
    buckets: Buckets | None = None,
) -> np.ndarray:
    """A full permutation of `range(num_samples)`, int64.

    With `groups` their runs are permuted and ids shuffled within windows of some, so that a reader need not fetch a
    whole run for every sample.
    """
    rng = np.random.default_rng((seed, epoch))
    order = _shuffled(num_samples, rng, groups)
    return order if buckets is None else _bucketed(order, rng, buckets)


def _bucketed(order: np.ndarray, rng: np.random.Generator, buckets: Buckets) -> np.ndarray:
    """The same ids: window by window sorted by length, in batches that are then shuffled; the epoch's last, shorter one
    stays there, since what does not fill a step of batches comes last."""
    size, window = buckets.batch_size, buckets.batch_size * buckets.batches
    parts = []
    for first in range(0, len(order), window):
        ids = order[first : first + window]
        ids = ids[np.argsort(buckets.lengths[ids], kind="stable")]
        whole = len(ids) // size * size
        start = int(rng.integers(whole + 1))  # whichever are left over: not always the longest
        rest = ids[start : start + len(ids) - whole]
        full = np.delete(ids, np.s_[start : start + len(rest)]).reshape(-1, size)
        parts += [rng.permutation(full).reshape(-1), rest]
    return np.concatenate(parts)


def _shuffled(num_samples: int, rng: np.random.Generator, groups: Groups | None) -> np.ndarray:
    if groups is None or len(groups.starts) <= 1:
        return rng.permutation(num_samples)
    bounds = np.append(groups.starts, num_samples)
    order = rng.permutation(len(groups.starts))
    windows = []
    for first in range(0, len(order), groups.window):
        window = order[first : first + groups.window]
        ids = np.concatenate([np.arange(bounds[g], bounds[g + 1]) for g in window])
        windows.append(rng.permutation(ids))
    return np.concatenate(windows)


def batch_sizes(num_ids: int, batch_size: int, world_size: int) -> np.ndarray:
    """Sizes of the batches of a segment, int64: always a multiple of `world_size`, so that all ranks step alike.

    Rounds of full batches first. What is left over (less than one full round) is shared evenly, together with the last
    full round if there is one, over the last rounds: no batch is larger than `batch_size`, and none holds a single
    sample where that can be helped. A rank whose batch has no sample steps on a stand-in.
    """
    assert num_ids >= 0 and batch_size > 0 and world_size > 0
    rounds, rest = divmod(num_ids, batch_size * world_size)
    if rest == 0:
        return np.full(rounds * world_size, batch_size, dtype=np.int64)
    shared = 2 if rounds else 1
    if rounds:
        rounds, rest = rounds - 1, rest + batch_size * world_size
    with_samples = min(shared * world_size, max(rest // 2, -(-rest // batch_size)))
    tail = np.zeros(shared * world_size, dtype=np.int64)
    tail[:with_samples] = rest // with_samples
    tail[: rest % with_samples] += 1
    return np.concatenate([np.full(rounds * world_size, batch_size, dtype=np.int64), tail])


def shared_sizes(num_ids: int, global_batch_size: int, world_size: int) -> np.ndarray:
    """The like of `batch_sizes` where a step of all ranks together has `global_batch_size` samples: which step has how
    many does not depend on the ranks, and each step is shared evenly among them."""
    steps, own = batch_sizes(num_ids, global_batch_size, 1), global_batch_size // world_size
    full = int(np.count_nonzero(steps == global_batch_size))
    tail = [batch_sizes(int(size), own, world_size) for size in steps[full:]]  # two at most
    return np.concatenate([np.full(full * world_size, own, dtype=np.int64), *tail])


class SampleRng:
    """The random numbers of every sample: Philox, keyed by (seed, epoch), with the sample's id in its counter.

    One generator is set anew for each sample, which takes 1 µs where seeding one takes 20; a stage must not keep it.
    """

    def __init__(self, seed: int):
        self._seed, self._epoch = seed, -1
        self._bits = np.random.Philox()
        self._generator = np.random.Generator(self._bits)
        self._state = self._bits.state  # nothing drawn ahead

    def of(
        self, epoch: int, index: int, part: int = 0, *, reading: bool = False, batch: bool = False
    ) -> np.random.Generator:
        """The generator at the start of the sample's numbers; valid until the next call.

        Args:
            part: of those that stages have made of the sample, from 1; 0 of itself.
            reading: those that its source draws from, before any stage.
            batch: those that stages draw from that work on the batch whose first sample it is.
        """
        if epoch != self._epoch:
            key = np.asarray(np.random.SeedSequence((self._seed, epoch)).generate_state(2, np.uint64), np.uint64)
            self._state["state"], self._epoch = {"counter": np.zeros(4, np.uint64), "key": key}, epoch
        counter = self._state["state"]["counter"]
        counter[1:] = index, part, reading + 2 * batch  # 2 ** 64 blocks away from the next sample's
        self._bits.state = self._state
        return self._generator


@dataclass(frozen=True)
class Position:
    """Where a run stands: in which epoch, and what of it is done.

    Attributes:
        epoch: 0-based.
        consumed: a bit an id of the epoch, as `np.packbits` has them; empty when nothing of it is done.
        owed: ids that were carried over into the epoch and are still to come, int64, in that order.
    """

    epoch: int = 0
    consumed: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))
    owed: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def is_same(self, other: Position) -> bool:
        return self.epoch == other.epoch and all(
            np.array_equal(one, two) for one, two in ((self.consumed, other.consumed), (self.owed, other.owed))
        )


@dataclass(frozen=True)
class Segment:
    """A stretch of the stream: one pass over a split.

    Attributes:
        num_ids: samples in its batches.
        sizes: of its batches, int64; every `world_size` of them are a round, one for each rank.
        whole: False when `steps` ends the run within it.
        dropped: samples of the epoch that no batch has (`tail: drop_last`).
        repeated: of `num_ids`, the last so many stand in an earlier batch of the epoch as well (`tail: pad`).
        carried: samples that the next epoch begins with (`tail: carry`).
        num_alike: leading batches of one size, which may take each other's places.
    """

    number: int
    epoch: int
    split: Split
    num_ids: int
    sizes: np.ndarray
    whole: bool = True
    dropped: int = 0
    repeated: int = 0
    carried: int = 0
    num_alike: int = field(init=False)

    def __post_init__(self) -> None:  # now: a plan is pickled for one rank while the stream's thread uses it
        object.__setattr__(self, "num_alike", int(np.argmin(np.append(self.sizes == self.sizes[:1], False))))

    @property
    def num_batches(self) -> int:
        return len(self.sizes)


@dataclass(frozen=True)
class StreamSpec:
    """What never changes within a run: the two splits, the batch, the seed, how long to go on, and what becomes of the
    samples of an epoch that do not fill a round of full batches.

    Exactly one of `epochs` and `steps` is set; `steps` counts batches a rank from the very start of the run.

    Attributes:
        batch_size: samples of a rank's batch, or, if `is_global`, of a step of all ranks together. Then the samples of
            every step are settled beforehand, and which rank has which of them: batches are given out in order.
    """

    num_train: int
    num_validation: int
    batch_size: int
    seed: int
    epochs: int | None = None
    steps: int | None = None
    tail: Tail = "share"
    is_global: bool = False
    groups: Groups | None = field(default=None, compare=False, repr=False)
    buckets: Buckets | None = field(default=None, compare=False, repr=False)


class StreamPlan:
    """Every batch still to come, in order: (rest of) an epoch, its validation, the next epoch, ...

    A training sample goes by its *key*: its id in the epoch that it belongs to, `num_train` + id in the next epoch when
    it is carried over.

    Attributes:
        batch_size: samples of a rank's batch.
    """

    def __init__(self, spec: StreamSpec, position: Position, world_size: int, steps_done: int = 0):
        assert len(position.consumed) in (0, -(-spec.num_train // 8))
        assert not spec.is_global or spec.batch_size % world_size == 0
        self.spec, self.position, self.world_size = spec, position, world_size
        self.batch_size = spec.batch_size // world_size if spec.is_global else spec.batch_size
        self.segments: list[Segment] = []
        epoch, steps, carried = position.epoch, steps_done, 0
        while self._goes_on(epoch, steps):
            own, brought = spec.num_train, carried
            if epoch == position.epoch:
                own, brought = own - int(np.bitwise_count(position.consumed).sum()), len(position.owed)
            part = self._train(epoch, own, brought, None if spec.steps is None else spec.steps - steps)
            assert part.num_batches or own < spec.num_train, "less than one step of samples"
            steps, carried = steps + part.num_batches // world_size, part.carried
            self.segments.append(part)
            if spec.num_validation:
                sizes = self._sizes(spec.num_validation)
                self.segments.append(Segment(len(self.segments), epoch, "validation", spec.num_validation, sizes))
            epoch += 1
        self.total_steps, self.num_epochs = steps, epoch  # of the whole run
        self._offsets = [np.concatenate([[0], np.cumsum(s.sizes)]) for s in self.segments]

    def _train(self, epoch: int, own: int, brought: int, most_steps: int | None) -> Segment:
        """The training segment of an epoch that has `own` samples and what was `brought` over from the one before."""
        spec, total = self.spec, own + brought
        account: dict[str, int] = {}
        a_round = self.batch_size * self.world_size
        rest = total % a_round
        sizes = np.full(total // a_round * self.world_size, self.batch_size, dtype=np.int64)
        if spec.tail == "drop_last":
            account["dropped"] = rest
        elif spec.tail == "pad" and rest:
            sizes = np.append(sizes, np.full(self.world_size, self.batch_size, dtype=np.int64))
            account["repeated"] = a_round - rest
        elif spec.tail == "carry" and rest <= own and epoch + 1 != spec.epochs:
            account["carried"] = rest
        else:
            sizes = self._sizes(total)
        if most_steps is not None and len(sizes) > most_steps * self.world_size:
            return self._segment(epoch, sizes[: most_steps * self.world_size], whole=False)
        return self._segment(epoch, sizes, True, **account)

    def _segment(self, epoch: int, sizes: np.ndarray, whole: bool = True, **account: int) -> Segment:
        return Segment(len(self.segments), epoch, "train", int(sizes.sum()), sizes, whole, **account)

    def _sizes(self, num_ids: int) -> np.ndarray:
        shared = shared_sizes if self.spec.is_global else batch_sizes
        return shared(num_ids, self.spec.batch_size, self.world_size)

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
        return epoch < self.spec.epochs if self.spec.epochs is not None else steps < (self.spec.steps or 0)

    def bounds(self, segment: int, batch: int) -> tuple[int, int]:
        """Start and stop of a batch within the segment's samples."""
        offsets = self._offsets[segment]
        return int(offsets[batch]), int(offsets[batch + 1])

    def segment_keys(self, segment: int) -> np.ndarray:
        """The keys of a segment in the order they are prepared, int64; of validation the ids, not shuffled."""
        part = self.segments[segment]
        if part.split == "validation":
            return np.arange(self.spec.num_validation)
        brought = self._brought(part.epoch) + self.spec.num_train
        keys = np.concatenate([brought, self._own(part.epoch)])[: part.num_ids]
        return np.append(keys, np.resize(self._order(part.epoch), part.num_ids - len(keys)))  # once more from its start

    def after(self, segment: int) -> np.ndarray:
        """The ids that the next epoch is owed once this training segment is done, as Position has them."""
        part = self.segments[segment]
        return self._brought(part.epoch + 1) if part.carried else np.zeros(0, np.int64)

    def _own(self, epoch: int) -> np.ndarray:
        """The epoch's own ids that are still to come."""
        order = self._order(epoch)
        if epoch == self.position.epoch and len(self.position.consumed):
            order = remaining(order, np.unpackbits(self.position.consumed, count=len(order)).astype(bool))
        if self.spec.buckets is not None:  # what was brought over ends within a batch, which the last ids fill
            order = np.roll(order, -self._num_brought(epoch) % self.spec.buckets.batch_size)
        return order

    def _num_brought(self, epoch: int) -> int:
        if epoch == self.position.epoch:
            return len(self.position.owed)
        return next(s.carried for s in self.segments if (s.epoch, s.split) == (epoch - 1, "train"))

    def _brought(self, epoch: int) -> np.ndarray:
        """The ids that come first in an epoch because the one before left them over."""
        if epoch == self.position.epoch:
            return self.position.owed
        if not (count := self._num_brought(epoch)):
            return np.zeros(0, np.int64)
        left = self._own(epoch - 1)[-count:]
        if self.spec.buckets is None:
            return left
        done = np.ones(self.spec.num_train, dtype=bool)
        done[left] = False
        return remaining(self._order(epoch - 1), done)

    def _order(self, epoch: int) -> np.ndarray:
        spec = self.spec
        return epoch_order(spec.num_train, spec.seed, epoch, spec.groups, spec.buckets)


def remaining(order: np.ndarray, consumed: np.ndarray) -> np.ndarray:
    """The ids of `order` (int64) that are still to come, in that order; `consumed` is bool by id."""
    left: np.ndarray = order[~consumed[order]]
    return left
