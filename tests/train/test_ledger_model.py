"""The ledger against plain sets, through saves, interruptions and other numbers of ranks."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_model import TAILS, mask_of, num_ranks, own_samples, samples_of, specs

from raytrain.data.order import Position, StreamPlan
from raytrain.data.router import Router
from raytrain.train.ledger import Ledger

few = settings(deadline=None, max_examples=80)


class Run:
    """A run as it would be found after a crash: what the last checkpoint says, and a model of what was trained on."""

    def __init__(self, spec):
        self.spec = spec
        self.saved = (Position(), Counter(), 0, 0)  # with samples that no step had, and repeated ones

    @property
    def over(self) -> bool:
        return self.saved[0].epoch >= self.spec.epochs

    def attempt(self, world: int, steps: int | None, every: int, random) -> None:
        """So many steps from the last save on, saved after every so many and at the end of an epoch; then a crash."""
        position, times, dropped, repeated = self.saved
        times = Counter(times)
        plan = StreamPlan(self.spec, position, world)
        router = Router(plan)
        arrivals = [tuple(place) for place in plan.places().tolist()]
        random.shuffle(arrivals)
        for segment, batch in arrivals:
            router.arrive(segment, batch, None)
        ledgers = [Ledger(self.spec.num_train, position.consumed) for _ in range(world)]
        for part in plan.segments:
            keys = plan.segment_keys(part.number)
            for step in range(1, part.num_batches // world + 1):
                if steps == 0:
                    return
                for queue, ledger in zip(router.queues, ledgers, strict=True):
                    segment, batch, _ = queue.popleft()
                    assert segment == part.number
                    if part.split == "validation":
                        continue
                    start, stop = plan.bounds(segment, batch)
                    fresh = keys[start : min(stop, part.num_ids - part.repeated)]
                    repeated += stop - max(start, min(stop, part.num_ids - part.repeated))
                    middle = random.randrange(len(fresh) + 1)  # some could not be prepared: they are done with as well
                    ledger.add(fresh[middle:])
                    ledger.add(fresh[:middle])
                    times.update(samples_of(plan, part, fresh))
                if part.split == "validation":
                    continue
                steps = None if steps is None else steps - 1
                if step % every == 0:
                    self.save(part.epoch, ledgers, times, dropped, repeated)
            if part.split == "train":
                dropped += part.dropped
                ledgers = [Ledger(self.spec.num_train, plan.after(part.number)) for _ in range(world)]
                self.save(part.epoch + 1, ledgers, times, dropped, repeated, part.carried)

    def save(self, epoch, ledgers, times, dropped, repeated, carried=None) -> None:
        packed = [ledger.packed() for ledger in ledgers]
        unions = [ledger.union(packed) for ledger in ledgers]
        assert all(np.array_equal(each, unions[0]) for each in unions), "whichever rank writes it"
        spec, done = self.spec, set(times)
        if epoch and carried is None:  # what was not carried over into the epoch is done with
            carried_into = {(epoch - 1, i) for i in range(spec.num_train)}
            owed = carried_into - done if spec.tail == "carry" else set()
            done |= carried_into - owed
        elif carried is not None:
            before = set(own_samples(spec, epoch - 1))
            owed = before - done if spec.tail == "carry" else set()
            assert len(owed) == (carried if spec.tail == "carry" else 0)
            done |= before - owed
        else:
            done |= {(-1, i) for i in range(spec.num_train)}
        assert np.array_equal(unions[0], mask_of(spec, epoch, done))
        self.saved = (Position(epoch, unions[0]), Counter(times), dropped, repeated)


@pytest.mark.parametrize("tail", TAILS)
@settings(few, max_examples=50)
@given(random=st.randoms(use_true_random=False), data=st.data())
def test_each_sample_is_trained_on_once_however_often_the_run_is_interrupted(tail, random, data):
    spec = data.draw(specs(tails=(tail,), most=30, validation=6))
    if spec.epochs is None:
        spec = replace(spec, steps=None, epochs=3)
    run = Run(spec)
    for _ in range(data.draw(st.integers(0, 5))):
        if not run.over:
            run.attempt(
                data.draw(st.integers(1, 4)), data.draw(st.integers(0, 7)), data.draw(st.integers(1, 4)), random
            )
    if not run.over:
        run.attempt(data.draw(num_ranks), None, 3, random)
    position, times, dropped, repeated = run.saved
    assert run.over and position.epoch == spec.epochs
    due = {sample for epoch in range(spec.epochs) for sample in own_samples(spec, epoch)}
    assert set(times) <= due and set(times.values()) <= {1}
    assert len(due - set(times)) == dropped
    assert spec.tail == "drop_last" or dropped == 0
    assert spec.tail == "pad" or repeated == 0


keys = st.integers(0, 19)


@few
@given(st.none() | st.sets(keys), st.lists(st.tuples(st.integers(0, 2), st.lists(keys, max_size=5)), max_size=8))
def test_a_ledger_is_a_set_that_refuses_what_it_has(before, added):
    mask = None if before is None else np.isin(np.arange(20), list(before))
    ledgers, own = [Ledger(10, mask) for _ in range(3)], [set() for _ in range(3)]
    before = set(range(10, 20)) if before is None else before
    for rank, some in added:
        if len(set(some)) < len(some) or (own[rank] | before) & set(some):
            with pytest.raises(AssertionError, match="consumed twice"):
                ledgers[rank].add(np.array(some, np.int64))
        else:
            ledgers[rank].add(np.array(some, np.int64))
            own[rank] |= set(some)
        for ledger, has in zip(ledgers, own, strict=True):
            assert set(np.flatnonzero(ledger.mask)) == before | has
    packed = [ledger.packed() for ledger in ledgers]
    if sum(map(len, own)) == len(set().union(*own)):
        assert set(np.flatnonzero(ledgers[0].union(packed))) == before.union(*own)
    else:
        with pytest.raises(AssertionError, match="two ranks consumed the same sample"):
            ledgers[0].union(packed)
