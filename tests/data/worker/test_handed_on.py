"""What workers have died of is not tried again: by later tasks, and by those of a restarted run."""

from __future__ import annotations

import threading

import pytest

from raytrain.data import feed as feeds
from raytrain.data import stream as streams
from raytrain.data.order import Position, StreamPlan, StreamSpec
from raytrain.data.pace import num_batches
from raytrain.data.stream import FeedOptions, Stream
from raytrain.ray_internals.data import Block, TaskWork
from raytrain.record.status import Failure

SPEC = StreamSpec(num_train=8, num_validation=4, batch_size=2, seed=0, epochs=2)
OPTIONS = FeedOptions(2, {}, 2, 0.5, ready_per_rank=1000, stage_timeout_s=7.0, public_ray=True)
DEADLY = Failure(3, "3.jpg", "its worker died in `decode` (SIGSEGV)", killed=True)


class Still(Stream):
    """A stream whose thread ends at once."""

    def _run(self) -> None:
        pass


def still(killers=()):
    stream = Still(StreamPlan(SPEC, Position(), 1), b"", OPTIONS, threading.Condition(), killers=killers)
    stream._task_work = lambda work_ref, hosts: TaskWork(None, {}, 2, {}, 1)
    return stream


@pytest.mark.parametrize(
    ("split", "after", "comes_again"),
    [("train", 1, True), ("validation", 1, True), ("train", 8, False), ("validation", 8, True)],
)
def test_an_execution_is_broken_off_where_the_sample_comes_again(monkeypatch, split, after, comes_again):
    stream = still()
    tasks, total = stream._leg(stream.plan.places(), False)
    assert total == 12, "4 + 2 batches, twice"

    def run_tasks(work, blocks, public):
        places = sorted((*task[n, :2].tolist(), at, n) for at, task in enumerate(tasks) for n in range(len(task)))
        for done, (*_, task, number) in enumerate(places, start=1):
            yield Block(task, number, "a block", 0.1, 10)
            if done == after:
                with stream._changed:
                    stream.leave_out([(split, DEADLY)])

    monkeypatch.setattr(streams, "run_tasks", run_tasks)
    left = stream._run_leg(tasks, None)
    assert num_batches(left) == (12 - after - 1 if comes_again else 0)
    assert stream._work().left_out == {split: {3: DEADLY}}
    with stream._changed:
        stream.leave_out([(split, DEADLY)])
        assert not stream._look(), "that is known"


def test_tasks_are_told_what_was_set_and_what_is_known_already():
    work = still([("train", DEADLY)])._work()
    assert (work.left_out, work.stage_timeout_s, work.public_ray) == ({"train": {3: DEADLY}}, 7.0, True)


def test_the_feed_tells_who_watches_once_and_every_stream(monkeypatch):
    made = []

    class Listens(Still):
        def __init__(self, *arguments, killers=(), **more):
            super().__init__(*arguments, killers=killers, **more)
            made.append(self)

    monkeypatch.setattr(feeds, "Stream", Listens)
    monkeypatch.setattr(feeds, "prepare_tasks", lambda *_: None)
    feed = feeds.Feed(SPEC, b"", OPTIONS)
    feed.begin("a", Position(), 1, 0)
    feed.failures("train", [DEADLY, Failure(5, "5.jpg", "ValueError: broken")])
    feed.failures("train", [DEADLY])
    assert feed.status().warnings == ["3.jpg: its worker died in `decode` (SIGSEGV); left out"]
    made[0].taken[0] = 1
    feed.begin("b", Position(), 1, 0)
    assert [stream._work().left_out for stream in made] == 2 * [{"train": {3: DEADLY}}]
