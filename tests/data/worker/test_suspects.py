"""Which sample kills its worker, against a worker that dies where it is told to."""

from __future__ import annotations

from math import ceil, log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytrain.data.worker.suspects import (
    ALONE_TRIES,
    BISECT_AFTER,
    MOST_IN_VAIN,
    Died,
    InVain,
    without_culprits,
)


class Workers:
    """They die of the first of some samples that comes, and say so if they `tell`."""

    def __init__(self, ids, killers, tell=True):
        self.ids, self.killers, self.tell = ids, killers, tell
        self.out, self.tries = {}, 0

    def some(self, few):
        self.tries += 1
        at = next((each for each in few if each in self.killers), None)
        return None if at is None else Died("SIGSEGV", at if self.tell else None, "decode")

    def whole(self):
        left = [each for each in self.ids if each not in self.out]
        return self.some(left) or left

    def run(self, **options):
        return without_culprits(self.whole, self.some, self.ids, self.out.__setitem__, **options)


samples = st.lists(st.integers(0, 10**6), min_size=1, max_size=70, unique=True)


@given(samples.flatmap(lambda ids: st.tuples(st.just(ids), st.sets(st.sampled_from(ids)))), st.booleans())
def test_each_that_kills_is_left_out_and_no_other_within_the_tries_that_are_promised(drawn, tell):
    ids, killers = drawn
    workers = Workers(ids, killers, tell)
    assert workers.run() == [each for each in ids if each not in killers]
    assert set(workers.out) == killers
    assert all(death.stage == "decode" for death in workers.out.values())
    n, k = len(ids), len(killers)
    more = 0 if tell or not k else 1 + k + k * (2 * ceil(log2(n)) + 2)
    assert workers.tries <= 1 + 3 * k + more
    if tell:
        assert workers.tries == 1 + (1 + ALONE_TRIES) * k


def test_what_hangs_is_not_waited_for_twice_more():
    workers = Workers([1, 2, 3], {2})
    hung = Died("hung", 2, "sleep", hung=True)
    answers = [hung, [1, 3]]
    assert without_culprits(lambda: answers.pop(0), workers.some, [1, 2, 3], workers.out.__setitem__) == [1, 3]
    assert (workers.out, workers.tries) == ({2: hung}, 0)


def test_a_death_that_points_at_the_wrong_sample_is_looked_into():
    """As by memory that one sample has spoilt and the next is hit by."""
    workers = Workers([1, 2, 3, 4], {3})
    misled = Died("SIGSEGV", 4, "decode")

    def whole():
        return [1, 2, 4] if 3 in workers.out else misled

    assert without_culprits(whole, workers.some, [1, 2, 3, 4], workers.out.__setitem__) == [1, 2, 4]
    assert set(workers.out) == {3}


def test_workers_that_are_killed_from_outside_cost_no_sample():
    workers, deaths = Workers([1, 2, 3], set()), [Died("killed", 2, "decode")] * (MOST_IN_VAIN - 1)
    pauses = []
    assert (
        without_culprits(
            lambda: deaths.pop() if deaths else "all", workers.some, [1, 2, 3], workers.out.__setitem__, pauses.append
        )
        == "all"
    )
    assert (workers.out, pauses) == ({}, [*range(1, MOST_IN_VAIN)])


@pytest.mark.parametrize("sample", [2, None], ids=["at a sample", "at none"])
def test_deaths_that_go_on_end_it(sample):
    workers, death = Workers([1, 2, 3], set()), Died("killed", sample)
    with pytest.raises(InVain) as caught:
        without_culprits(lambda: death, workers.some, [1, 2, 3], workers.out.__setitem__)
    assert caught.value.args == (death,)
    assert workers.out == {}
    assert workers.tries == MOST_IN_VAIN >= BISECT_AFTER
