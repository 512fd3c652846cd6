"""What the feed decides, with a stream that nobody fills but the test: who gets which batch, when all stop, what ends a
run."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from feed_by_hand import ByHand
from plan_model import position

from raytrain.data import feed as feeds
from raytrain.data.order import Position, StreamPlan, StreamSpec
from raytrain.data.placement.hosts import HostsLost
from raytrain.data.stream import FeedOptions, most_corrupt
from raytrain.errors import DataError, TrainingError
from raytrain.record.status import Failure, RankProcess


@pytest.fixture
def make(monkeypatch):
    monkeypatch.setattr(feeds, "Stream", ByHand)
    monkeypatch.setattr(feeds, "prepare_tasks", lambda *_: None)
    monkeypatch.setattr(feeds, "TAKE_TIMEOUT_S", 0.05)

    def feed(world_size=1, num_train=40, max_corrupt=2, **spec):
        made = feeds.Feed(
            StreamSpec(num_train, 10, 4, 0, **({"epochs": 2} | spec)),
            b"",
            FeedOptions(2, {}, None, max_corrupt / num_train),
        )
        made.begin("a", Position(), world_size, 0)
        return made

    return feed


def numbers(taken):
    return [batch for _, batch, _ in taken.batches]


def test_a_rank_takes_what_is_its_own_in_order_and_no_more_than_it_asked_for(make):
    feed = make(world_size=2)
    feed._stream.fill(range(6))
    assert numbers(feed.take("a", 0, 2)) == [0, 2]
    assert numbers(feed.take("a", 1, 9)) == [1, 3, 5]
    assert numbers(feed.take("a", 0, 9)) == [4]
    assert feed._stream.taken == [3, 3]
    nothing = feed.take("a", 0, 9)
    assert (nothing.batches, nothing.end, nothing.stop, nothing.error) == ([], False, False, None), (
        "it waits, then asks"
    )
    assert feed.take("a", 0, 1).batches == []


def test_a_rank_waits_for_its_first_batch_and_is_woken(make, monkeypatch):
    monkeypatch.setattr(feeds, "TAKE_TIMEOUT_S", 60)
    feed = make()
    got = []
    waiting = threading.Thread(target=lambda: got.append(feed.take("a", 0, 4)))
    waiting.start()
    with feed._changed:
        feed._stream.fill([0])
        feed._changed.notify_all()
    waiting.join(20)
    assert numbers(got[0]) == [0]


def test_the_last_batch_is_the_end(make):
    feed = make(epochs=1)
    feed._stream.fill(range(10))
    taken = feed.take("a", 0, 64)
    assert len(taken.batches) == 10 and not taken.end, "validation is still to come"
    feed._stream.fill(range(3), segment=1)
    assert not feed.take("a", 0, 2).end
    assert feed.take("a", 0, 2).end


def test_a_worker_of_an_earlier_attempt_gets_nothing(make):
    feed = make()
    feed._stream.fill(range(3))
    feed.begin("b", Position(), 1, 0)
    taken = feed.take("a", 0, 4)
    assert taken.end and "this rank belongs to an earlier attempt" in str(taken.error)
    feed.finish("a", 0, {"steps": 1})
    feed.fail("a", TrainingError("late words"))
    assert feed.status().results == {} and feed.status().fatal is None
    feed.finish("b", 0, {"steps": 2})
    assert feed.status().results == {0: {"steps": 2}}
    feed.begin("c", Position(), 1, 0)
    assert feed.status().results == {}, "of the attempt that goes on"


def consumed(*ids, num=40):
    return position(0, np.isin(np.arange(num), ids))


def test_a_running_stream_is_adopted_where_it_stands_and_is_untouched(make):
    feed = make()
    first = feed._stream
    feed.begin("b", Position(), 1, 0)
    assert feed._stream is first and not first.abandoned
    assert feed.status().attempts == 2
    feed.begin("", Position(), 1, 0)
    assert feed.status().attempts == 2, "what the driver starts ahead is no attempt"
    for other in (
        (Position(1), 1, 10),
        (consumed(3), 1, 1),
        (consumed(4), 1, 1),
        (consumed(4), 2, 1),
        (Position(0, owed=np.array([4])), 2, 1),
        (Position(), 1, 0),
    ):
        before = feed._stream
        plan = feed.begin("x", *other)
        assert feed._stream is not before and before.abandoned and feed._stream.after is before
        assert plan is feed._stream.plan
        again = feed.begin("y", *other)
        assert again is plan, "and that one is adopted in turn"
    feed._stream.fill([0])
    feed.take("y", 0, 1)
    touched = feed._stream
    feed.begin("z", Position(), 1, 0)
    assert feed._stream is not touched, "a batch was taken"
    feed._stream.error = TrainingError("x")
    broken = feed._stream
    feed.begin("z", Position(), 1, 0)
    assert feed._stream is not broken


def test_a_stop_is_after_the_same_batch_for_all(make):
    feed = make(world_size=2)
    feed._stream.fill(range(8))
    assert feed.progress("a", 0, {"step": 1}, 2, True) is None
    feed.take("a", 0, 3)
    assert feed.progress("a", 1, {"step": 2}, 1, True) is None, "nobody asks for a stop"
    feed.request_stop()
    assert feed.progress("a", 1, {"step": 2}, 3, True) == 4, "the furthest finishes the step that it is in"
    assert feed.progress("a", 0, {"step": 9}, 9, True) == 4, "and that stands"
    taken = feed.take("a", 0, 9)
    assert (len(taken.batches), taken.stop) == (1, True)
    taken = feed.take("a", 1, 9)
    assert (len(taken.batches), taken.stop) == (4, True)
    assert feed.take("a", 1, 9).stop
    assert feed.status().progress[0] == {"step": 9}


def test_ranks_that_do_not_say_exactly_where_they_are_stop_at_what_is_given_out(make):
    feed = make(world_size=2)
    feed._stream.fill(range(8))
    for rank in (0, 1):
        feed.progress("a", rank, {}, 1, rank == 0)
    feed.take("a", 0, 3)
    assert not feed.take("a", 1, 1).stop
    feed.request_stop()
    assert len(feed.take("a", 1, 9).batches) == 2
    assert feed.take("a", 0, 9).stop
    feed.begin("b", Position(1), 2, 10)
    assert feed._stop_at is None, "of a new attempt nobody knows yet"
    assert feed.progress("b", 0, {}, 0, False) == 0, "it stops where it stands: nothing was given out"


def test_where_the_ranks_of_an_earlier_attempt_were_does_not_matter(make):
    feed = make()
    feed.progress("a", 0, {}, 5, True)
    feed.begin("b", Position(1), 1, 10)
    assert feed.progress("a", 0, {"step": 7}, 7, True) is None, "late words"
    assert feed.status().progress == {0: {}}
    feed.request_stop()
    taken = feed.take("b", 0, 9)
    assert (taken.batches, taken.stop) == ([], True)


def test_a_stop_does_not_wait_for_a_batch(make, monkeypatch):
    monkeypatch.setattr(feeds, "TAKE_TIMEOUT_S", 60)
    feed = make()
    feed.request_stop()
    began = time.monotonic()
    taken = feed.take("a", 0, 1)
    assert taken.stop and taken.batches == []
    assert time.monotonic() - began < 30


def process(node):
    return RankProcess(1, 0.0, node, "")


def test_ranks_leave_a_host_after_one_step_and_begin_anew(make):
    feed = make(world_size=2)
    feed._stream.fill(range(8))
    for rank, node in enumerate(("here", "there")):
        feed.at_work("a", rank, process(node))
        feed.progress("a", rank, {}, 2 + rank, True)
    feed.leave(["elsewhere"])
    assert feed.progress("a", 0, {}, 3, True) is None, "no rank is there"
    feed.leave(["there"])
    assert [feed.progress("a", rank, {}, 3, True) for rank in (0, 1)] == [4, 4]
    assert feed.finish("a", 0, None) and feed.finish("a", 1, None), "they begin anew"
    assert isinstance(feed.begin("b", Position(), 2, 4), StreamPlan), "which is no end of the run"
    feed.leave(["there"])
    assert feed.progress("b", 0, {}, 0, True) is None and not feed.finish("b", 0, None), "and not once more"


def test_a_stop_is_a_stop_though_the_ranks_were_to_begin_anew(make):
    feed = make()
    feed.at_work("a", 0, process("here"))
    feed.leave(["here"])
    feed.request_stop()
    feed.leave(["here"])
    assert not feed.finish("a", 0, None)
    feed.begin("b", Position(), 1, 4)
    assert feed.take("b", 0, 9).stop


def failure(number):
    return Failure(number, f"{number}.jpg", "ValueError: broken")


@pytest.mark.parametrize(
    ("share", "num_samples", "most"),
    [(0.01, 1000, 10), (0.01, 199, 1), (0.01, 99, 1), (0.01, 1, 1), (0.0, 1000, 0), (0.29, 100, 29), (1.0, 7, 7)],
)
def test_how_many_samples_may_fail(share, num_samples, most):
    assert most_corrupt(share, num_samples) == most


def test_samples_that_fail_are_counted_once_and_end_the_run_past_the_limit(make):
    feed = make(max_corrupt=2)
    feed.failures("train", [failure(1), failure(2)])
    feed.failures("train", [failure(2)])
    feed.failures("validation", [failure(1)])
    status = feed.status()
    assert status.fatal is None
    assert [(split, each.id) for split, each in status.failures] == [("train", 1), ("train", 2), ("validation", 1)]
    feed.failures("train", [failure(3)])
    assert isinstance(feed.status().fatal, DataError)
    assert str(feed.status().fatal) == (
        "3 of 40 train samples (7.50%) could not be prepared; data.max_corrupt_share: 0.05 allows 2 of them: "
        "1.jpg (ValueError: broken); 2.jpg (ValueError: broken); 3.jpg (ValueError: broken)"
    )
    feed.failures("train", [failure(4)])
    assert str(feed.status().fatal).startswith("3 of 40"), "the first word is the last"
    assert feed.take("a", 0, 1).error is feed.status().fatal
    assert feed.begin("b", Position(), 1, 0) is feed.status().fatal
    other = make()
    other.failures("validation", [failure(n) for n in range(5)])
    text = str(other.status().fatal)
    assert text.startswith("5 of 10 validation samples (50.00%)") and "allows 1 of them" in text
    assert text.endswith("2.jpg (ValueError: broken); …")


def failed_in(number, stage="speckle", reason="IndexError: tuple index out of range"):
    return Failure(number, f"{number}.jpg", reason, stage)


def test_a_stage_that_always_fails_in_the_same_way_is_named_in_place_of_the_samples(make):
    feed = make(max_corrupt=1)
    feed.failures("train", [failed_in(1), failed_in(2)])
    assert str(feed.status().fatal) == (
        "the stage `speckle` failed on 2 of 40 train samples (5.00%), always with IndexError: tuple index out of "
        "range; mend it, or what comes before it; data.max_corrupt_share: 0.025 allows 1 of them: "
        "1.jpg (`speckle`: IndexError: tuple index out of range); "
        "2.jpg (`speckle`: IndexError: tuple index out of range)"
    )


@pytest.mark.parametrize(
    "other",
    [failed_in(2, "blur"), failed_in(2, reason="ValueError: grey"), Failure(2, "2.jpg", failed_in(2).reason)],
    ids=["another stage", "another error", "decoding"],
)
def test_samples_that_fail_in_several_ways_are_counted_as_samples(make, other):
    feed = make(max_corrupt=1)
    feed.failures("train", [failed_in(1), other])
    assert str(feed.status().fatal).startswith("2 of 40 train samples (5.00%) could not be prepared; data.max_")


def test_the_first_error_ends_the_run(make):
    feed = make()
    feed.fail("a", TrainingError("one"))
    feed.fail("a", TrainingError("two"))
    assert str(feed.take("a", 0, 1).error) == "one"
    other = make()
    other.fail(None, TrainingError("before it began"))
    assert str(other.status().fatal) == "before it began"
    third = make()
    third._stream.error = TrainingError("the stream's")
    assert str(third.take("a", 0, 1).error) == "the stream's"


def test_what_the_driver_is_told(make):
    feed = make(world_size=2)
    assert (feed.status().num_ready, feed.status().first_ready_at) == (0, None)
    feed._stream.fill(range(3))
    assert (feed.status().num_ready, feed.status().first_ready_at) == (3, 12.5)
    feed.take("a", 0, 1)
    feed.begin("b", Position(1), 2, 10)
    feed._stream.first_ready_at = 99.0
    assert feed.status().first_ready_at == 12.5, "start-up ended with the first stream's"
    assert feed.status().num_ready == 0
    nobody = feeds.Feed(StreamSpec(40, 0, 4, 0, epochs=1), b"", FeedOptions(1, {}, None, 0.0))
    assert nobody.status().num_ready == 0
    assert nobody.take("", 0, 1).end


def lost() -> HostsLost:
    return HostsLost("all hosts of cpu are lost")


def test_what_is_ready_for_all_is_trained_on_before_a_run_without_hosts_ends(make):
    feed = make(world_size=2)
    feed._stream.fill(range(5))  # three for the first rank, two for the second
    assert numbers(feed.take("a", 0, 1)) == [0]
    feed._stream.error = lost()
    taken = feed.take("a", 0, 9)
    assert (numbers(taken), taken.stop, taken.error) == ([2], True, None)
    taken = feed.take("a", 1, 9)
    assert (numbers(taken), taken.stop, taken.error) == ([1, 3], True, None)
    assert feed.progress("a", 0, None, 1, True) == 2, "and who asks is told"
    assert isinstance(feed.status().fatal, HostsLost)
    assert isinstance(feed.begin("b", Position(), 2, 0), HostsLost)


def test_a_rank_that_is_ahead_of_what_the_others_can_reach_cannot_be_waited_for(make):
    feed = make(world_size=2)
    feed._stream.fill(range(5))
    assert numbers(feed.take("a", 0, 9)) == [0, 2, 4]
    feed._stream.error = lost()
    for rank in (0, 1):
        assert isinstance(feed.take("a", rank, 9).error, HostsLost)
