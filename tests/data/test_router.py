"""The router gives each rank its batches, whatever the order they arrive in."""

from __future__ import annotations

import pickle

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from plan_model import position

from raytrain.data.order import Position, StreamPlan, StreamSpec
from raytrain.data.pace import MAX_BLOCKS_A_TASK, Pace, cut_blocks, deal_tasks, num_batches
from raytrain.data.router import Router

plans = st.builds(
    lambda train, validation, batch, epochs, world: StreamPlan(
        StreamSpec(max(train, batch * world), validation, batch, 0, epochs=epochs), Position(), world
    ),
    st.integers(1, 120),
    st.integers(0, 30),
    st.integers(1, 16),
    st.integers(1, 3),
    st.integers(1, 5),
)


def routed(plan, random):
    """A router that has been given every batch of the plan, in a random order; and that order."""
    arrivals = [(s.number, b) for s in plan.segments for b in range(s.num_batches)]
    random.shuffle(arrivals)
    router = Router(plan)
    for segment, batch in arrivals:
        router.arrive(segment, batch, f"{segment}/{batch}")
    return router, arrivals


@given(plans, st.randoms())
def test_a_plan_is_the_same_while_it_is_used(plan, random):
    """The feed's thread uses it while its answer to a rank is being pickled."""
    before = pickle.dumps(plan)
    router, _ = routed(plan, random)
    assert router.done
    for part in plan.segments:
        plan.segment_keys(part.number), plan.after(part.number), plan.bounds(part.number, 0)
    assert pickle.dumps(plan) == before


@given(plans, st.randoms())
def test_every_rank_gets_its_share_of_every_segment_in_order(plan, random):
    router, arrivals = routed(plan, random)
    assert router.done
    given_out = [item for queue in router.queues for item in queue]
    assert sorted((s, b) for s, b, _ in given_out) == sorted(arrivals)
    assert all(reference == f"{s}/{b}" for s, b, reference in given_out)
    for queue in router.queues:
        segments = [segment for segment, _, _ in queue]
        assert segments == sorted(segments)
        for part in plan.segments:
            assert segments.count(part.number) == part.num_batches // plan.world_size


@given(plans, st.randoms())
def test_ranks_step_on_batches_of_one_size(plan, random):
    router, _ = routed(plan, random)
    place = {part.number: 0 for part in plan.segments}
    for step in zip(*router.queues, strict=True):
        (segment,) = {s for s, _, _ in step}
        planned = plan.segments[segment].sizes.reshape(-1, plan.world_size)[place[segment]]
        assert sorted(plan.segments[s].sizes[b] for s, b, _ in step) == sorted(planned), "those of its round"
        place[segment] += 1


def test_a_later_segment_waits_for_the_one_before():
    plan = StreamPlan(StreamSpec(7, 0, 2, 0, epochs=2), Position(), 1)
    assert plan.segments[0].sizes.tolist() == [2, 2, 2, 1]
    router = Router(plan)
    router.arrive(1, 0, "later")
    router.arrive(0, 3, "last of the first")
    assert not router.queues[0], "the last round waits for the full ones"
    for number in (1, 2, 0):
        router.arrive(0, number, f"full {number}")
    for number in (3, 1, 2):
        router.arrive(1, number, f"then {number}")
    assert [reference for *_, reference in router.queues[0]] == [
        *("full 1", "full 2", "full 0", "last of the first"),
        *("later", "then 1", "then 2", "then 3"),
    ]


def test_the_smaller_rounds_come_one_after_the_other():
    plan = StreamPlan(StreamSpec(130, 0, 64, 0, epochs=1), Position(), 2)
    assert plan.segments[0].sizes.tolist() == [33, 33, 32, 32]
    router = Router(plan)
    for batch in (3, 1, 2, 0):
        router.arrive(0, batch, batch)
    assert [[batch for _, batch, _ in queue] for queue in router.queues] == [[1, 3], [0, 2]]


@given(plans, st.integers(1, 12), st.integers(1, 9), st.integers(1, 9))
def test_tasks_cover_the_plan_once_and_run_side_by_side(plan, slots, batches_per_block, blocks_per_task):
    blocks = cut_blocks(plan.places(), batches_per_block)
    tasks = deal_tasks(blocks, slots, blocks_per_task)
    expected = [(s.number, b) for s in plan.segments for b in range(s.num_batches)]
    assert [(s, first + i) for s, first, count in blocks.tolist() for i in range(count)] == expected
    assert sorted(tuple(block) for task in tasks for block in task.tolist()) == [tuple(b) for b in blocks.tolist()]
    assert num_batches(tasks) == len(expected)
    assert max(map(len, tasks), default=0) <= blocks_per_task
    assert max(blocks[:, 2], default=1) <= batches_per_block
    for segment in set(blocks[:, 0]):
        assert np.ptp(blocks[blocks[:, 0] == segment, 2]) <= 1, (
            "a CPU with the short blocks of all epochs would run ahead"
        )
    # the first blocks of the tasks that run first are the first blocks of the plan
    assert [task[0].tolist() for task in tasks[:slots]] == blocks[: min(slots, len(tasks))].tolist()
    assert not tasks or max(map(len, tasks[-slots:])) <= max(1, -(-len(blocks) // (2 * slots))), "they end together"


def test_places_with_gaps_are_cut_where_the_gaps_are():
    places = np.array([[0, 3], [0, 4], [0, 6], [1, 7]])
    assert cut_blocks(places, 9).tolist() == [[0, 3, 2], [0, 6, 1], [1, 7, 1]]


def test_the_pace_hides_what_handing_over_costs():
    assert Pace.of(1.0, 38e6) == Pace(1, 30, 5, 2), "a large batch is a block; a task lasts half a minute"
    assert Pace.of(0.004, 200e3).batches_per_block == 25, "several small ones share a block of a tenth of a second"
    assert Pace.of(0.0001, 16e6).batches_per_block == 1, "but not many bytes"
    assert Pace.of(0.025, 64e6).blocks_ahead == 4, "fast, large batches: several before Ray Data looks again"
    assert Pace.of(0.01, 64.0).blocks_ahead == 3
    assert Pace.of(0.0, 0.0).blocks_per_task == MAX_BLOCKS_A_TASK
    assert Pace.of(100.0, 1.0) == Pace(1, 1, 1, 2)


def test_tasks_of_a_fixed_size_do_not_shrink():
    blocks = cut_blocks(StreamPlan(StreamSpec(40, 0, 2, 0, epochs=1), Position(), 1).places(), 1)
    assert [len(task) for task in deal_tasks(blocks, 2, 4, 4)] == [4, 4, 4, 4, 2, 2]
    assert [len(task) for task in deal_tasks(blocks, 2, 4)] == [4, 4, 3, 3, 2, 2, 1, 1]


def test_nothing_to_do_is_no_task():
    done = StreamPlan(StreamSpec(4, 0, 2, 0, epochs=1), position(0, np.ones(4)), 1)
    assert deal_tasks(cut_blocks(done.places(), 1), 2, 3) == []
    assert Router(done).done
