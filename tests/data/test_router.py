"""The router gives each rank its batches, whatever the order they arrive in."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from raytrain.data.order import Position, StreamPlan, StreamSpec
from raytrain.data.stream import BATCHES_A_LEG, MAX_BATCHES_A_TASK, Router, task_places

plans = st.builds(
    lambda train, validation, batch, epochs, world: StreamPlan(
        StreamSpec(train, validation, batch, 0, epochs=epochs), Position(), world
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
    for step in zip(*router.queues, strict=True):
        sizes = [plan.segments[s].sizes[b] for s, b, _ in step]
        assert max(sizes) - min(sizes) <= 1


def test_a_later_segment_waits_for_the_one_before():
    plan = StreamPlan(StreamSpec(4, 0, 2, 0, epochs=2), Position(), 1)
    router = Router(plan)
    router.arrive(1, 0, "later")
    router.arrive(0, 1, "last of the first")
    assert not router.queues[0], "the last round waits for the full ones"
    router.arrive(0, 0, "first")
    router.arrive(1, 1, "end")
    assert [reference for *_, reference in router.queues[0]] == ["first", "last of the first", "later", "end"]


@given(plans, st.integers(1, 12), st.one_of(st.none(), st.integers(1, 9)))
def test_tasks_cover_the_plan_once_and_run_side_by_side(plan, slots, batches_per_task):
    legs = task_places(plan, slots, batches_per_task)
    expected = [(s.number, b) for s in plan.segments for b in range(s.num_batches)]
    tasks = [[tuple(place) for place in task] for leg in legs for task in leg]
    assert sorted(place for task in tasks for place in task) == expected
    assert max(map(len, tasks), default=0) <= (batches_per_task or MAX_BATCHES_A_TASK)
    if tasks:  # the first batches of the tasks that run first are the first batches of the plan
        first = [task[0] for task in tasks[:slots]]
        assert first == expected[: len(first)]


def test_a_long_run_is_cut_into_legs():
    plan = StreamPlan(StreamSpec(BATCHES_A_LEG * 2 + 5, 0, 1, 0, epochs=1), Position(), 1)
    assert [sum(len(task) for task in leg) for leg in task_places(plan, 4, None)] == [BATCHES_A_LEG, BATCHES_A_LEG, 5]


def test_nothing_to_do_is_no_task():
    done = StreamPlan(StreamSpec(4, 0, 2, 0, epochs=1), Position(0, np.ones(4, dtype=bool)), 1)
    assert task_places(done, 2, None) == []
    assert Router(done).done
