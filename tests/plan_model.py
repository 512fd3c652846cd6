"""The plan of the stream as plain lists of samples, each an (epoch, id): what every test of the plan compares with."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np
from hypothesis import strategies as st

from raytrain.data.order import Buckets, Groups, Position, Segment, StreamPlan, StreamSpec, epoch_order

TAILS = ("share", "drop_last", "pad", "carry")


@dataclass
class Pass:
    """One pass over a split: the samples of every batch in order, and what became of the others."""

    epoch: int
    split: str
    batches: list[list[tuple[int, int]]]
    whole: bool = True
    dropped: int = 0
    repeated: int = 0
    left_over: tuple[tuple[int, int], ...] = ()

    @property
    def samples(self) -> list[tuple[int, int]]:
        return [sample for batch in self.batches for sample in batch]


def own_samples(spec: StreamSpec, epoch: int) -> list[tuple[int, int]]:
    order = epoch_order(spec.num_train, spec.seed, epoch, spec.groups, spec.buckets)
    return [(epoch, i) for i in order.tolist()]


def shared_out(samples: list, batch_size: int, world: int) -> list[list]:
    """Full rounds; what is left, with the last of them, in as many batches as can have two samples each."""
    rounds, rest = divmod(len(samples), batch_size * world)
    full = rounds * world if rest == 0 else max(rounds - 1, 0) * world
    slots = 0 if rest == 0 else world * min(rounds + 1, 2)
    left = len(samples) - full * batch_size
    enough = [k for k in range(1, slots + 1) if k * batch_size >= left]
    used = max((k for k in enough if left >= 2 * k), default=min(enough, default=1))
    sizes = [batch_size] * full + [len(range(k, left, used)) if k < used else 0 for k in range(slots)]
    order = iter(samples)
    return [list(islice(order, size)) for size in sizes]


def stepped(samples: list, spec: StreamSpec, world: int) -> list[list]:
    """Batches of a rank; where steps are settled, each step as on one rank, and then shared out."""
    if not spec.is_global:
        return shared_out(samples, spec.batch_size, world)
    steps = shared_out(samples, spec.batch_size, 1)
    return [batch for step in steps for batch in shared_out(step, spec.batch_size // world, world)]


def passes(spec: StreamSpec, world: int, epoch: int = 0, done: set | None = None, steps: int = 0) -> list[Pass]:
    """Every pass still to come; `done` are the samples that `epoch` has consumed, or that were not carried into it."""
    found: list[Pass] = []
    brought: tuple = ()
    a_round = spec.batch_size * (1 if spec.is_global else world)
    while steps < spec.steps if spec.epochs is None else epoch < spec.epochs:
        own = own_samples(spec, epoch)
        fresh = [s for s in own if done is None or s not in done]
        if done is not None:
            brought = tuple(s for s in (own_samples(spec, epoch - 1) if epoch else []) if s not in done)
            done = None
        if spec.buckets is not None:  # the last ones fill the batch that it ends in, and the others stay whole
            fresh = deque(fresh)
            fresh.rotate(-len(brought) % spec.batch_size)
        samples = [*brought, *fresh]
        this, rest = Pass(epoch, "train", []), len(samples) % a_round
        if spec.tail == "pad" and rest:
            this.repeated = a_round - rest
            samples += islice(cycle(own), this.repeated)
        elif spec.tail == "drop_last":
            this.dropped, samples = rest, samples[: len(samples) - rest]
        elif spec.tail == "carry" and rest <= len(fresh) and epoch + 1 != spec.epochs:
            this.left_over, samples = tuple(samples[len(samples) - rest :]), samples[: len(samples) - rest]
        this.batches = stepped(samples, spec, world)
        if spec.steps is not None and len(this.batches) > (spec.steps - steps) * world:
            this = Pass(epoch, "train", this.batches[: (spec.steps - steps) * world], whole=False)
        steps, brought = steps + len(this.batches) // world, tuple(s for s in own if s in this.left_over)
        found.append(this)
        if spec.num_validation:
            ids = [(epoch, i) for i in range(spec.num_validation)]
            found.append(Pass(epoch, "validation", stepped(ids, spec, world)))
        epoch += 1
    return found


def samples_of(plan: StreamPlan, part: Segment, keys: np.ndarray | None = None) -> list[tuple[int, int]]:
    """A segment's keys, or some of them, as (epoch, id)."""
    keys = plan.segment_keys(part.number) if keys is None else keys
    if part.split == "validation":
        return [(part.epoch, int(key)) for key in keys]
    return [(part.epoch - int(key) // plan.spec.num_train, int(key) % plan.spec.num_train) for key in keys]


def position_of(spec: StreamSpec, epoch: int, done: set[tuple[int, int]]) -> Position:
    """`done` as Position has it."""
    owed = [i for _, i in own_samples(spec, epoch - 1) if (epoch - 1, i) not in done] if epoch else []
    return position(epoch, [(epoch, i) in done for i in range(spec.num_train)], owed)


def position(epoch: int, consumed: Sequence[bool], owed: Sequence[int] = ()) -> Position:
    """Of what is consumed by id."""
    return Position(epoch, np.packbits(np.asarray(consumed, dtype=bool)), np.array(owed, dtype=np.int64))


def consumed_ids(bits: np.ndarray) -> set[int]:
    """Of a bit an id."""
    return set(np.flatnonzero(np.unpackbits(bits)).tolist())


num_ranks = st.sampled_from([2, 3, 1, 4])


@st.composite
def specs(draw, tails=TAILS, worlds=4, most=60, validation=20) -> StreamSpec:
    """Of as many samples as a step on `worlds` ranks needs."""
    batch = draw(st.sampled_from([3, 4, 5, 2, 6, 1]))  # in this order, so that few are without a tail
    least, is_global = batch * worlds, draw(st.booleans())
    if is_global:
        batch = least = draw(st.sampled_from([12, 24]))  # that 1, 2, 3 and 4 ranks can share
    train = draw(st.integers(least, least + most))
    length = draw(st.sampled_from([{"epochs": e} for e in (3, 2, 1)] + [{"steps": s} for s in (17, 9, 1)]))
    groups = (
        Groups(np.arange(0, train, draw(st.integers(1, 9))), draw(st.integers(1, 9))) if draw(st.booleans()) else None
    )
    lengths = np.random.default_rng(train).integers(1, 50, train)
    buckets = Buckets(lengths, batch, draw(st.integers(1, 4))) if draw(st.booleans()) else None
    held_out = draw(st.integers(0, validation))
    return StreamSpec(
        train,
        held_out,
        batch,
        draw(st.integers(0, 3)),
        **length,
        tail=draw(st.sampled_from(tails)),
        is_global=is_global,
        groups=groups,
        buckets=buckets,
    )


@st.composite
def positions(draw, spec: StreamSpec) -> tuple[int, set[tuple[int, int]] | None]:
    """Any epoch, with nothing of it done or any set of samples, of those that could have been carried over too."""
    epoch = draw(st.integers(0, (spec.epochs or 3) - 1))
    if draw(st.booleans()):
        return epoch, None
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    share = draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
    done = {sample for sample in own_samples(spec, epoch) if rng.random() < share}
    earlier = own_samples(spec, epoch - 1) if epoch else [(-1, i) for i in range(spec.num_train)]
    may_be_owed = earlier[len(earlier) - draw(st.integers(0, spec.num_train)) :] if epoch else []
    return epoch, done | {sample for sample in earlier if sample not in may_be_owed or rng.random() < share}


def planned(spec: StreamSpec, world: int, epoch: int = 0, done: set | None = None, steps: int = 0) -> StreamPlan:
    return StreamPlan(spec, Position(epoch) if done is None else position_of(spec, epoch, done), world, steps)


@st.composite
def plans(draw, tails=TAILS, most=60) -> StreamPlan:
    """From anywhere, on one to four ranks."""
    spec = draw(specs(tails=tails, most=most))
    return planned(spec, draw(num_ranks), *draw(positions(spec)))
