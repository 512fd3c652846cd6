"""How batches are cut into blocks and tasks, by hand, and what a stream makes of it, without Ray."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from raytrain.cluster.placement import PlacedStages
from raytrain.cost.placing import Places, Placing
from raytrain.data.order import Position, StreamPlan, StreamSpec
from raytrain.data.pace import Pace, batches_of_tasks, cut_blocks, deal_tasks, num_batches
from raytrain.data.placement.decider import Choice
from raytrain.data.stream import FeedOptions, Stream
from raytrain.errors import TrainingError
from raytrain.ray_internals.data import Block

MIB = 1 << 20


@pytest.mark.parametrize(
    ("batch_s", "batch_bytes", "pace"),
    [
        # 0.1 s: 10 batches a block; 0.35 s ahead: 3 blocks; 30 s: 300, and at most 256; 5 s: 50
        (0.01, 1000, Pace(10, 256, 50, 3)),
        # at most 64 a block: 0.0256 s; ahead 13.7; least 195.3
        (0.0004, 100, Pace(64, 256, 195, 13)),
        # 16 MiB hold 3.9 batches; blocks of 12.3 MiB and 3 ms: ahead by bytes 20.8, and at most 16; least 1667
        (0.001, 4.1 * MIB, Pace(3, 256, 256, 16)),
        # 256 MiB hold 9.97
        (0.001, 25.68 * MIB, Pace(1, 256, 256, 9)),
        # 100 a task; least 16.7; ahead 1.2, and at least 2
        (0.3, 1000, Pace(1, 100, 16, 2)),
        # a batch is longer than a task shall be
        (31.0, 1000, Pace(1, 1, 1, 2)),
        (5.5, 1000, Pace(1, 5, 1, 2)),
    ],
)
def test_the_pace_by_hand(batch_s, batch_bytes, pace):
    assert Pace.of(batch_s, batch_bytes) == pace


def test_a_batch_that_costs_nothing_still_has_a_pace():
    assert Pace.of(0.0, 0.0) == Pace.of(1e-9, 0.5) == Pace(64, 256, 256, 16)
    assert Pace() == Pace(1, 256, 1, 2)


def runs(*lengths: int) -> np.ndarray:
    """Places of segments with so many batches."""
    return np.array([(segment, batch) for segment, length in enumerate(lengths) for batch in range(length)])


def test_the_blocks_of_a_run_are_nearly_equal():
    assert cut_blocks(runs(10), 4).tolist() == [[0, 0, 3], [0, 3, 3], [0, 6, 4]]
    assert cut_blocks(runs(4, 1, 5), 2).tolist() == [
        *([0, 0, 2], [0, 2, 2]),
        [1, 0, 1],
        *([2, 0, 1], [2, 1, 2], [2, 3, 2]),
    ]
    assert cut_blocks(runs(3), 1).tolist() == [[0, 0, 1], [0, 1, 1], [0, 2, 1]]
    assert cut_blocks(np.array([[0, 1], [1, 2], [1, 3]]), 5).tolist() == [[0, 1, 1], [1, 2, 2]], "of two segments"
    nothing = cut_blocks(np.zeros((0, 2), dtype=np.int64), 3)
    assert (nothing.shape, nothing.dtype) == ((0, 3), np.int64)


def dealt(num_blocks: int, *options: int) -> list[list[int]]:
    """The first batch of every block of every task."""
    return [task[:, 1].tolist() for task in deal_tasks(cut_blocks(runs(num_blocks), 1), *options)]


def test_tasks_are_dealt_in_windows_of_half_of_what_is_left():
    # of 13, ceil(13 / 4) = 4 a task and at most 3; of 7, 2; of 3, 1 and at least 2
    assert dealt(13, 2, 3, 2) == [[0, 2, 4], [1, 3, 5], [6, 8], [7, 9], [10, 12], [11]]
    # of 15, ceil(15 / 6) = 3 a task; of the 6 and the 3 that are left, one
    assert dealt(15, 3, 4) == [[0, 3, 6], [1, 4, 7], [2, 5, 8], [9], [10], [11], [12], [13], [14]]
    assert dealt(2, 5, 4) == [[0], [1]], "no task is empty"


class Still(Stream):
    """A stream whose thread ends at once; `legs` are what its executions leave undone."""

    def _run(self) -> None:
        pass


def still(
    batches_per_task: int | None = None,
    num_train: int = 80,
    epochs: int = 1,
    world_size: int = 1,
    is_global: bool = False,
    **options,
):
    plan = StreamPlan(StreamSpec(num_train, 0, 2, 0, epochs=epochs, is_global=is_global), Position(), world_size)
    return Still(plan, b"", FeedOptions(2, {}, batches_per_task, 0.0, **options), threading.Condition())


def test_the_first_leg_is_two_blocks_a_slot_and_shows_what_a_batch_costs():
    stream = still()
    tasks, taken = stream._leg(stream.plan.places(), True)
    assert ([task.tolist() for task in tasks], taken) == (
        [[[0, 0, 1, -1], [0, 2, 1, -1]], [[0, 1, 1, -1], [0, 3, 1, -1]]],
        4,
    )
    few, taken = stream._leg(stream.plan.places()[:1], True)
    assert ([task.tolist() for task in few], taken) == ([[[0, 0, 1, -1]]], 1)
    fixed, taken = still(batches_per_task=5)._leg(stream.plan.places(), True)
    assert ([len(task) for task in fixed], taken) == ([5] * 8, 40), "who says how many knows what they cost"


def test_tasks_are_short_where_every_batch_waits_for_the_one_before_it():
    for is_global, longest in ((False, 15), (True, 2)):
        stream = still(num_train=400, is_global=is_global)
        stream._learn(entry(seconds=2.0, num_bytes=800), 1, -1)
        tasks, taken = stream._leg(stream.plan.places(), False)
        assert taken == 200
        assert max(map(len, tasks)) == longest, "of half a minute, or of five seconds at most"


def test_a_later_leg_has_the_pace_of_what_was_seen():
    stream = still(num_train=800)
    stream._learn(entry(seconds=0.4, num_bytes=800), 4, -1)
    stream._learn(entry(seconds=0.06, num_bytes=900), 3, -1)
    stream._learn(entry(seconds=0.0, num_bytes=100), 1, -1)
    assert stream._cost == (0.0, 100.0)
    stream = still(num_train=800)
    stream._learn(entry(seconds=0.4, num_bytes=800), 4, -1)
    assert stream._cost == (0.1, 200.0)
    stream._learn(entry(seconds=0.06, num_bytes=900), 3, -1)
    assert stream._cost == (0.02, 300.0), "the cheapest seconds, and the last bytes"
    stream._learn(entry(seconds=0.08, num_bytes=1000), 4, -1)
    assert stream._cost == (0.02, 250.0)
    places = stream.plan.places()
    tasks, taken = stream._leg(places, False)
    # 0.02 s are 5 a block, 80 blocks; 5 s are 50 of them a task at least
    assert stream._pace == Pace(5, 256, 50, 3)
    assert ([len(task) for task in tasks], num_batches(tasks), taken) == ([40, 40], 400, 400)
    tasks, taken = stream._leg(places[-20:], False)
    assert taken == 20
    assert [task[:, 2].tolist() for task in tasks] == [[2] * 5, [2] * 5], "20 / (4 x 2 slots): every CPU has some"
    tasks, taken = stream._leg(places[-3:], False)
    assert ([task[:, 2].tolist() for task in tasks], taken) == ([[1, 1], [1]], 3)


def entry(seconds: float, num_bytes: int) -> Block:
    return Block(task=0, number=0, reference=None, wall_s=seconds, num_bytes=num_bytes)


def test_a_leg_ends_at_so_many_tasks():
    stream = still(batches_per_task=1, num_train=2 * 16_390)
    tasks, taken = stream._leg(stream.plan.places(), False)
    assert (len(tasks), taken) == (16_384, 16_384)


def test_what_went_missing_is_run_again_and_given_up_after_three_times_the_same():
    stream = still(num_train=12)
    tasks = [np.array([[0, 0, 2], [0, 2, 1]]), np.array([[0, 3, 3]])]
    asked = []

    def leaves(*remainders):
        left = iter(remainders)
        asked.clear()

        def run(tasks, work_ref):
            asked.append(num_batches(tasks))
            return next(left)

        stream._run_leg = run
        stream._run_whole_leg(tasks, None)

    leaves([])
    assert asked == [6]
    leaves(tasks[1:], tasks[1:], [])
    assert asked == [6, 3, 3]
    leaves(tasks, tasks, tasks[1:], tasks[1:], tasks[1:], [])
    assert asked == [6, 6, 6, 3, 3, 3], "some came: it counts anew"
    with pytest.raises(TrainingError, match="Ray lost the same batches 3 times; see the logs"):
        leaves(tasks[1:], tasks[1:], tasks[1:], tasks[1:], [])
    assert asked == [6, 3, 3, 3]
    stream.abandoned = True
    leaves()
    assert asked == []


def test_there_is_room_while_one_rank_has_fewer_than_it_shall():
    stream = still(num_train=80, world_size=2, ready_per_rank=2)
    assert (stream._has_room(), stream.num_ready) == (True, 0)
    for batch, room in enumerate((True, True, True, False)):
        stream.router.arrive(0, batch, None)
        assert (stream._has_room(), stream.num_ready) == (room, batch + 1)


def choosing(num_train: int = 4000) -> Stream:
    """Two CPUs of a training host and two of others; of two stages the second may run on the device."""
    placed = {cores: PlacedStages({"host": cores}, 2 + cores) for cores in range(3)}
    choice = Choice(("decode", "blur"), {1: 1, 2: 1}, Places(2, 2, 1), placed, 2)
    return still(num_train=num_train, choice=choice)


def test_the_first_leg_of_a_choice_has_trials():
    stream = choosing()
    tasks, taken = stream._leg(stream.plan.places(), True)
    assert taken == num_batches(tasks) == 8, "two a slot"
    assert [task.tolist() for task in tasks[:2]] == [[[0, 0, 1, 1], [0, 4, 1, 1]], [[0, 1, 1, 2], [0, 5, 1, 2]]]
    for cut, seconds in ((1, 0.1), (2, 0.4)):
        stream._learn(entry(seconds=seconds, num_bytes=100), 1, cut)
    assert stream._cost == (0.4, 100.0), "all stages still run on CPUs"
    tasks, taken = stream._leg(stream.plan.places()[8:], False)
    assert taken == num_batches(tasks) == 1992, "all that are left"
    assert {int(cut) for task in tasks for cut in task[:, 3]} == {2}
    assert stream._placed == PlacedStages({"host": 2}, 4)
    stream._decider.placing = Placing(1, 1, 0.0, host_cores=0, rate=40.0)
    assert stream._cost == (0.1, 100.0) and stream._placed == PlacedStages({"host": 0}, 2)
    assert stream._cut(np.array([[0, 9, 2]]), False).tolist() == [[0, 9, 2, 1]]


def test_what_tasks_have_not_done_is_cut_anew():
    left = [np.array([[1, 0, 2, 1], [0, 7, 3, 1]]), np.array([[0, 4, 1, 2]])]
    assert batches_of_tasks(left).tolist() == [[0, 4], [0, 7], [0, 8], [0, 9], [1, 0], [1, 1]]
    assert batches_of_tasks([]).shape == (0, 2)
    stream = choosing()
    stream._learn(entry(seconds=0.4, num_bytes=100), 1, 2)
    tasks, _ = stream._leg(stream.plan.places(), False)
    assert batches_of_tasks(tasks).tolist() == stream.plan.places().tolist()

    def broken_off(tasks, work_ref):
        stream._placed_anew = True
        return tasks[1:]

    stream._run_leg = broken_off
    again = stream._run_whole_leg(tasks, None)
    assert num_batches(again) == num_batches(tasks[1:])
