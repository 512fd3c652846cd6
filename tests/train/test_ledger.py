"""The ledger counts every sample once, over all ranks and restarts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytrain.data.order import remaining
from raytrain.train.ledger import Ledger


def test_a_sample_cannot_be_consumed_twice():
    ledger = Ledger(10, before=np.arange(20) == 7)
    ledger.add(np.array([1, 3]))
    for again in ([3], [5, 5], [7]):
        with pytest.raises(AssertionError, match="consumed twice"):
            ledger.add(np.array(again))
    assert np.flatnonzero(ledger.mask).tolist() == [1, 3, 7]


def test_ranks_cannot_consume_the_same_sample():
    one, two = Ledger(10), Ledger(10)
    one.add(np.array([1]))
    two.add(np.array([1]))
    with pytest.raises(AssertionError, match="two ranks"):
        one.union([one.packed(), two.packed()])


@given(st.integers(1, 200), st.integers(1, 5), st.integers(0, 10))
def test_the_union_of_all_ranks_and_the_past_is_what_was_consumed(num_samples, world_size, seed):
    owner = np.random.default_rng(seed).integers(-2, world_size, num_samples)  # -2: nobody yet, -1: before the resume
    ledgers = [Ledger(num_samples, before=np.append(owner == -1, owner > 0)) for _ in range(world_size)]
    for rank, ledger in enumerate(ledgers):
        ledger.add(np.flatnonzero(owner == rank))
    packed = [ledger.packed() for ledger in ledgers]
    for ledger in ledgers:
        assert np.array_equal(ledger.union(packed), np.append(owner != -2, owner > 0))


def test_nothing_is_carried_over_unless_somebody_says_so():
    assert Ledger(3).mask.tolist() == [False] * 3 + [True] * 3
    assert Ledger(3).union([]).tolist() == [False] * 3 + [True] * 3
    with pytest.raises(AssertionError, match="consumed twice"):
        Ledger(3).add(np.array([4]))
    carried = Ledger(3, before=np.array([False, False, False, True, False, True]))
    carried.add(np.array([4, 1]))
    assert np.flatnonzero(~carried.mask).tolist() == [0, 2]


def test_what_remains_keeps_its_order():
    order = np.array([4, 2, 0, 3, 1])
    assert remaining(order, np.array([True, False, False, True, False])).tolist() == [4, 2, 1]
