"""The order of an epoch, the plan of the stream and the ledger: pure, and true for every size."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from plan_model import position

from raytrain.data.order import Groups, Position, SampleRng, StreamPlan, StreamSpec, batch_sizes, epoch_order
from raytrain.train.ledger import Ledger

sizes = st.integers(1, 400)
worlds = st.integers(1, 9)


@given(sizes, st.integers(0, 5), st.integers(0, 5))
def test_an_epoch_is_a_full_permutation(num_samples, seed, epoch):
    assert sorted(epoch_order(num_samples, seed, epoch)) == list(range(num_samples))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 9), st.integers(0, 3))
def test_an_epoch_over_row_groups_is_a_full_permutation_that_stays_near(group_sizes, window, seed):
    starts = np.concatenate([[0], np.cumsum(group_sizes)[:-1]])
    total = sum(group_sizes)
    order = epoch_order(total, seed, 0, Groups(starts, window))
    assert sorted(order) == list(range(total))
    groups = np.searchsorted(starts, order, side="right") - 1
    for group in range(len(group_sizes)):  # whoever reads a group meets it within a window's worth of samples
        places = np.flatnonzero(groups == group)
        assert places[-1] - places[0] < window * max(group_sizes)


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
    assert result.max(initial=0) <= batch_size
    assert list(result) == sorted(result, reverse=True)
    assert len(result) == -(-num_ids // (batch_size * world_size)) * world_size, "no more steps than full batches need"
    smaller = result[result < batch_size]
    assert len(smaller) <= 2 * world_size
    if num_ids >= 2 * world_size * min(batch_size, 3) and batch_size > 1:
        assert result.min(initial=batch_size) > 1 or batch_size <= 3
    if batch_size > 3 and num_ids >= 2 * world_size:
        assert np.ptp(smaller) <= 1 if len(smaller) else True, "evenly"
        assert (result > 1).all(), "no batch of a single sample, and none without"
    if batch_size > 1 and num_ids % 2 == 0:
        assert (result != 1).all()


@given(st.integers(0, 600), st.integers(1, 20), worlds)
def test_a_tail_is_cut_alike_wherever_an_epoch_goes_on(num_ids, batch_size, world_size):
    """Otherwise a resumed epoch would have other batches."""
    rounds = batch_sizes(num_ids, batch_size, world_size).reshape(-1, world_size)
    for done in range(len(rounds)):
        rest = batch_sizes(int(rounds[done:].sum()), batch_size, world_size)
        assert rest.tolist() == rounds[done:].reshape(-1).tolist()


def test_tails_by_hand():
    assert batch_sizes(130, 64, 2).tolist() == [33, 33, 32, 32]
    assert batch_sizes(129, 64, 1).tolist() == [64, 33, 32]
    assert batch_sizes(65, 64, 1).tolist() == [33, 32]
    assert batch_sizes(3, 8, 2).tolist() == [3, 0]
    assert batch_sizes(1, 8, 2).tolist() == [1, 0]
    assert batch_sizes(5, 2, 2).tolist() == [2, 2, 1, 0]
    assert batch_sizes(7, 3, 2).tolist() == [3, 2, 2, 0]
    assert batch_sizes(3, 1, 2).tolist() == [1, 1, 1, 0]


@given(st.integers(20, 300), st.integers(0, 40), st.integers(1, 16), worlds, st.integers(1, 3), st.floats(0, 1))
def test_the_plan_holds_every_remaining_id_exactly_once(train, validation, batch, world, epochs, share):
    consumed = np.random.default_rng(0).random(train) < share
    plan = StreamPlan(StreamSpec(train, validation, batch, 7, epochs=epochs), position(0, consumed), world)
    for segment in plan.segments:
        ids = plan.segment_keys(segment.number)
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
        assert np.array_equal(one.segment_keys(number), four.segment_keys(number))


def test_a_resumed_epoch_keeps_the_order_of_what_is_left():
    spec = StreamSpec(50, 0, 8, 5, epochs=1)
    whole = StreamPlan(spec, Position(), 1).segment_keys(0)
    consumed = np.isin(np.arange(50), whole[:20])
    assert np.array_equal(StreamPlan(spec, position(0, consumed), 2).segment_keys(0), whole[20:])


tails = st.sampled_from(["share", "drop_last", "pad", "carry"])


@settings(deadline=None)
@given(st.integers(1, 80), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4), tails, st.booleans())
def test_what_becomes_of_a_tail(train, batch, world, epochs, tail, grouped):
    """Counted sample by sample over a whole run: each once in its epoch, but for what was dropped or repeated."""
    train = max(train, batch * world)
    starts = Groups(np.arange(0, train, 7)) if grouped else None
    plan = StreamPlan(StreamSpec(train, 0, batch, 3, epochs=epochs, tail=tail, groups=starts), Position(), world)
    times = np.zeros((epochs, train), dtype=int)
    for part in plan.segments:
        keys = plan.segment_keys(part.number)
        assert len(keys) == part.num_ids == part.sizes.sum()
        earlier, ids = np.divmod(keys, train)
        np.add.at(times, (part.epoch - earlier, ids), 1)
        fresh = keys[: len(keys) - part.repeated]
        assert len(set(fresh)) == len(fresh)
        assert (earlier == sorted(earlier, reverse=True)).all(), "what was carried over comes first"
        full = (part.sizes == batch).all()
        assert full or tail == "share" or (tail == "carry" and part.epoch == epochs - 1)
        assert part.whole and part.carried < batch * world
    dropped, repeated = (sum(getattr(part, name) for part in plan.segments) for name in ("dropped", "repeated"))
    assert (times == 0).sum() == dropped and np.maximum(times - 1, 0).sum() == repeated
    assert dropped == (epochs * (train % (batch * world)) if tail == "drop_last" else 0)
    assert repeated == (epochs * (-train % (batch * world)) if tail == "pad" else 0)


@settings(deadline=None)
@given(st.integers(4, 60), st.integers(1, 6), st.integers(1, 3), st.integers(1, 3), tails, st.data())
def test_an_epoch_goes_on_where_it_was_left_on_another_cluster(train, batch, world, other, tail, data):
    """Left at any step, and again: what is still to come is what was not consumed, carried samples included."""
    train = max(train, batch * world, batch * other)
    spec = StreamSpec(train, 0, batch, 3, epochs=3, tail=tail)
    at, consumed, worlds = Position(), np.zeros((3, train), dtype=int), [world, other, world]
    lost = repeated = 0
    for attempt, size in enumerate(worlds):
        plan = StreamPlan(spec, at, size)
        steps = sum(part.num_batches for part in plan.segments) // size
        left = data.draw(st.integers(0, steps)) if attempt < 2 else steps
        for part in plan.segments:
            done = min(left, part.num_batches // size)
            left -= done
            count = int(part.sizes[: done * size].sum())
            over = done * size == part.num_batches
            keys = plan.segment_keys(part.number)[: min(count, part.num_ids - part.repeated)]
            earlier, ids = np.divmod(keys, train)
            np.add.at(consumed, (part.epoch - earlier, ids), 1)
            if over:
                lost, repeated = lost + part.dropped, repeated + part.repeated
                at = Position(part.epoch + 1, owed=plan.after(part.number))
                continue
            began = at if at.epoch == part.epoch else Position(part.epoch)
            ledger = Ledger(train, began.consumed, began.owed)
            ledger.add(keys)
            at = Position(part.epoch, ledger.consumed, ledger.owed)
            break
    assert consumed.max() <= 1
    assert (consumed == 0).sum() == lost


def test_what_is_carried_over_by_hand():
    plan = StreamPlan(StreamSpec(10, 0, 4, 0, epochs=3, tail="carry"), Position(), 1)
    assert [part.sizes.tolist() for part in plan.segments] == [[4, 4], [4, 4, 4], [4, 3, 3]]
    assert [part.carried for part in plan.segments] == [2, 0, 0]
    first, second = epoch_order(10, 0, 0), epoch_order(10, 0, 1)
    assert plan.segment_keys(0).tolist() == first[:8].tolist()
    assert plan.segment_keys(1).tolist() == [*(first[8:] + 10), *second]
    assert plan.after(0).tolist() == first[8:].tolist()
    assert not len(plan.after(1)) and not len(plan.after(2))


def test_the_rest_of_an_epoch_may_be_carried_over_as_a_whole():
    order = epoch_order(10, 0, 0)
    consumed = np.isin(np.arange(10), order[:8])
    plan = StreamPlan(StreamSpec(10, 0, 4, 0, epochs=2, tail="carry"), position(0, consumed), 1, 2)
    assert [part.sizes.tolist() for part in plan.segments] == [[], [4, 4, 4]]
    assert plan.segment_keys(1).tolist() == [*(order[8:] + 10), *epoch_order(10, 0, 1)]


def test_one_stored_run_is_shuffled_as_if_there_were_none():
    assert epoch_order(50, 1, 2, Groups(np.array([0]))).tolist() == epoch_order(50, 1, 2).tolist()


def test_steps_that_end_a_run_carry_and_drop_nothing():
    for tail in ("drop_last", "pad", "carry"):
        plan = StreamPlan(StreamSpec(10, 0, 4, 0, steps=1, tail=tail), Position(), 1)
        last = plan.segments[-1]
        assert plan.total_steps == 1
        assert not last.whole and (last.dropped, last.repeated, last.carried) == (0, 0, 0)


def test_parts_reading_and_batches_have_numbers_of_their_own():
    uses = [{}, {"part": 1}, {"part": 2}, {"reading": True}, {"batch": True}, {"part": 1, "batch": True}]
    drawn = [tuple(SampleRng(0).of(1, 7, **use).random(3)) for use in uses]
    assert len({*drawn}) == len(uses)
    ours = SampleRng(0)
    assert [tuple(ours.of(1, 7, **use).random(3)) for use in reversed(uses)] == drawn[::-1], "in whichever order"
