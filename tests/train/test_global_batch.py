"""With a global batch size, what is trained does not depend on the number of ranks: by real processes and gloo."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ranks import Case, train_rank

pytestmark = pytest.mark.ranks
TAILS = ("share", "drop_last", "pad", "carry")


def steps_of(outcomes) -> list[tuple[int, list[int]]]:
    """Epoch and ids of every step, of all ranks."""
    rounds = zip(*(outcome.batches for outcome in outcomes), strict=True)
    return [(each[0][0], sorted(index for _, ids, *_ in each for index in ids)) for each in rounds]


def close(outcomes, expected) -> None:
    """One rank computes the same numbers in another order of adding."""
    for outcome in outcomes:
        assert outcome.error is None, outcome.error
        assert (outcome.steps, outcome.updates) == (expected.steps, expected.updates)
        losses = [[entry["loss"] for entry in each.history] for each in (outcome, expected)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        for name, value in expected.model.items():
            assert torch.allclose(outcome.model[name], value, atol=1e-5), name


def case_of(tail: str, **changes) -> Case:
    training = {"optimizer": {"name": "sgd", "lr": 0.2}, "accumulate": 2, "schedule": {"name": "cosine"}}
    return replace(
        Case(33, 6, 1, epochs=3, tail=tail, is_global=True, holes=frozenset({4}), training=training), **changes
    )


@pytest.mark.parametrize("tail", TAILS)
def test_steps_and_curve_are_one_ranks_on_any_number_of_ranks(ranks, tail):
    one = train_rank(case_of(tail), 0)
    assert len({entry["loss"] for entry in one.history}) == 3
    for world in (2, 3):
        outcomes = ranks.run(case_of(tail, world_size=world))
        close(outcomes, one)
        assert steps_of(outcomes) == steps_of([one])


@pytest.mark.parametrize("tail", TAILS)
def test_a_run_that_goes_on_with_other_ranks_has_the_steps_and_curve_of_one(ranks, tmp_path, tail):
    one, steps = train_rank(case_of(tail), 0), []
    for world, stop_after in ((2, 4), (1, 4), (3, 3), (2, None)):
        case = case_of(tail, world_size=world, stop_after=stop_after, folder=str(tmp_path))
        outcomes = ranks.run(case)
        assert all(outcome.stopped == (stop_after is not None) for outcome in outcomes)
        steps += steps_of(outcomes)[: outcomes[0].steps - len(steps)]  # half a window comes again
    close(outcomes, one)
    assert steps == steps_of([one]), "none left out, none twice, in one order"
