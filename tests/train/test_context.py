"""What a loop is given, over a stream without Ray: the account of samples and when checkpoints are due."""

from __future__ import annotations

import types

import numpy as np
import pytest
import torch

from raytrain.config import Job
from raytrain.data.meter import RankMeter
from raytrain.data.order import Position, StreamPlan, StreamSpec
from raytrain.errors import TrainingError
from raytrain.train.context import StopTraining, TrainContext


class PlannedStream:
    """Batches of ids as the plan has them, without images."""

    def __init__(self, plan):
        self.plan, self.meter, self.figures, self.stopped = plan, RankMeter(), {}, False

    def segment_of(self, epoch, split):
        return next((s.number for s in self.plan.segments if (s.epoch, s.split) == (epoch, split)), None)

    def num_batches(self, number):
        return self.plan.segments[number].num_batches

    def segment(self, number):
        ids = self.plan.segment_ids(number)
        for index in range(self.num_batches(number)):
            start, stop = self.plan.bounds(number, index)
            yield types.SimpleNamespace(ids=ids[start:stop], index=index, padded=False)


@pytest.fixture
def make(monkeypatch):
    """A function that makes a context over 20 training samples in batches of 4, and the list of its checkpoints."""
    written = []
    monkeypatch.setattr(
        TrainContext,
        "_checkpoint",
        lambda self, epoch, *, whole_epoch: written.append(
            (epoch, None if whole_epoch else int(self._ledger.mask.sum()))
        ),
    )

    def context(validation=0, every_steps=None, **length):
        plan = StreamPlan(StreamSpec(20, validation, 4, 0, **length), Position(), 1)
        training = {"epochs": 1, "checkpoint": {"every_steps": every_steps}}
        ctx = TrainContext(
            Job.from_dict({"name": "x", "training": training}),
            PlannedStream(plan),
            device=torch.device("cpu"),
            rank=0,
            world_size=1,
            fingerprint="f",
            num_train=20,
            num_classes=2,
            restored=None,
            keep=lambda facts, state: None,
        )
        return ctx, written

    return context


def train(ctx, leave_after=None):
    for _ in ctx.epochs():
        for batch in ctx.batches():
            ctx.report(0.5)
            if leave_after is not None and batch.index == leave_after:
                break


def test_whole_epochs_end_with_an_empty_ledger(make):
    ctx, written = make(epochs=2)
    train(ctx)
    assert written == [(1, None), (2, None)]
    assert (ctx.steps, ctx.updates) == (10, 10)
    assert (ctx._stream.figures["num_samples"], ctx._stream.figures["step"]) == (40, 10)
    assert ctx._stream.figures["began_at"] <= ctx._stream.figures["last_step_at"]
    assert [entry["loss"] for entry in ctx.history] == [0.5, 0.5]


def test_steps_that_end_within_an_epoch_leave_the_rest_of_it_to_a_resume(make):
    ctx, written = make(steps=7)
    train(ctx)
    assert written == [(1, None), (1, 8)]


def test_a_loop_that_leaves_the_last_epoch_early_leaves_the_rest_of_it_to_a_resume(make):
    ctx, written = make(epochs=2)
    train(ctx, leave_after=1)
    assert written == [(1, None), (1, 8)]


def test_what_is_not_updated_is_not_consumed(make):
    ctx, _ = make(epochs=1)
    for _ in ctx.epochs():
        for batch in ctx.batches():
            ctx.report(1.0, updated=batch.index % 2 == 1)
            assert ctx._ledger.mask.sum() == (batch.index + 1) // 2 * 8
        break
    assert (ctx.steps, ctx.updates) == (5, 2)


def test_checkpoints_come_every_so_many_steps(make):
    ctx, written = make(epochs=1, every_steps=2)
    ctx._checkpoint = lambda epoch, *, whole_epoch: (
        written.append((ctx.steps, whole_epoch)),
        setattr(ctx, "_last_checkpoint_step", ctx.steps),
    )
    train(ctx)
    assert written == [(2, False), (4, False), (5, True)]


def test_a_loss_that_is_no_number_is_null(make):
    ctx, _ = make(epochs=1)
    for _ in ctx.epochs():
        for _ in ctx.batches():
            ctx.report(float("nan"))
        ctx.log(accuracy=float("inf"))
    assert ctx.history[0]["loss"] is None
    assert ctx.history[0]["accuracy"] is None


def test_splits_are_taken_in_the_order_of_the_stream(make):
    ctx, _ = make(epochs=1, validation=8)
    assert (ctx.num_batches(), ctx.num_batches("validation"), ctx.num_batches("test")) == (5, 2, 0)
    assert list(ctx.batches("test")) == []
    with pytest.raises(TrainingError, match="take 'train', then 'validation', each once an epoch"):
        for _ in ctx.epochs():
            assert sum(len(batch.ids) for batch in ctx.batches("validation")) == 8
            list(ctx.batches("train"))


def test_a_stop_leaves_a_checkpoint_and_ends_the_loop(make):
    ctx, written = make(epochs=2)
    ctx._objects = [object()]

    def stopping(number):
        yield from list(PlannedStream.segment(ctx._stream, number))[:3]
        ctx._stream.stopped = True

    ctx._stream.segment = stopping
    with pytest.raises(StopTraining):
        train(ctx)
    assert written == [(0, 12)]


def test_updates_to_come_count_what_is_accumulated(make):
    ctx, _ = make(epochs=2)
    assert [ctx.num_updates(n) for n in (1, 2, 5)] == [10, 6, 2]


def test_sums_of_one_rank_are_its_own(make):
    ctx, _ = make(epochs=1)
    assert ctx.sum_over_ranks(1.5, 2) == [1.5, 2.0]
    assert np.isfinite(ctx.sum_over_ranks(0.0)[0])
