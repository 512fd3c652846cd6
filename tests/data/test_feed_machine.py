"""The feed under any interleaving of what ranks, workers and the driver do: nobody gets a batch twice, all ranks stop
at the same step, and an earlier attempt is told to end."""

from __future__ import annotations

from collections import deque

import pytest
from feed_by_hand import ByHand
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from plan_model import planned

from raytrain.data import feed as feeds
from raytrain.data.order import Position, StreamSpec
from raytrain.data.stream import FeedOptions
from raytrain.errors import TrainingError


class Rank:
    """What a rank's loader does of its own accord (see raytrain.device.loader), without a thread."""

    def __init__(self, feed: feeds.Feed, attempt: str, number: int, world: int):
        self.feed, self.attempt, self.number, self.world = feed, attempt, number, world
        self.buffer: deque = deque()
        self.steps, self.in_step, self.slow, self.ended, self.closing = 0, False, False, False, ""
        self.answer: int | None = None

    def fetch(self, most: int) -> list:
        """Once more from the feed, unless it has said that there is nothing more."""
        if self.closing:
            return []
        taken = self.feed.take(self.attempt, self.number, most)
        if taken.error is not None:
            assert taken.batches == []
            self.closing = "error"
            return []
        assert len(taken.batches) <= most
        self.closing = "stop" if taken.stop else "end" if taken.end else ""
        self.buffer.extend(taken.batches)
        return [(segment, batch) for segment, batch, _ in taken.batches]

    def heed(self, stop_at: int | None) -> bool:
        return stop_at is not None and (self.world == 1 or (self.slow and self.steps >= stop_at))

    def enter(self, tells: bool) -> None:
        """Begin the next step, or end; nothing when its batch has not come."""
        stops, self.answer = self.heed(self.answer), None
        if self.slow and not stops:
            stops = self.heed(self.feed.progress(self.attempt, self.number, {}, self.steps, True))
        elif tells:
            self.answer = self.feed.progress(self.attempt, self.number, {}, self.steps, False)
        if stops or (not self.buffer and self.closing):
            self.ended = True
        elif self.buffer:
            self.buffer.popleft()
            self.in_step = True


class FeedMachine(RuleBasedStateMachine):
    @initialize(
        world=st.sampled_from([2, 3, 1]),
        train=st.integers(20, 60),
        validation=st.integers(0, 6),
        epochs=st.integers(1, 2),
        slow=st.booleans(),
        last_acts=st.lists(st.integers(0, 8), min_size=1, max_size=30),
        stops_at_last=st.booleans(),
    )
    def start(self, world, train, validation, epochs, slow, last_acts, stops_at_last):
        self.last_acts, self.stops_at_last = last_acts, stops_at_last
        self.changed = pytest.MonkeyPatch()
        self.changed.setattr(feeds, "Stream", ByHand)
        self.changed.setattr(feeds, "prepare_tasks", lambda *_: None)
        self.changed.setattr(feeds, "TAKE_TIMEOUT_S", 0)
        self.spec = StreamSpec(train, validation, 2, 0, epochs=epochs)
        self.feed = feeds.Feed(self.spec, b"", FeedOptions(2, {}, None, 0.5))
        self.stale: list[Rank] = []
        self.ranks: list[Rank] = []
        self.attempts, self.stop, self.fatal = 0, False, None
        self.begin(world, 0, slow)

    def begin(self, world, epoch, slow=False):
        before = self.feed._stream
        if self.fatal is not None:
            assert self.feed.begin("too late", Position(epoch), world, epoch) is self.fatal
            return
        untouched = before is not None and not self.given
        self.stale += self.ranks
        self.attempts += 1
        attempt = f"attempt {self.attempts}"
        answer = self.feed.begin(attempt, Position(epoch), world, epoch)
        assert answer is self.feed._stream.plan
        expected = planned(self.spec, world, epoch, None, epoch)
        assert answer.places().tolist() == expected.places().tolist()
        adopted = untouched and (before.plan.world_size, before.plan.position.epoch) == (world, epoch)
        assert (self.feed._stream is before) == adopted
        if not adopted:
            assert before is None or (before.abandoned and self.feed._stream.after is before)
            self.coming = [tuple(place) for place in answer.places().tolist()]
        self.given: set[tuple[int, int]] = set()
        self.results: dict[int, dict] = {}
        self.ranks = [Rank(self.feed, attempt, number, world) for number in range(world)]
        for rank in self.ranks:
            rank.slow = slow

    @rule(world=st.sampled_from([2, 3, 1]), later=st.booleans(), slow=st.booleans(), sure=st.integers(0, 3))
    def a_new_attempt_begins(self, world, later, slow, sure):
        if sure == 3:  # most do not fail so soon
            self.begin(world, min(later, self.spec.epochs - 1), slow)

    @precondition(lambda self: self.coming)
    @rule(data=st.data(), count=st.integers(1, 20))
    def batches_arrive(self, data, count):
        for _ in range(min(count, len(self.coming))):
            segment, batch = self.coming.pop(data.draw(st.integers(0, min(4, len(self.coming) - 1))))
            self.feed._stream.fill([batch], segment)

    @precondition(lambda self: self.ranks)
    @rule(data=st.data(), most=st.sampled_from([1, 2, 9]))
    def a_rank_fetches(self, data, most):
        self.fetch(data.draw(st.sampled_from(self.ranks)), most)

    def fetch(self, rank, most):
        batches = rank.fetch(most)
        assert self.given.isdisjoint(batches), "a batch is given out twice"
        assert self.fatal is None or not batches, "nobody gets a batch of a run that has failed"
        assert self.fatal is None or rank.closing
        self.given.update(batches)

    @precondition(lambda self: self.ranks and self.fatal is None)
    @rule(data=st.data(), tells=st.booleans(), most=st.integers(1, 2))
    def ranks_go_on(self, data, tells, most):
        """In any order, each to its next step as far as the others let it."""
        for rank in data.draw(st.lists(st.sampled_from(self.ranks), min_size=1, max_size=12)):
            if not rank.buffer:
                self.fetch(rank, most)
            self.go_on(rank, tells)

    def go_on(self, rank, tells=False):
        if rank.in_step or rank.ended:
            return
        rank.enter(tells)
        if rank.ended:
            assert not any(each.in_step for each in self.ranks), "the others wait for it in a step for ever"
            if rank.closing == "end":
                self.feed.finish(rank.attempt, rank.number, {"steps": rank.steps})
                self.results[rank.number] = {"steps": rank.steps}
        elif rank.in_step:
            assert not any(each.ended for each in self.ranks), "it waits in a step for those that have ended"
        if all(each.in_step for each in self.ranks):  # gradients are exchanged
            for each in self.ranks:
                each.steps, each.in_step = each.steps + 1, False

    @precondition(lambda self: self.ranks)
    @rule(data=st.data())
    def steps_become_slow(self, data):
        data.draw(st.sampled_from(self.ranks)).slow = True

    @precondition(lambda self: any(rank.steps or rank.in_step for rank in self.ranks))
    @rule(sure=st.booleans(), asking=st.lists(st.integers(0, 2), max_size=2))
    def the_driver_asks_for_a_stop(self, sure, asking):
        """While some are in a step and others are not, and some ask for more."""
        if sure:
            self.stop = True
            self.feed.request_stop()
            for number in asking:
                self.fetch(self.ranks[number % len(self.ranks)], 3)

    @precondition(lambda self: self.stale)
    @rule(data=st.data(), exact=st.booleans(), position=st.integers(0, 9))
    def an_earlier_attempt_speaks(self, data, exact, position):
        rank = data.draw(st.sampled_from(self.stale))
        before = self.feed.status()
        taken = self.feed.take(rank.attempt, rank.number, 3)
        assert taken.end and taken.batches == [] and "an earlier attempt" in str(taken.error)
        assert self.feed.progress(rank.attempt, rank.number, {"step": -1}, position, exact) is None
        self.feed.finish(rank.attempt, rank.number, {"steps": -1})
        self.feed.fail(rank.attempt, TrainingError("late words"))
        assert self.feed.status() == before, "it is not heard"

    @precondition(lambda self: self.ranks)
    @rule(data=st.data(), begun=st.booleans(), sure=st.lists(st.booleans(), min_size=4, max_size=4).map(all))
    def a_rank_fails(self, data, begun, sure):
        if sure:
            error = TrainingError("broken")
            rank = data.draw(st.sampled_from(self.ranks))
            self.feed.fail(rank.attempt if begun else None, error)
            self.fatal = self.fatal or error

    @invariant()
    def the_driver_is_told_what_is(self):
        if not hasattr(self, "feed"):
            return
        status = self.feed.status()
        assert (status.fatal, status.attempts) == (self.fatal, self.attempts)
        assert self.fatal is not None or status.results == self.results

    def act_and_stop(self):
        """The last acts, some ahead of others; then perhaps a stop, of which a fetch may be the first to hear."""
        for act in self.last_acts:
            rank = self.ranks[act % len(self.ranks)]
            if act < 3:
                self.fetch(rank, 1 + act)
            else:
                self.go_on(rank)
        if self.stops_at_last:
            self.stop = True
            self.feed.request_stop()
            if self.last_acts[0] % 2:
                self.fetch(self.ranks[self.last_acts[-1] % len(self.ranks)], 1)

    def teardown(self):
        """All that is still to come comes; then everyone is at the same step."""
        if not hasattr(self, "feed"):
            return
        self.changed.undo()
        self.changed.setattr(feeds, "TAKE_TIMEOUT_S", 0)
        while self.coming:
            segment, batch = self.coming.pop()
            self.feed._stream.fill([batch], segment)
        if self.fatal is None:
            self.act_and_stop()
        for _ in range(200):
            for rank in self.ranks:
                self.fetch(rank, 64)
                if self.fatal is None:
                    self.go_on(rank)
        self.changed.undo()
        if self.fatal is None:
            assert all(rank.ended for rank in self.ranks), "somebody waits for ever"
            assert len({rank.steps for rank in self.ranks}) == 1, "not all stopped at the same step"
            plan = self.feed._stream.plan
            if not self.stop:
                assert len(self.given) == plan.total_batches
                assert self.ranks[0].steps == plan.total_batches // plan.world_size


TestFeed = FeedMachine.TestCase
TestFeed.settings = settings(deadline=None, max_examples=150, stateful_step_count=50)
