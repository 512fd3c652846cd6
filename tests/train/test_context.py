"""What a loop is given, over a stream without Ray: the account of samples and when checkpoints are due."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from raytrain.config.job import Job
from raytrain.data.order import Position, StreamPlan, StreamSpec
from raytrain.device.batch import DeviceBatch
from raytrain.device.meter import RankMeter
from raytrain.errors import LossError, TrainingError
from raytrain.record.schema import read_record
from raytrain.report.results import figure
from raytrain.train.context import TrainContext
from raytrain.train.contract import StopTraining
from raytrain.train.ledger import count_bits
from raytrain.train.losses import LossAccount
from raytrain.train.tasks import Task


class Kept:
    """The steps of the checkpoints that were written, each at once, unless it is `busy` for the next few looks."""

    def __init__(self, busy=()):
        self.steps, self.looks, self.lates, self.error = [], iter(busy), [], None

    @property
    def busy(self):
        return next(self.looks, False)

    def late(self, every_steps):
        self.lates.append(every_steps)

    def check(self):
        if self.error is not None:
            raise self.error

    def __call__(self, facts, state, objects):
        self.steps.append(facts.steps)


class PlannedStream:
    """Batches of ids as the plan has them, without images."""

    def __init__(self, plan):
        self.plan, self.meter, self.progress, self.stopped = plan, RankMeter(), None, False

    def segment_of(self, epoch, split):
        return next((s.number for s in self.plan.segments if (s.epoch, s.split) == (epoch, split)), None)

    def num_batches(self, number):
        return self.plan.segments[number].num_batches

    def segment(self, number):
        ids = self.plan.segment_keys(number)
        for index in range(self.num_batches(number)):
            start, stop = self.plan.bounds(number, index)
            yield DeviceBatch(
                {"image": torch.zeros(stop - start, 1), "label": torch.zeros(stop - start)},
                stop - start,
                ids[start:stop],
                index,
                carried=ids[start:stop] < 0,
            )


@pytest.fixture
def make(monkeypatch):
    """A function that makes a context over 20 training samples in batches of 4, and the list of its checkpoints."""
    written = []
    monkeypatch.setattr(
        TrainContext,
        "_checkpoint",
        lambda self, epoch, **_: written.append((epoch, count_bits(self._ledger.consumed))),
    )

    def context(validation=0, every_steps=None, on_nan="stop", **length):
        plan = StreamPlan(StreamSpec(20, validation, 4, 0, **length), Position(), 1)
        training = {"epochs": 1, "on_nan": on_nan, "checkpoint": {"every_steps": every_steps}}
        ctx = TrainContext(
            Job.from_dict({"name": "x", "training": training}),
            PlannedStream(plan),
            device=torch.device("cpu"),
            rank=0,
            world_size=1,
            fingerprint="f",
            num_train=20,
            task=Task(num_classes=2),
            restored=None,
            keep=Kept(),
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
    assert written == [(1, 0), (2, 0)]
    assert (ctx.steps, ctx.updates) == (10, 10)
    assert (ctx._stream.progress.times.num_samples, ctx._stream.progress.step) == (40, 10)
    assert ctx._stream.progress.times.began_at <= ctx._stream.progress.times.last_step_at
    assert [entry["loss"] for entry in ctx.history] == [0.5, 0.5]


def test_steps_that_end_within_an_epoch_leave_the_rest_of_it_to_a_resume(make):
    ctx, written = make(steps=7)
    train(ctx)
    assert written == [(1, 0), (1, 8)]


def test_a_loop_that_leaves_the_last_epoch_early_leaves_the_rest_of_it_to_a_resume(make):
    ctx, written = make(epochs=2)
    train(ctx, leave_after=1)
    assert written == [(1, 0), (1, 8)]


def test_what_is_not_updated_is_not_consumed(make):
    ctx, _ = make(epochs=1)
    for _ in ctx.epochs():
        for batch in ctx.batches():
            ctx.report(1.0, updated=batch.index % 2 == 1)
            assert count_bits(ctx._ledger.consumed) == (batch.index + 1) // 2 * 8
        break
    assert (ctx.steps, ctx.updates) == (5, 2)


def test_checkpoints_come_every_so_many_steps(make):
    ctx, written = make(epochs=1, every_steps=2)
    ctx._checkpoint = lambda epoch, *, evaluated=False, every=None: (
        written.append((ctx.steps, evaluated)),
        setattr(ctx, "_last_checkpoint_step", ctx.steps),
    )
    train(ctx)
    assert written == [(2, False), (4, False), (5, True)]


def test_steps_are_counted_anew_from_every_checkpoint(make, monkeypatch):
    ctx, _ = make(epochs=1, every_steps=2)
    monkeypatch.undo()  # checkpoints as they are
    train(ctx)
    assert ctx._keep.steps == [2, 4, 5]
    assert ctx.checkpoint_s > 0


def test_one_that_is_due_while_another_is_written_comes_later_but_the_epochs_at_once(make, monkeypatch):
    ctx, _ = make(epochs=2, every_steps=1)
    monkeypatch.undo()
    ctx._keep = Kept(busy=[False, True, True, False, True, True, False, False])
    train(ctx)
    assert ctx._keep.steps == [1, 4, 5, 7, 8, 9, 10, 10]
    assert ctx._keep.lates == [1, 1, 1], "those of steps 2, 5 and 6, once each"


def test_what_went_wrong_meanwhile_ends_the_next_step(make, monkeypatch):
    ctx, _ = make(epochs=1)
    monkeypatch.undo()
    with pytest.raises(ZeroDivisionError):
        for _ in ctx.epochs():
            for batch in ctx.batches():
                if batch.index == 2:
                    ctx._keep.error = ZeroDivisionError()
                ctx.report(0.5)
    assert ctx.steps == 2


def test_figures_are_read_off_the_device_twice_a_second_at_most(make, monkeypatch):
    now = iter([10.0, 10.3, 10.6, 10.7, 10.8, 10.9])
    monkeypatch.setattr("raytrain.train.pace.time", SimpleNamespace(monotonic=lambda: next(now)))
    ctx, _ = make(epochs=1)
    seen = []
    for _ in ctx.epochs():
        for batch in ctx.batches():
            ctx.report(float(batch.index))
            seen.append((ctx._stream.progress.loss, ctx._stream.progress.samples_per_s))
    assert seen == [(0.0, None), (0.0, None), *[(2.0, pytest.approx(8 / 0.6))] * 3]


def test_a_rank_without_a_sample_takes_part_in_synchronised_statistics_with_nothing(make, monkeypatch):
    ctx, _ = make(epochs=1)
    ctx.world_size = 2
    monkeypatch.setattr("raytrain.train.context.step_samples", lambda own, *_: own + 4)
    monkeypatch.setattr("raytrain.train.modules.synchronises_batch_norm", lambda modules: True)
    fields = {"image": torch.zeros(1, 3, 8, 8), "label": torch.zeros(1)}
    blank = DeviceBatch(fields, 1, np.zeros(0, np.int64), 0, stand_in=True)
    monkeypatch.setattr(PlannedStream, "segment", lambda self, number: iter([blank]))
    [batch] = ctx._training_batches(0)
    assert (batch.image.shape, batch.label.shape, batch.size) == ((0, 3, 8, 8), (0,), 0)


def test_a_loss_that_is_no_number_is_skipped_though_its_gradient_is_one(make):
    """Windows of the batches 0 and 1, 2 and 3, and 4; every update moves the weight by the mean of the inputs, 1."""
    ctx, _ = make(epochs=1, on_nan="skip")
    model = torch.nn.Linear(1, 1, bias=False)
    before = model.weight.item()
    update = ctx.updater(model, torch.optim.SGD(model.parameters(), lr=1.0), accumulate=2)
    for _ in ctx.epochs():
        for batch in ctx.batches():
            too_much = float("inf") if batch.index == 1 else 0.0
            update(batch, lambda batch, more=too_much: model(batch.image + 1).mean() + more)
    assert (ctx.updates, ctx.counts["skipped_steps"], ctx.counts["skipped_samples"]) == (2, 1, 8)
    assert model.weight.item() == pytest.approx(before - 2)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), torch.tensor(-float("inf"))])
def test_a_loss_that_is_no_number_ends_the_loop(make, value):
    ctx, written = make(epochs=1)
    with pytest.raises(
        LossError, match=r"the loss is -?(nan|inf) at step 2 \(epoch 1\) of samples (\d+, ){3}\d+; a lower"
    ):
        for _ in ctx.epochs():
            for batch in ctx.batches():
                ctx.report(0.5 if batch.index == 0 else value)
    assert written == []
    assert count_bits(ctx._ledger.consumed) == 4, "those of the step before"


def test_a_loop_may_skip_it_when_it_says_so(make):
    ctx, _ = make(epochs=1, on_nan="skip")
    for _ in ctx.epochs():
        for batch in ctx.batches():
            ctx.report(float("nan") if batch.index == 1 else 0.5, skipped=batch.index == 1)
    assert ctx.history[0]["loss"] == 0.5
    assert (ctx.counts["skipped_steps"], ctx.counts["skipped_samples"]) == (1, 4)
    assert (ctx.steps, ctx.updates) == (5, 4)
    stubborn, _ = make(epochs=1, on_nan="skip")
    with pytest.raises(LossError, match="the loss is nan at step 1"):
        for _ in stubborn.epochs():
            for _ in stubborn.batches():
                stubborn.report(float("nan"))


def test_losses_of_a_gpu_are_looked_at_when_somebody_looks():
    account = LossAccount(torch.device("cpu"), 0.0, 0)
    account._at_once = False  # as on a device that nobody should wait for
    account.add(float("nan"), 2, 7, 0, [3, 4])
    account.settle(skipped=False)
    for look in (account.check, account.last, account.clear):
        account.add(float("nan"), 2, 8, 0, [5, 6])
        with pytest.raises(LossError, match=r"at step [78] \(epoch 1\) of samples"):
            look()


def test_an_error_about_losses_travels_and_does_not_list_thousands():
    error = LossError.of(float("inf"), 3, 1, range(100))
    again = pickle.loads(pickle.dumps(error))
    assert again.ids == tuple(range(100)) and str(again) == str(error)
    assert "the loss is inf at step 3 (epoch 2) of samples 0, 1," in str(error) and " and 84 more;" in str(error)


def test_a_metric_that_is_no_number_is_null(make):
    ctx, _ = make(epochs=1)
    for _ in ctx.epochs():
        list(ctx.batches())
        ctx.log(accuracy=float("inf"))
    assert ctx.history[0]["loss"] is None, "no step"
    assert ctx.history[0]["accuracy"] is None


def test_a_whole_number_stays_whole_up_to_the_page(make, record, tmp_path):
    ctx, _ = make(epochs=1)
    for _ in ctx.epochs():
        list(ctx.batches())
        ctx.log(seen=np.int64(1797), accuracy=1.0)
    again = record.model_copy(update={"epochs": ctx.history})
    again.write(tmp_path / "record.json")
    [epoch] = read_record(tmp_path / "record.json").epochs
    assert (repr(epoch["seen"]), repr(epoch["accuracy"])) == ("1797", "1.0")
    assert figure("seen", epoch["seen"]) == "1,797"
    assert figure("accuracy", epoch["accuracy"]) == "100.00%"


def test_splits_are_taken_in_the_order_of_the_stream(make):
    ctx, _ = make(epochs=1, validation=8)
    assert (ctx.num_batches(), ctx.num_batches("validation"), ctx.num_batches("test")) == (5, 2, 0)
    assert list(ctx.batches("test")) == []
    with pytest.raises(TrainingError, match="take 'train', then 'validation', each once an epoch"):
        for _ in ctx.epochs():
            assert sum(len(batch.ids) for batch in ctx.batches("validation")) == 8
            list(ctx.batches("train"))


def stop_after_three(ctx):
    """Batches, with something to keep in the checkpoint."""
    ctx._objects = [torch.nn.Linear(1, 1)]

    def stopping(number):
        yield from list(PlannedStream.segment(ctx._stream, number))[:3]
        ctx._stream.stopped = True

    ctx._stream.segment = stopping


def test_a_stop_leaves_a_checkpoint_and_ends_the_loop(make):
    ctx, written = make(epochs=2)
    stop_after_three(ctx)
    with pytest.raises(StopTraining):
        train(ctx)
    assert written == [(0, 12)]


def test_the_rest_of_a_window_is_no_step_when_a_run_stops(make):
    ctx, written = make(epochs=2)
    stop_after_three(ctx)
    with pytest.raises(StopTraining):
        for _ in ctx.epochs():
            for batch in ctx.batches():
                ctx.report(0.5, updated=batch.index % 2 == 1)
    assert (written, ctx.steps, ctx.updates) == ([(0, 8)], 2, 1)


def test_windows_and_what_they_should_hold(make):
    ctx, _ = make(epochs=1)
    for _ in ctx.epochs():
        next(iter(ctx.batches()))
        break
    found = [ctx.window(index, 2) for index in range(5)]
    assert [(list(batches), planned) for batches, planned in found] == [([0, 1], 8)] * 2 + [([2, 3], 8)] * 2 + [
        ([4], 4)
    ]


def test_updates_to_come_count_what_is_accumulated(make):
    ctx, _ = make(epochs=2)
    assert [ctx.num_updates(n) for n in (1, 2, 5)] == [10, 6, 2]


def test_sums_of_one_rank_are_its_own(make):
    ctx, _ = make(epochs=1)
    assert ctx.sum_over_ranks(1.5, 2) == [1.5, 2.0]
    assert np.isfinite(ctx.sum_over_ranks(0.0)[0])
