"""What the feed's tests do not show of generator tasks: that Ray is asked, and what is below its errors."""

from __future__ import annotations

import pytest

from raytrain.errors import TrainingError
from raytrain.ray_internals import data
from raytrain.ray_internals.data import TaskWork, cause, run_tasks


class Executed:
    def iter_internal_ref_bundles(self):
        return iter([None])


@pytest.mark.parametrize(
    ("asked", "missing"), [(set(), "the cluster's size"), ({"the cluster's size"}, "the stock's bound")]
)
def test_a_ray_data_that_goes_past_what_was_put_in_place_ends_the_run(monkeypatch, asked, missing):
    monkeypatch.setattr(data, "_asked", asked)
    monkeypatch.setattr(data, "_dataset", lambda work, tasks: Executed())
    work = TaskWork(print, {}, lanes=1, task_args={}, blocks_ahead=2, stock=object())
    with pytest.raises(
        TrainingError, match=f"Ray Data has not asked raytrain for {missing}; set RAYTRAIN_PUBLIC_RAY=1"
    ):
        next(run_tasks(work, [], public=False))


def test_the_cause_is_below_rays_wrappers():
    inner, outer = ValueError("inner"), RuntimeError("outer")
    outer.cause = KeyError("between")
    outer.cause.__cause__ = inner
    assert cause(outer) is inner
