"""Who gets which batch, and how the batches are cut and dealt: for any plan and any order of arrival."""

from __future__ import annotations

from itertools import takewhile

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_model import plans

from raytrain.data import pace
from raytrain.data.order import Position, StreamPlan, StreamSpec
from raytrain.data.pace import Pace, cut_blocks, deal_tasks, num_batches
from raytrain.data.router import Router

few = settings(deadline=None, max_examples=100)
small_plans = plans(most=20)


def given_out(plan: StreamPlan, arrived: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """What each rank has been given, in order: by segment the full rounds as they come, then every other round; or
    every batch behind the one before it."""
    ranks: list[list] = [[] for _ in range(plan.world_size)]
    if plan.spec.is_global:
        places = map(tuple, plan.places().tolist())
        for segment, batch in takewhile(set(arrived).__contains__, places):
            ranks[batch % plan.world_size].append((segment, batch))
        return ranks
    for part in plan.segments:
        here = [batch for segment, batch in arrived if segment == part.number]
        sizes = part.sizes.reshape(-1, plan.world_size)
        alike = next((n for n, each in enumerate(sizes) if (each != part.sizes[0]).any()), len(sizes))
        cuts = [0, *range(alike, len(sizes) + 1)] if alike else range(len(sizes) + 1)
        for first, last in zip(cuts, cuts[1:], strict=False):
            window = range(first * plan.world_size, last * plan.world_size)
            came = [batch for batch in here if batch in window]
            for number, batch in enumerate(came):
                ranks[number % plan.world_size].append((part.number, batch))
            if len(came) < len(window):
                return ranks
    return ranks


@few
@given(small_plans, st.randoms(use_true_random=False), st.booleans())
def test_the_router_is_the_models_after_every_arrival(plan, random, nearly_in_order):
    arrivals = [tuple(place) for place in plan.places().tolist()]
    random.shuffle(arrivals)
    if nearly_in_order:  # as tasks side by side bring them
        arrivals.sort(key=lambda place: place[0] * 1000 + place[1] + random.random() * 5)
    router = Router(plan)
    taken: list[list] = [[] for _ in range(plan.world_size)]
    assert router.done == (not arrivals)
    for number, (segment, batch) in enumerate(arrivals, 1):
        router.arrive(segment, batch, (segment, batch))
        if number % 7 == 0 or number == len(arrivals):  # ranks take in between; it changes nothing
            expected = given_out(plan, arrivals[:number])
            for rank, queue in enumerate(router.queues):
                while queue and random.random() < 0.8:
                    taken[rank].append(queue.popleft())
            now = [taken[rank] + list(queue) for rank, queue in enumerate(router.queues)]
            assert [[(s, b) for s, b, _ in each] for each in now] == expected
            assert all(where == (s, b) for each in now for s, b, where in each)
            assert router.num_waiting == number - sum(map(len, expected))
            assert router.done == (number == len(arrivals))


@few
@given(small_plans, st.randoms(use_true_random=False), st.floats(0, 1), st.integers(1, 9), st.integers(1, 6), st.data())
def test_any_rest_of_a_plan_is_cut_and_dealt_once(plan, random, share, per_block, slots, data):
    """As it is after some of the batches have come, or went missing."""
    rest = plan.places()[[random.random() <= share for _ in range(plan.total_batches)]]
    blocks = cut_blocks(rest, per_block)
    covered = [[segment, first + n] for segment, first, count in blocks.tolist() for n in range(count)]
    assert covered == rest.tolist()
    assert ((blocks[:, 2] >= 1) & (blocks[:, 2] <= per_block)).all()
    runs: list[list] = []  # of neighbours
    for segment, batch in rest.tolist():
        if runs and runs[-1][-1] == [segment, batch - 1]:
            runs[-1].append([segment, batch])
        else:
            runs.append([[segment, batch]])
    assert len(blocks) == sum(-(-len(run) // per_block) for run in runs), "no more blocks than it takes"
    for run in runs:
        inside = [count for segment, first, count in blocks.tolist() if [segment, first] in run]
        assert sum(inside) == len(run) and max(inside) - min(inside) <= 1
    most = data.draw(st.integers(1, 9))
    least = data.draw(st.integers(1, most))
    tasks = deal_tasks(blocks, slots, most, least)
    assert sorted(block for task in tasks for block in task.tolist()) == blocks.tolist()
    assert num_batches(tasks) == len(rest)
    left = [tuple(block) for block in blocks.tolist()]
    for first in range(0, len(tasks), slots):  # window by window, from the front of what is left
        window = [[tuple(block) for block in task.tolist()] for task in tasks[first : first + slots]]
        num_blocks = sum(map(len, window))
        assert sorted(block for task in window for block in task) == left[:num_blocks]
        size = max(map(len, window))
        assert size <= min(most, max(least, -(-len(left) // (2 * slots))))
        assert max(map(len, window)) - min(map(len, window)) <= 1 or num_blocks == len(left)
        assert all(task == left[number:num_blocks:slots] for number, task in enumerate(window)), "side by side"
        left = left[num_blocks:]
    assert not left


costs = st.tuples(st.floats(0, 200), st.floats(0, 1e10))


@few
@given(costs)
def test_a_pace_fills_its_bounds_and_does_not_pass_them(cost):
    seconds, size = cost
    made = Pace.of(seconds, size)

    def most(least, limit, *sums):
        """The largest count whose sums stay within what they may be."""
        fits = [n for n in range(least, limit + 1) if all(each * n <= allowed * (1 + 1e-12) for each, allowed in sums)]
        return max(fits, default=least)

    group = most(1, pace.MAX_BATCHES_A_BLOCK, (seconds, pace.BLOCK_S), (size, pace.BLOCK_BYTES))
    block_s, block_bytes = seconds * made.batches_per_block, size * made.batches_per_block
    near = {group, group - 1, group + 1} if seconds * group > pace.BLOCK_S * (1 - 1e-9) else {group}
    assert made.batches_per_block in near
    longest = most(1, pace.MAX_BLOCKS_A_TASK, (block_s, pace.TASK_S))
    least = most(1, made.blocks_per_task, (block_s, pace.SHORT_TASK_S))
    ahead = most(2, 16, (block_s, pace.AHEAD_S), (block_bytes, pace.AHEAD_BYTES))
    assert abs(made.blocks_per_task - longest) <= (abs(block_s * longest - pace.TASK_S) < 1e-6)
    assert abs(made.least_blocks - least) <= (abs(block_s * least - pace.SHORT_TASK_S) < 1e-6)
    assert abs(made.blocks_ahead - ahead) <= (abs(block_s * ahead - pace.AHEAD_S) < 1e-6)
    assert 1 <= made.least_blocks <= made.blocks_per_task


@few
@given(costs, st.floats(1, 50), st.floats(1, 50))
def test_a_dearer_batch_never_makes_a_block_or_a_task_longer(cost, slower, larger):
    seconds, size = cost
    cheap, dear = Pace.of(seconds, size), Pace.of(seconds * slower, size * larger)
    assert dear.batches_per_block <= cheap.batches_per_block
    if dear.batches_per_block == cheap.batches_per_block:
        assert dear.blocks_per_task <= cheap.blocks_per_task
        assert dear.least_blocks <= cheap.least_blocks
        assert dear.blocks_ahead <= cheap.blocks_ahead
    assert isinstance(dear.blocks_per_task, int) and not isinstance(dear.blocks_per_task, np.integer)


@few
@given(
    st.integers(1, 4),
    st.integers(1, 12),
    st.lists(st.integers(1, 2), min_size=12, max_size=12),
    st.randoms(use_true_random=False),
    st.sampled_from([0, 1, 3]),
)
def test_a_step_has_batches_of_one_kind_as_far_as_they_go(world_size, steps, kinds, random, out_of_order):
    """Ranks wait for each other: a step is as slow as the slowest kind in it."""
    plan = StreamPlan(StreamSpec(2 * world_size * steps, 0, 2, 0, epochs=1), Position(), world_size)
    arrivals = [(batch, kinds[batch // world_size]) for batch in range(world_size * steps)]
    arrivals.sort(key=lambda each: each[0] + random.random() * out_of_order * world_size)
    router = Router(plan)
    for number, (batch, kind) in enumerate(arrivals, 1):
        router.arrive(0, batch, kind, kind)
        assert router.num_waiting < world_size, "no rank waits while there is a step's worth"
        assert sum(map(len, router.queues)) + router.num_waiting == number
    assert router.done
    in_steps = list(zip(*([kind for _, _, kind in queue] for queue in router.queues), strict=True))
    if not out_of_order:
        assert in_steps == [(kind,) * world_size for kind in kinds[:steps]]
    assert sorted(kind for step in in_steps for kind in step) == sorted(kind for _, kind in arrivals)


def test_a_step_waits_for_its_own_kind_unless_others_pile_up():
    plan = StreamPlan(StreamSpec(24, 0, 2, 0, epochs=1), Position(), 2)
    router = Router(plan)

    def arrive(*kinds: str) -> list[list[str]]:
        for kind in kinds:
            batch = router.num_waiting + sum(map(len, router.queues))
            router.arrive(0, batch, kind, kind)
        return [[kind for _, _, kind in queue] for queue in router.queues]

    assert arrive("a") == [["a"], []], "the first is given out at once"
    assert arrive("b") == [["a"], []], "its step is one of a"
    assert arrive("a") == [["a", "b"], ["a"]]
    assert arrive("a") == [["a", "b"], ["a"]]
    assert arrive("a") == [["a", "b", "a"], ["a", "a"]]
