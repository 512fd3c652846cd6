"""The ledger counts every sample once, over all ranks and restarts."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plan_model import consumed_ids

from raytrain.data.order import remaining
from raytrain.train.ledger import Ledger, count_bits


def united(ledgers: list[Ledger]) -> tuple[set[int], list[int]]:
    """As any of them has it: what all have consumed, and what is still owed."""
    own = np.sum([each.own for each in ledgers], axis=0, dtype=np.uint8)
    told = [each.num_own for each in ledgers], [each.paid for each in ledgers]
    first, *others = [ledger.union(own, *told) for ledger in ledgers]
    for other in others:
        assert all(np.array_equal(one, two) for one, two in zip(first, other, strict=True)), "whichever rank writes it"
    consumed, owed = first
    return consumed_ids(consumed), owed.tolist()


def test_a_sample_cannot_be_consumed_twice():
    ledger = Ledger(10, np.packbits(np.arange(10) == 7), [4, 9])
    ledger.add(np.array([1, 3, 14]))
    for again in ([3], [5, 5], [7], [14], [19, 19], [12], [6, 7]):
        with pytest.raises(AssertionError, match="consumed twice"):
            ledger.add(np.array(again))
    assert (consumed_ids(ledger.consumed), ledger.owed.tolist()) == ({1, 3, 7}, [9])


@pytest.mark.parametrize("keys", [[1], [2, 1], [12]])
def test_ranks_cannot_consume_the_same_sample(keys):
    one, two = Ledger(10, owed=[2]), Ledger(10, owed=[2])
    one.add(np.array(keys))
    two.add(np.array(keys[-1:]))
    with pytest.raises(AssertionError, match="two ranks"):
        united([one, two])


@given(st.integers(1, 200), st.integers(1, 5), st.integers(0, 10))
def test_the_union_of_all_ranks_and_the_past_is_what_was_consumed(num_samples, world_size, seed):
    owner = np.random.default_rng(seed).integers(-2, world_size, num_samples)  # -2: nobody yet, -1: before the resume
    ledgers = [Ledger(num_samples, np.packbits(owner == -1)) for _ in range(world_size)]
    for rank, ledger in enumerate(ledgers):
        ledger.add(np.flatnonzero(owner == rank))
    assert united(ledgers) == (set(np.flatnonzero(owner != -2).tolist()), [])


def test_nothing_is_carried_over_unless_somebody_says_so():
    assert united([Ledger(3)]) == (set(), [])
    with pytest.raises(AssertionError, match="consumed twice"):
        Ledger(3).add(np.array([4]))
    carried = Ledger(3, owed=[2, 1, 0])
    carried.add(np.array([4, 1]))
    assert united([carried]) == ({1}, [2, 0]), "in the order in which they come"


@pytest.mark.parametrize("num_samples", [1, 64, 1000, 100_001])
def test_a_checkpoint_has_a_bit_a_sample(num_samples):
    """And an id for each of those still owed, which are less than a step."""
    ledger = Ledger(num_samples, owed=[0])
    ledger.add(np.arange(num_samples))
    consumed, owed = ledger.union(ledger.own, [ledger.num_own], [ledger.paid])
    assert (consumed.nbytes, owed.nbytes, count_bits(consumed)) == (-(-num_samples // 8), 8, num_samples)
    file, empty = io.BytesIO(), io.BytesIO()
    torch.save({"consumed": torch.from_numpy(consumed), "owed": torch.from_numpy(owed)}, file)
    torch.save({"consumed": torch.zeros(0, dtype=torch.uint8), "owed": torch.from_numpy(owed)}, empty)
    assert len(file.getvalue()) <= len(empty.getvalue()) + num_samples / 8 + 128, "tensors begin at multiples of 64"
    fresh = Ledger(num_samples)
    assert len(fresh.union(fresh.own, [0], [set()])[0]) == 0, "between two epochs there is nothing to keep"


def test_what_remains_keeps_its_order():
    order = np.array([4, 2, 0, 3, 1])
    assert remaining(order, np.array([True, False, False, True, False])).tolist() == [4, 2, 1]
