"""What a rank does at the end of an attempt, in which order."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch

from raytrain import Job
from raytrain.device.meter import RankMeter
from raytrain.run import rank as ranks
from raytrain.run.rank import RankWork
from raytrain.train.contract import Leaving, StopTraining

JOB = Job.from_dict({"name": "j", "training": {"epochs": 1}})


@pytest.fixture
def done(monkeypatch):
    """What was done with the parts of a rank that stands alone, and a function that runs it."""
    seen = []

    def of(name):
        return SimpleNamespace(remote=lambda *_: seen.append(name))

    def run(*, stopped, leaving, world_size=2):
        feed = SimpleNamespace(warn=of("warn"), at_work=of("at work"), finish=of("finish"))
        plan = SimpleNamespace(num_epochs=1)
        stream = SimpleNamespace(meter=RankMeter(), plan=plan, stopped=stopped, close=lambda: seen.append("end"))
        writer = SimpleNamespace(close=lambda: seen.append("on disk"), write_s=0.0, num_late=0)
        ctx = SimpleNamespace(
            history=[], steps=3, counts={}, measured=None, sum_over_ranks=lambda *_: seen.append("all ranks")
        )
        monkeypatch.setattr("raytrain.device.loader.RankIngest", lambda *_: stream)
        monkeypatch.setattr("raytrain.train.checkpoints.writer.Writer", lambda *_: writer)
        monkeypatch.setattr("raytrain.train.context.TrainContext", lambda *_, **__: ctx)
        monkeypatch.setattr("ray.get", lambda _: leaving)
        monkeypatch.setattr(ranks, "listen", lambda: None)  # it would ask Ray where this is

        def loop(_):
            if stopped:
                raise StopTraining

        given = dict.fromkeys((each.name for each in fields(RankWork)), None)
        given |= {"job": JOB, "loop": loop, "feed": feed, "schema": {}, "stages": {}, "fields": {}}
        ranks._train(RankWork(**given), 1, world_size, torch.device("cpu"), None, "a", plan)

    return run, seen


def test_no_rank_leaves_a_host_before_the_checkpoint_is_on_disk(done):
    """The first that raises has Ray Train end the others, and the one that writes is among them."""
    run, seen = done
    with pytest.raises(Leaving):
        run(stopped=True, leaving=True)
    assert seen == ["at work", "end", "on disk", "all ranks", "finish"]


@pytest.mark.parametrize("case", [{"stopped": False, "leaving": True}, {"stopped": True, "leaving": False}])
def test_a_rank_that_has_ended_or_was_stopped_begins_not_anew(done, case):
    run, seen = done
    run(**case)
    assert ("all ranks" in seen) == case["stopped"] and seen[-1] == "finish"


def test_one_rank_waits_for_no_other(done):
    run, seen = done
    with pytest.raises(Leaving):
        run(stopped=True, leaving=True, world_size=1)
    assert "all ranks" not in seen
