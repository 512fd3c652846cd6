"""Batches of samples of like length: what comes when, and that nothing is lost or comes twice for it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_model import position

from raytrain.data.order import Buckets, Groups, Position, StreamPlan, StreamSpec, epoch_order

few = settings(deadline=None, max_examples=80)


def lengths_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 1000, count)


def spread(order: np.ndarray, lengths: np.ndarray, batch_size: int) -> float:
    """Mean difference of the longest and the shortest of a full batch."""
    full = order[: len(order) // batch_size * batch_size].reshape(-1, batch_size)
    return float(np.ptp(lengths[full], axis=1).mean())


@few
@given(st.integers(1, 300), st.integers(1, 9), st.integers(1, 8), st.integers(0, 3), st.none() | st.integers(1, 40))
def test_an_epoch_in_buckets_is_a_full_permutation(count, batch_size, batches, epoch, run):
    groups = None if run is None else Groups(np.arange(0, count, run))
    order = epoch_order(count, 5, epoch, groups, Buckets(lengths_of(count), batch_size, batches))
    assert sorted(order) == list(range(count))


@few
@given(st.integers(1, 300), st.integers(1, 9), st.integers(1, 8))
def test_a_window_holds_the_ids_that_it_would_hold_without_and_its_batches_do_not_overlap(count, batch_size, batches):
    """In any two full batches of a window, one's lengths lie beside the other's, but for those left over."""
    lengths = lengths_of(count)
    plain, made = epoch_order(count, 5, 0), epoch_order(count, 5, 0, None, Buckets(lengths, batch_size, batches))
    window = batch_size * batches
    for first in range(0, count, window):
        ids = made[first : first + window]
        assert sorted(ids) == sorted(plain[first : first + window])
        full = ids[: len(ids) // batch_size * batch_size].reshape(-1, batch_size)
        ends = sorted((lengths[batch].min(), lengths[batch].max()) for batch in full)
        assert all(one[1] <= other[0] for one, other in zip(ends, ends[1:], strict=False))


def test_lengths_within_a_batch_are_near_each_other_and_batches_come_in_any_order():
    lengths = lengths_of(6400)
    made = epoch_order(6400, 0, 0, None, Buckets(lengths, 32, 50))
    assert spread(made, lengths, 32) < spread(epoch_order(6400, 0, 0), lengths, 32) / 20
    means = lengths[made.reshape(-1, 32)].mean(axis=1)
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.3, "no drift from short to long"
    assert not np.array_equal(made, epoch_order(6400, 0, 1, None, Buckets(lengths, 32, 50)))


def test_which_are_left_over_is_drawn():
    lengths = np.arange(10)
    rests = {tuple(sorted(epoch_order(10, seed, 0, None, Buckets(lengths, 4, 8))[8:].tolist())) for seed in range(60)}
    assert len(rests) > 5


@few
@given(
    st.integers(12, 120),
    st.integers(1, 4),
    st.sampled_from(["share", "drop_last", "pad", "carry"]),
    st.lists(st.integers(1, 3), min_size=2, max_size=3),
    st.data(),
)
def test_an_epoch_in_buckets_goes_on_where_it_was_left_on_another_cluster(train, batch, tail, worlds, data):
    """What has been consumed is never seen again, and what is left keeps its order."""
    spec = StreamSpec(train, 0, batch, 3, epochs=1, tail=tail, buckets=Buckets(lengths_of(train), batch, 4))
    order = epoch_order(train, 3, 0, None, spec.buckets)
    consumed = np.zeros(train, dtype=bool)
    for world in worlds:
        plan = StreamPlan(spec, position(0, consumed), world)
        part = plan.segments[0]
        keys = plan.segment_keys(0)
        fresh = keys[: part.num_ids - part.repeated]
        assert fresh.tolist() == [i for i in order if not consumed[i]][: len(fresh)]
        assert len(fresh) + part.dropped == np.count_nonzero(~consumed)
        done = data.draw(st.integers(0, part.num_batches // world)) * world
        seen = keys[: min(int(part.sizes[:done].sum()), len(fresh))]
        assert not consumed[seen].any()
        consumed[seen] = True


@pytest.mark.parametrize("world", [1, 2])
def test_batches_that_are_consumed_whole_leave_the_others_as_they_were(world):
    buckets = Buckets(lengths_of(96), 8, 4)
    spec = StreamSpec(96, 0, 8, 3, epochs=1, buckets=buckets)
    order = epoch_order(96, 3, 0, None, buckets).reshape(-1, 8)
    consumed = np.isin(np.arange(96), order[[1, 4]])
    left = StreamPlan(spec, position(0, consumed), world).segment_keys(0).reshape(-1, 8)
    assert left.tolist() == np.delete(order, [1, 4], axis=0).tolist()


@pytest.mark.parametrize("world", [1, 2])
def test_what_is_carried_over_leaves_the_batches_behind_it_as_they_were(world):
    """But for the one that it ends in, and the last."""
    lengths = lengths_of(1003)
    spec = StreamSpec(1003, 0, 16, 3, epochs=4, tail="carry", buckets=Buckets(lengths, 16, 8))
    plan = StreamPlan(spec, Position(), world)
    for part in plan.segments:
        keys, brought = plan.segment_keys(part.number), part.carried and plan.segments[part.number - 1].carried
        start = -(-brought // 16) * 16
        assert spread(keys[start:] % 1003, lengths, 16) < 1.3 * spread(plan.segment_keys(0), lengths, 16)


@few
@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 3), st.integers(1, 4))
def test_what_is_carried_over_is_prepared_once_and_the_same_after_a_resume(train, batch, world, epochs):
    spec = StreamSpec(train, 0, batch, 3, epochs=epochs, tail="carry", buckets=Buckets(lengths_of(train), batch, 3))
    if train < batch * world:
        return
    plan = StreamPlan(spec, Position(), world)
    seen = []
    for part in plan.segments:
        keys = plan.segment_keys(part.number)
        seen += [(part.epoch - key // train, key % train) for key in keys.tolist()]
        if part.carried:
            rest = StreamPlan(spec, Position(part.epoch + 1, owed=plan.after(part.number)), world)
            assert rest.segment_keys(0).tolist() == plan.segment_keys(part.number + 1).tolist()
    assert sorted(seen) == [(epoch, index) for epoch in range(epochs) for index in range(train)]
