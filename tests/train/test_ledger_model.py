"""A run that is checkpointed, killed and gone on with, on any ranks, against plain sets: each sample exactly once."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from plan_model import TAILS, consumed_ids, own_samples, passes, samples_of, specs
from ranks import EXAMPLES

from raytrain.data.order import Segment, StreamPlan, StreamSpec
from raytrain.data.router import Router
from raytrain.run.rank import position_of
from raytrain.train.checkpoints.shelf import Facts
from raytrain.train.contract import Restored
from raytrain.train.ledger import Ledger

few = settings(deadline=None, max_examples=80)


class Reference:
    """What a run has trained on, as sets; `skipped` samples had no update, and come again only within the epoch."""

    def __init__(self) -> None:
        self.done, self.skipped, self.lost, self.owed = set(), set(), set(), set()

    def step(self, samples: set, skipped: bool) -> None:
        assert not samples & (self.done | self.skipped | self.lost), "twice"
        (self.skipped if skipped else self.done).update(samples)

    def end(self, epoch_samples: set, carries: bool) -> int:
        """Of an epoch; how many no step had."""
        left = (epoch_samples | self.owed) - self.done - self.skipped
        self.lost |= self.skipped | (set() if carries else left)
        self.skipped, self.owed = set(), left if carries else set()
        return len(left)

    def copy(self, restored: bool) -> Reference:
        other = Reference()
        other.done, other.lost, other.owed = set(self.done), set(self.lost), set(self.owed)
        other.skipped = set() if restored else set(self.skipped)
        return other


class Lineage:
    """The code under test, put together as a run does it (run.rank, data.feed, train.context), without processes."""

    def __init__(self, spec: StreamSpec, random):
        self.spec, self.random, self.model = spec, random, Reference()
        self.kept = Facts(0, 0, 0, 0, 0, "f", 0, 1), io.BytesIO(), self.model
        self.steps_had: list[frozenset] = []  # of the lineage that goes on
        self.begin(spec, 1, fresh=True)

    @property
    def over(self) -> bool:
        return self.at == len(self.plan.segments)

    def begin(self, spec: StreamSpec, world: int, *, fresh: bool = False) -> None:
        """As a run that finds the last checkpoint, with other ranks or batches."""
        facts, file, model = self.kept
        file.seek(0)
        restored = None if fresh or not file.getbuffer() else Restored(facts, torch.load(file, weights_only=True))
        position, steps = position_of(restored)
        assert len(file.getvalue()) < 2500 + spec.num_train // 8
        self.spec, self.model, self.steps = spec, model.copy(restored=True), steps
        self.steps_had = self.steps_had[:steps]
        self.plan = StreamPlan(spec, position, world, steps)
        self.router, self.at, self.round = Router(self.plan), 0, 0
        arrivals = [tuple(place) for place in self.plan.places().tolist()]
        self.random.shuffle(arrivals)
        for segment, batch in arrivals:
            self.router.arrive(segment, batch, None)
        self.ledgers = [Ledger(spec.num_train, position.consumed, position.owed) for _ in range(world)]
        self._settle()

    def step(self, skipped: bool = False) -> None:
        """Of all ranks; the epoch ends with a checkpoint."""
        part, world = self.plan.segments[self.at], self.plan.world_size
        samples: set = set()
        for rank, (queue, ledger) in enumerate(zip(self.router.queues, self.ledgers, strict=True)):
            segment, batch, _ = queue.popleft()
            assert segment == part.number
            assert not self.spec.is_global or batch == self.round * world + rank
            fresh = self._fresh(part, batch)
            had = {*samples_of(self.plan, part, fresh)}
            assert len(had) == len(fresh) and not had & samples
            samples |= had
            if not skipped:
                middle = self.random.randrange(len(fresh) + 1)  # some could not be prepared: they are done with as well
                ledger.add(fresh[middle:])
                ledger.add(fresh[:middle])
        self.model.step(samples, skipped)
        self.steps_had.append(frozenset(samples))
        self.steps, self.round = self.steps + 1, self.round + 1
        self._settle()

    def _fresh(self, part: Segment, batch: int) -> np.ndarray:
        """Keys of a batch, but for those that an earlier one of the epoch has."""
        start, stop = self.plan.bounds(part.number, batch)
        return self.plan.segment_keys(part.number)[start : min(stop, max(part.num_ids - part.repeated, start))]

    def _settle(self) -> None:
        """Whatever comes before the next step: ends of epochs, and validation."""
        while not self.over and self.round * self.plan.world_size == self.plan.segments[self.at].num_batches:
            part = self.plan.segments[self.at]
            self.at, self.round = self.at + 1, 0
            if part.split == "validation":
                continue
            self._skip_validation()
            if part.whole:
                left = self.model.end({*own_samples(self.spec, part.epoch)}, part.carried > 0)
                assert left == part.dropped + part.carried
                self.ledgers = [
                    Ledger(self.spec.num_train, owed=self.plan.after(part.number)) for _ in range(self.plan.world_size)
                ]
            self.save(part.epoch + part.whole)

    def _skip_validation(self) -> None:
        if self.over or (part := self.plan.segments[self.at]).split == "train":
            return
        for queue in self.router.queues:
            for _ in range(part.num_batches // self.plan.world_size):
                assert queue.popleft()[0] == part.number
        self.at += 1

    @property
    def epoch(self) -> int:
        return self.plan.segments[self.at].epoch

    def save(self, epoch: int | None = None) -> None:
        epoch = self.epoch if epoch is None else epoch
        own = np.sum([ledger.own for ledger in self.ledgers], axis=0, dtype=np.uint8)
        counts, paid = [each.num_own for each in self.ledgers], [each.paid for each in self.ledgers]
        consumed, owed = self.ledgers[-1].union(own, counts, paid)
        assert consumed_ids(consumed) == {i for at, i in self.model.done if at == epoch}
        assert {(epoch - 1, i) for i in owed.tolist()} == self.model.owed - self.model.done
        file = io.BytesIO()
        torch.save({"consumed": torch.from_numpy(consumed), "owed": torch.from_numpy(owed)}, file)
        self.kept = Facts(epoch, self.steps, 0, 0, 0, "f", 0, 1), file, self.model.copy(restored=False)

    def check_the_end(self) -> None:
        due = {sample for epoch in range(self.spec.epochs) for sample in own_samples(self.spec, epoch)}
        assert self.model.done | self.model.lost == due and not self.model.done & self.model.lost
        assert not self.model.owed - self.model.done


def one_length(spec: StreamSpec) -> StreamSpec:
    return spec if spec.epochs else replace(spec, steps=None, epochs=3)


def steps_of_one_process(spec: StreamSpec) -> list[frozenset]:
    """The samples of every step, as one rank has them with batches of that size; what is repeated counts once."""
    model = passes(replace(spec, is_global=False), 1)
    found = []
    for each in model:
        had: set = set()
        for batch in each.batches if each.split == "train" else ():
            found.append(frozenset(batch) - had)
            had |= {*batch}
    return found


class KilledAndGoneOn(RuleBasedStateMachine):
    """Steps, checkpoints and restarts in any order, twice in a row too."""

    @initialize(
        spec=st.sampled_from(TAILS).flatmap(lambda tail: specs(tails=(tail,), most=20, validation=3)).map(one_length),
        random=st.randoms(use_true_random=False),
    )
    def start(self, spec, random):
        self.run, self.spec, self.as_planned = Lineage(spec, random), spec, spec.is_global

    @rule(count=st.integers(1, 4))
    def steps(self, count):
        for _ in range(count):
            if not self.run.over:
                self.run.step()

    @precondition(lambda self: not self.run.over)
    @rule()
    def a_step_without_an_update(self):
        self.run.step(skipped=True)

    @precondition(lambda self: not self.run.over)
    @rule()
    def a_checkpoint(self):
        self.run.save()

    @rule(world=st.integers(1, 4))
    def killed_and_gone_on(self, world):
        self.as_planned &= not self.run.kept[2].skipped  # else those come first now
        self.go_on(self.run.spec, world)

    @rule(world=st.integers(1, 4), is_global=st.booleans(), factor=st.integers(1, 2))
    def gone_on_with_another_batch(self, world, is_global, factor):
        size = 12 * factor if is_global else factor
        buckets = self.run.spec.buckets and replace(self.run.spec.buckets, batch_size=size)
        self.as_planned = False
        self.go_on(replace(self.run.spec, batch_size=size, is_global=is_global, buckets=buckets), world)

    def go_on(self, spec: StreamSpec, world: int) -> None:
        if spec.batch_size * (1 if spec.is_global else world) <= spec.num_train:  # else the run is refused
            self.run.begin(spec, world)

    def teardown(self):
        if not hasattr(self, "run"):
            return
        while not self.run.over:
            self.run.step()
        self.run.check_the_end()
        if self.as_planned:
            assert self.run.steps_had == steps_of_one_process(self.spec), "whatever the ranks were"


TestKilledAndGoneOn = KilledAndGoneOn.TestCase
TestKilledAndGoneOn.settings = settings(deadline=None, max_examples=int(80 * EXAMPLES), stateful_step_count=20)


@pytest.mark.parametrize("is_global", [False, True], ids=["a rank's batch", "a global batch"])
@pytest.mark.parametrize("tail", TAILS)
def test_gone_on_with_after_any_step_on_any_ranks(tail, is_global):
    """Every step of two epochs, and the ends of both."""
    import random

    spec = StreamSpec(21, 2, 8 if is_global else 2, 1, epochs=2, tail=tail, is_global=is_global)
    worlds = (1, 2, 4)
    for before in worlds:
        count = 0
        while True:
            run = Lineage(spec, random.Random(count))
            run.begin(spec, before)
            for _ in range(count):
                run.step()
            if run.over:
                break
            run.save()
            for after in worlds:
                other = Lineage(spec, run.random)
                other.kept, other.steps_had = run.kept, run.steps_had
                other.begin(spec, after)
                while not other.over:
                    other.step()
                other.check_the_end()
                if is_global:
                    assert other.steps_had == steps_of_one_process(spec)
            count += 1
        assert count == sum(len(each.batches) for each in passes(spec, before) if each.split == "train") // before


keys = st.integers(0, 19)


@few
@given(
    st.sets(st.integers(0, 9)),
    st.permutations(range(10)).map(lambda ids: ids[:4]),
    st.lists(st.tuples(st.integers(0, 2), st.lists(keys, max_size=5)), max_size=8),
)
def test_a_ledger_is_a_set_that_refuses_what_it_has(before, owed, added):
    ledgers, own = [Ledger(10, np.packbits(np.isin(np.arange(10), [*before])), owed) for _ in range(3)], [set()] * 3
    gone = before | {10 + index for index in range(10) if index not in owed}
    for rank, some in added:
        if len(set(some)) < len(some) or (own[rank] | gone) & set(some):
            with pytest.raises(AssertionError, match="consumed twice"):
                ledgers[rank].add(np.array(some, np.int64))
            return
        ledgers[rank].add(np.array(some, np.int64))
        own[rank] = own[rank] | set(some)
        for ledger, has in zip(ledgers, own, strict=True):
            assert consumed_ids(ledger.consumed) == before | {key for key in has if key < 10}
            assert ledger.owed.tolist() == [index for index in owed if index + 10 not in has]
