"""The order of an epoch, the plan of the stream and the ledger: pure, and true for every size."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from raytrain.data.order import Position, SampleRng, StreamPlan, StreamSpec, batch_sizes, epoch_order

sizes = st.integers(1, 400)
worlds = st.integers(1, 9)


@given(sizes, st.integers(0, 5), st.integers(0, 5))
def test_an_epoch_is_a_full_permutation(num_samples, seed, epoch):
    assert sorted(epoch_order(num_samples, seed, epoch)) == list(range(num_samples))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(0, 3))
def test_an_epoch_over_row_groups_is_a_full_permutation_that_stays_near(group_sizes, seed):
    starts = np.concatenate([[0], np.cumsum(group_sizes)[:-1]])
    total = sum(group_sizes)
    order = epoch_order(total, seed, 0, starts)
    assert sorted(order) == list(range(total))
    groups = np.searchsorted(starts, order, side="right") - 1
    for group in range(len(group_sizes)):  # whoever reads a group meets it within eight groups' worth of samples
        places = np.flatnonzero(groups == group)
        assert places[-1] - places[0] < 8 * max(group_sizes)


def test_epochs_and_seeds_differ():
    assert not np.array_equal(epoch_order(100, 0, 0), epoch_order(100, 0, 1))
    assert not np.array_equal(epoch_order(100, 0, 0), epoch_order(100, 1, 0))
    assert np.array_equal(epoch_order(100, 3, 2), epoch_order(100, 3, 2))


samples = st.tuples(st.integers(0, 99), st.integers(0, 2**40))


@given(st.integers(0, 2**40), samples, st.lists(samples, max_size=4), st.integers(0, 5))
@example(0, (0, 1), [(0, 0)], 1)  # half a 64-bit word drawn for another sample
def test_a_sample_has_the_same_numbers_whatever_was_drawn_before(seed, sample, before, draws):
    ours = SampleRng(seed)
    for other in before:
        ours.of(*other).integers(0, 9, draws, dtype=np.int32)
    epoch, index = sample
    key = np.random.SeedSequence((seed, epoch)).generate_state(2, np.uint64)
    afresh = np.random.Generator(np.random.Philox(key=key, counter=[0, index, 0, 0]))
    assert np.array_equal(ours.of(epoch, index).random(9, np.float32), afresh.random(9, np.float32))


def test_samples_epochs_and_seeds_have_numbers_of_their_own():
    places = [(seed, epoch, index) for seed in (0, 1) for epoch in (0, 1) for index in (0, 1, 2**40)]
    drawn = np.array([SampleRng(seed).of(epoch, index).random(50) for seed, epoch, index in places])
    assert abs(np.corrcoef(drawn) - np.eye(len(places))).max() < 0.6


@given(st.integers(0, 2000), st.integers(1, 70), worlds)
def test_batches_cover_every_id_and_all_ranks_step_alike(num_ids, batch_size, world_size):
    result = batch_sizes(num_ids, batch_size, world_size)
    assert result.sum() == num_ids
    assert len(result) % world_size == 0
    rounds = result.reshape(-1, world_size)
    assert (rounds.max(axis=1) - rounds.min(axis=1) <= 1).all()
    assert result.max(initial=0) <= batch_size + 1
    if num_ids >= world_size:
        assert result.min(initial=1) >= 1


@given(st.integers(20, 300), st.integers(0, 40), st.integers(1, 16), worlds, st.integers(1, 3), st.floats(0, 1))
def test_the_plan_holds_every_remaining_id_exactly_once(train, validation, batch, world, epochs, share):
    consumed = np.random.default_rng(0).random(train) < share
    plan = StreamPlan(StreamSpec(train, validation, batch, 7, epochs=epochs), Position(0, consumed), world)
    for segment in plan.segments:
        ids = plan.segment_ids(segment.number)
        bounds = [plan.bounds(segment.number, b) for b in range(segment.num_batches)]
        seen = np.concatenate([ids[a:b] for a, b in bounds]) if bounds else np.zeros(0, dtype=int)
        if segment.split == "validation":
            expected = np.arange(validation)
        else:
            expected = np.flatnonzero(~consumed) if segment.epoch == 0 else np.arange(train)
        assert sorted(seen) == expected.tolist()


@given(st.integers(8, 200), st.integers(1, 8), st.integers(1, 60), worlds)
def test_a_run_of_steps_has_just_that_many(train, batch, steps, world):
    plan = StreamPlan(StreamSpec(train, 0, batch, 0, steps=steps), Position(), world)
    assert plan.total_steps == steps
    assert sum(s.num_batches for s in plan.segments) == steps * world


def test_the_order_does_not_depend_on_the_shape_of_the_cluster():
    spec = StreamSpec(100, 0, 8, 5, epochs=2)
    one, four = (StreamPlan(spec, Position(), world) for world in (1, 4))
    for number in range(2):
        assert np.array_equal(one.segment_ids(number), four.segment_ids(number))


def test_a_resumed_epoch_keeps_the_order_of_what_is_left():
    spec = StreamSpec(50, 0, 8, 5, epochs=1)
    whole = StreamPlan(spec, Position(), 1).segment_ids(0)
    consumed = np.zeros(50, dtype=bool)
    consumed[whole[:20]] = True
    assert np.array_equal(StreamPlan(spec, Position(0, consumed), 2).segment_ids(0), whole[20:])
