"""The plan of the stream is that of a small model, from any position, with any ledger, on any number of ranks."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_model import TAILS, num_ranks, own_samples, passes, planned, positions, samples_of, shared_out, specs

from raytrain.data.order import SampleRng, batch_sizes, remaining

few = settings(deadline=None, max_examples=80)


@pytest.mark.parametrize("tail", TAILS)
@settings(few, max_examples=60)
@given(world=num_ranks, data=st.data())
def test_a_plan_is_the_models_batch_by_batch(tail, world, data):
    spec = data.draw(specs(tails=(tail,)))
    epoch, done = data.draw(positions(spec))
    steps = data.draw(st.integers(0, spec.steps - 1)) if spec.steps else 0
    plan, model = planned(spec, world, epoch, done, steps), passes(spec, world, epoch, done, steps)
    assert [(part.epoch, part.split, part.whole) for part in plan.segments] == [
        (each.epoch, each.split, each.whole) for each in model
    ]
    for part, each in zip(plan.segments, model, strict=True):
        keys = plan.segment_keys(part.number)
        bounds = [plan.bounds(part.number, batch) for batch in range(part.num_batches)]
        assert [samples_of(plan, part, keys[start:stop]) for start, stop in bounds] == each.batches
        assert part.sizes.tolist() == [len(batch) for batch in each.batches]
        assert part.num_ids == len(keys) == len(each.samples)
        assert (part.dropped, part.repeated, part.carried) == (each.dropped, each.repeated, len(each.left_over))
        alike = [size == part.sizes[0] for size in part.sizes]
        assert part.num_alike == (alike.index(False) if False in alike else len(alike))
    train = [each for each in model if each.split == "train"]
    assert plan.total_steps == steps + sum(len(each.batches) for each in train) // world
    assert plan.num_epochs == epoch + len(train)
    places = [[number, batch] for number, each in enumerate(model) for batch in range(len(each.batches))]
    assert plan.places().tolist() == places
    assert plan.total_batches == len(places)


@pytest.mark.parametrize("tail", TAILS)
@settings(few, max_examples=60)
@given(world=num_ranks, data=st.data())
def test_what_follows_an_epoch_is_what_it_left_over(tail, world, data):
    """Whoever starts at the next epoch with `after` has the rest of the plan that went through."""
    spec = data.draw(specs(tails=(tail,)))
    epoch, done = data.draw(positions(spec))
    plan, model = planned(spec, world, epoch, done), passes(spec, world, epoch, done)
    steps = 0
    for part, each in zip(plan.segments, model, strict=True):
        if part.split == "validation":
            continue
        steps += part.num_batches // world
        after = plan.after(part.number)
        owed = {(part.epoch, index) for index in after.tolist()}
        assert owed == set(each.left_over)
        assert after.tolist() == [i for _, i in own_samples(spec, part.epoch) if (part.epoch, i) in owed], "in order"
        if not owed:
            continue
        kept = own_samples(spec, part.epoch + 1) + own_samples(spec, part.epoch)
        rest = planned(spec, world, part.epoch + 1, {s for s in kept if s[0] == part.epoch and s not in owed}, steps)
        later = [p for p in plan.segments if p.epoch > part.epoch]
        assert [samples_of(rest, p) for p in rest.segments] == [samples_of(plan, p) for p in later]


@pytest.mark.parametrize("tail", TAILS)
@settings(few, max_examples=60)
@given(world=num_ranks, data=st.data())
def test_every_id_comes_exactly_once_but_for_what_the_tail_says(tail, world, data):
    spec = data.draw(specs(tails=(tail,)))
    epoch, done = data.draw(positions(spec))
    plan = planned(spec, world, epoch, done)
    train = [part for part in plan.segments if part.split == "train"]
    given_out = Counter(sample for part in train for sample in samples_of(plan, part))
    whole = [part for part in train if part.whole]
    due = {sample for part in train for sample in own_samples(spec, part.epoch)}
    if done is not None:
        due = (due | (set(own_samples(spec, epoch - 1)) if epoch else set())) - done
    assert set(given_out) <= due | (set(own_samples(spec, epoch)) if spec.tail == "pad" else set())
    repeated = sum(part.repeated for part in whole)
    assert sum(given_out.values()) - len(set(given_out) & due) == repeated
    if len(whole) == len(train):
        missing = due - set(given_out)
        at_the_end = train[-1].carried if train else 0
        assert len(missing) == sum(part.dropped for part in whole) + at_the_end
    for part in train:
        assert part.num_batches % world == 0, "all ranks step alike"
        if spec.tail != "share" and part.carried + part.dropped + part.repeated:
            assert set(part.sizes.tolist()) <= {plan.batch_size}


@few
@given(st.integers(0, 300), st.integers(1, 12), num_ranks)
def test_batch_sizes_are_the_models(count, batch_size, world):
    assert batch_sizes(count, batch_size, world).tolist() == [
        len(batch) for batch in shared_out(list(range(count)), batch_size, world)
    ]


@few
@given(specs(tails=("share",)), num_ranks, num_ranks, st.data())
def test_the_order_and_its_seeds_are_those_of_no_shape(spec, world, other, data):
    """Of a run of whole epochs, whatever the ranks: the same samples in the same order, and each one's own numbers."""
    epoch, done = data.draw(positions(spec))
    one, two = (planned(spec, size, epoch, done) for size in (world, other))
    for first, second in zip(one.segments, two.segments, strict=False):
        pair = [samples_of(plan, part) for plan, part in ((one, first), (two, second))]
        length = min(map(len, pair))
        assert pair[0][:length] == pair[1][:length]
    some = [sample for part in one.segments if part.split == "train" for sample in samples_of(one, part)][:20]
    there, back = SampleRng(spec.seed), SampleRng(spec.seed)
    numbers = {sample: there.of(*sample).integers(0, 2**40) for sample in some}
    assert numbers == {sample: back.of(*sample).integers(0, 2**40) for sample in reversed(some)}
    assert len(set(numbers.values())) == len(set(some))


@few
@given(specs(), num_ranks, st.data())
def test_steps_that_are_settled_are_those_of_one_rank(spec, world, data):
    """Their samples, their order, and who comes when: also of what is left of a run that stands after any step."""
    if not spec.is_global:
        spec = replace(
            spec, is_global=True, batch_size=12 * spec.batch_size, num_train=12 * spec.num_train, buckets=None
        )
    one = steps_of(spec, planned(spec, 1))
    assert steps_of(spec, planned(spec, world)) == one
    done = data.draw(st.integers(0, len(one) - 1))
    epoch, step = one[done][:2]
    consumed = {sample for at, _, samples in one[:done] for sample in samples if at == epoch or sample[0] < epoch}
    consumed |= {(epoch - 1, i) for i in range(spec.num_train)} if spec.tail != "carry" else set()
    consumed |= set() if epoch else {(-1, i) for i in range(spec.num_train)}
    rest = steps_of(spec, planned(spec, world, epoch, consumed, done))
    assert [samples for *_, samples in rest] == [samples for *_, samples in one[done:]], step


def steps_of(spec, plan) -> list[tuple[int, int, frozenset]]:
    """Of training: epoch, step of it, and the samples of all ranks, in the order in which they come."""
    found = []
    for part in plan.segments:
        if part.split == "train":
            samples, ends = samples_of(plan, part), np.cumsum(part.sizes)[plan.world_size - 1 :: plan.world_size]
            for step, (start, stop) in enumerate(pairwise([0, *ends.tolist()])):
                found.append((part.epoch, step, frozenset(samples[start:stop])))
    return found


@few
@given(st.permutations(range(12)), st.sets(st.integers(0, 11)))
def test_what_remains_is_the_order_without_what_was_consumed(order, done):
    mask = np.isin(np.arange(12), list(done))
    assert remaining(np.array(order), mask).tolist() == [i for i in order if i not in done]
