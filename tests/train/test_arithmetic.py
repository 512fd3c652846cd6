"""The arithmetic of training: any number of ranks, batches, windows and holes against one process written by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from ranks import EXAMPLES, Case, changed, one_process, with_batch_norm

pytestmark = pytest.mark.ranks
SGD = {"optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9}}
TOLERANCE = 2e-5


def agree(outcome, case, tolerance=TOLERANCE):
    """The rank's weights, losses and learning rates are those of one process."""
    assert outcome.error is None, outcome.error
    expected, losses = one_process(case)
    for name, value in expected.items():
        assert torch.allclose(outcome.model[name], value, atol=tolerance, rtol=tolerance), name
    assert len(outcome.history) == len(losses)
    for entry, loss in zip(outcome.history, losses, strict=True):
        assert (entry["loss"] is None) == math.isnan(loss)
        assert entry["loss"] is None or entry["loss"] == pytest.approx(loss, rel=1e-4)


def holes(num_train, share, seed):
    keep = torch.rand(num_train, generator=torch.Generator().manual_seed(seed)) < share
    return frozenset(torch.nonzero(keep).flatten().tolist())


cases = st.builds(
    lambda world, batch, rounds, extra, share, seed, tail, **training: Case(
        num_train=world * batch * rounds + extra % (world * batch),
        batch_size=batch,
        world_size=world,
        epochs=3,
        tail=tail,
        seed=seed,
        holes=holes(world * batch * (rounds + 1), share, seed),
        training=training,
    ),
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(0, 100),
    st.sampled_from([0.0, 0.0, 0.2, 0.7]),
    st.integers(0, 1000),
    st.sampled_from(["share", "drop_last", "pad", "carry"]),
    accumulate=st.integers(1, 4),
    optimizer=st.sampled_from([SGD["optimizer"], {"name": "adamw", "lr": 0.01, "weight_decay": 0.1}]),
    clip_norm=st.sampled_from([None, 0.3]),
    label_smoothing=st.sampled_from([0.0, 0.2]),
    schedule=st.sampled_from([{}, {"name": "cosine", "warmup_share": 0.3, "final_share": 0.1}]),
)


@settings(deadline=None, max_examples=int(60 * EXAMPLES), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases)
@example(case=Case(5, 4, 1, epochs=1, training=SGD))  # 3 + 2
@example(case=Case(5, 2, 2, epochs=1, training=SGD))
@example(case=Case(9, 2, 2, epochs=1, holes=frozenset(range(4)), training=SGD))  # batches without a sample
@example(case=Case(8, 2, 2, epochs=1, holes=frozenset(range(8)), training=SGD))  # and nothing but those
@example(case=Case(12, 2, 2, epochs=2, holes=frozenset({0}), training={**SGD, "accumulate": 3}))
def test_ranks_train_what_one_process_trains(ranks, case):
    for outcome in ranks.run(case):
        if case.holes >= set(range(case.num_train)):
            assert outcome.updates == 0
        agree(outcome, case)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_twenty_steps_of_every_number_of_ranks(ranks, world_size):
    """The same global batches of 12, cut for one, two and three ranks."""
    case = Case(120, 12 // world_size, world_size, epochs=2, training={**SGD, "clip_norm": 1.0})
    outcomes = ranks.run(case)
    assert [outcome.updates for outcome in outcomes] == [20] * world_size
    expected, _ = one_process(replace(case, batch_size=12, world_size=1))
    for outcome in outcomes:
        for name, value in expected.items():
            assert torch.allclose(outcome.model[name], value, atol=TOLERANCE), name


@pytest.mark.parametrize(("batch", "accumulate"), [(6, 2), (4, 3), (1, 12)])
def test_accumulated_batches_are_one_batch(ranks, batch, accumulate):
    (outcome,) = ranks.run(Case(120, batch, 1, training={**SGD, "accumulate": accumulate}))
    (whole,) = ranks.run(Case(120, 12, 1, training=SGD))
    assert outcome.updates == whole.updates == 20
    for name, value in whole.model.items():
        assert torch.allclose(outcome.model[name], value, atol=TOLERANCE), name


@pytest.mark.parametrize(
    "training",
    [
        {"clip_norm": 0.05},
        {"label_smoothing": 0.3},
        {"schedule": {"name": "cosine", "warmup_share": 0.2}},
        {"optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.0}},
        {"optimizer": {"name": "sgd", "lr": 0.1, "weight_decay": 0.5}},
        {"optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 5.0}},
        {"accumulate": 2},
    ],
    ids=lambda training: next(iter(training)),
)
@pytest.mark.parametrize("world_size", [1, 2])
def test_every_setting_does_what_torch_does_and_does_something(ranks, training, world_size):
    plain = Case(40, 4, world_size, training=SGD)
    case = changed(plain, **training)
    outcomes = ranks.run(case)
    for outcome in outcomes:
        agree(outcome, case)
    without = ranks.run(plain)[0]
    assert max((outcomes[0].model[n] - v).abs().max() for n, v in without.model.items()) > 1e-3


def test_a_schedule_is_walked_through_once(ranks):
    case = Case(40, 4, 2, epochs=4, training={**SGD, "schedule": {"name": "cosine", "warmup_share": 0.25}})
    for outcome in ranks.run(case):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.2, 1.0, total_iters=4)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 15)
        both = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cosine], [5])
        expected = []
        for _ in range(20):
            expected.append(both.get_last_lr()[0])
            optimizer.step()
            both.step()
        assert outcome.learning_rates == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_is_near_and_not_the_same(ranks, precision):
    case = Case(60, 6, 2, training=SGD)
    exact = ranks.run(case)[0]
    for outcome in ranks.run(changed(case, precision=precision)):
        assert outcome.error is None, outcome.error
        away = max((outcome.model[name] - value).abs().max() for name, value in exact.model.items())
        assert 1e-5 < away < 0.05
        assert abs(outcome.history[-1]["loss"] - exact.history[-1]["loss"]) < 0.02


def test_a_step_that_the_scaler_skips_is_no_update(ranks):
    """Gradients of loud images overflow in fp16 until the scale has come down."""
    loud = dict.fromkeys(range(40), 100.0)
    schedule = {"name": "cosine", "final_share": 0.1}
    case = Case(40, 4, 2, model="linear", loud=loud, training={**SGD, "precision": "fp16", "schedule": schedule})
    for rank, outcome in enumerate(ranks.run(case)):
        assert outcome.error is None, outcome.error
        skipped = 10 - outcome.updates
        assert 0 < skipped < 10
        assert len(outcome.learning_rates) == outcome.updates, "the optimizer stepped"
        assert outcome.learning_rates[:2] == pytest.approx([0.1, 0.1 * (0.1 + 0.9 * (1 + math.cos(math.pi / 10)) / 2)])
        assert outcome.counts["skipped_samples"] == 4 * skipped
        assert outcome.counts["skipped_steps"] == (skipped if rank == 0 else 0)
        assert not [text for text in outcome.warned if "lr_scheduler.step" in text]


def test_losses_are_means_over_samples_of_all_ranks(ranks):
    """A step without learning: every epoch's loss is the mean over all samples, whatever the batches."""
    for tail_of in (1, 3, 7):
        case = Case(16 + tail_of, 4, 2, epochs=1, holes=frozenset({2, 3}), training={"optimizer": {"lr": 1e-30}})
        torch.manual_seed(0)
        images, labels = case.samples()
        rest = [i for i in range(case.num_train) if i not in case.holes]
        from ranks import mlp

        expected = F.cross_entropy(mlp()(images[rest]), labels[rest]).item()
        for outcome in ranks.run(case):
            assert outcome.history[0]["loss"] == pytest.approx(expected, rel=1e-5)


def test_validation_is_of_the_model_that_the_checkpoint_holds(ranks, tmp_path):
    """Each rank's BatchNorm has seen other samples."""
    from raytrain.train.checkpoints import checkpoint, shelf

    case = Case(40, 4, 2, epochs=2, num_validation=11, model="with_batch_norm", training=SGD, folder=str(tmp_path))
    outcomes = ranks.run(case)
    model = with_batch_norm()
    images, labels = case.samples("validation")
    by_epoch = {facts.epoch: path for path, facts in shelf.whole(tmp_path)}
    for epoch in (1, 2):
        model.load_state_dict(checkpoint.load_object(by_epoch[epoch], 0))
        model.eval()
        with torch.no_grad():
            logits = model(images)
        for outcome in outcomes:
            entry = outcome.history[epoch - 1]
            assert entry["validation_loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
            assert entry["validation_accuracy"] == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    first, second = (outcome.model for outcome in outcomes)
    assert all(torch.equal(first[name], second[name]) for name in first)


# --- samples that are missing, alone or repeated ---


def test_a_stand_in_reaches_neither_statistics_nor_losses(ranks):
    """Rank 1 has no sample at all; its blank images would pull the means of BatchNorm to zero."""
    from raytrain.data.order import Position, StreamPlan

    case = Case(16, 4, 2, epochs=1, model="with_batch_norm", loud=dict.fromkeys(range(16), 9.0), training=SGD)
    plan = StreamPlan(case.spec, Position(), 2)
    keys = plan.segment_keys(0)
    second = [int(k) for b in (1, 3) for k in keys[slice(*plan.bounds(0, b))]]
    outcomes = ranks.run(replace(case, holes=frozenset(second)))
    assert [outcome.counts["stand_ins"] for outcome in outcomes] == [0, 2]
    torch.manual_seed(0)
    model = with_batch_norm()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    images, labels = case.samples()
    losses = []
    for b in (0, 2):
        ids = keys[slice(*plan.bounds(0, b))]
        loss = F.cross_entropy(model(images[ids]), labels[ids])
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert outcomes[0].error is None, outcomes[0].error
    for name, value in model.state_dict().items():
        assert torch.allclose(outcomes[0].model[name].double(), value.double(), atol=TOLERANCE), name
    for outcome in outcomes:
        assert outcome.history[0]["loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)


@pytest.mark.parametrize("tail", ["share", "drop_last", "pad", "carry"])
@pytest.mark.parametrize(("num_train", "batch_size"), [(130, 64), (129, 64), (5, 2), (7, 2), (11, 3)])
def test_a_job_never_dies_of_its_own_tail(ranks, num_train, batch_size, tail):
    """BatchNorm refuses a batch of one value a channel: `Expected more than 1 value per channel when training`."""
    case = Case(num_train, batch_size, 2, epochs=3, model="with_batch_norm", tail=tail, training=SGD)
    outcomes = ranks.run(case)
    assert [outcome.error for outcome in outcomes] == [None, None]
    seen = [len(ids) for outcome in outcomes for _, ids, _, _ in outcome.batches]
    assert max(seen) <= batch_size
    assert all(math.isfinite(entry["loss"]) for outcome in outcomes for entry in outcome.history)


def test_tails_are_counted(ranks):
    counted = {}
    for tail in ("share", "drop_last", "pad", "carry"):
        outcomes = ranks.run(Case(19, 4, 2, epochs=3, tail=tail, training=SGD))
        counted[tail] = {n: sum(o.counts[n] for o in outcomes) for n in ("dropped", "repeated", "carried", "stand_ins")}
        seen = [[i for o in outcomes for e, ids, _, _ in o.batches if e == epoch for i in ids] for epoch in range(3)]
        sizes = {len(ids) for o in outcomes for _, ids, _, _ in o.batches}
        if tail == "share":
            assert all(sorted(ids) == list(range(19)) for ids in seen)
            assert sizes == {2, 3, 4}
        else:
            assert 4 in sizes and (tail == "carry" or sizes == {4}), "steps of one size"
        if tail == "pad":
            assert all(set(ids) == set(range(19)) and len(ids) == 24 for ids in seen)
    assert counted == {
        "share": {"dropped": 0, "repeated": 0, "carried": 0, "stand_ins": 0},
        "drop_last": {"dropped": 9, "repeated": 0, "carried": 0, "stand_ins": 0},
        "pad": {"dropped": 0, "repeated": 15, "carried": 0, "stand_ins": 0},
        "carry": {"dropped": 0, "repeated": 0, "carried": 3 + 6, "stand_ins": 0},
    }


def test_carried_samples_come_first_in_the_next_epoch(ranks):
    outcomes = ranks.run(Case(19, 4, 2, epochs=2, tail="carry", training=SGD))
    by_epoch = {epoch: [] for epoch in (0, 1)}
    for outcome in outcomes:
        for epoch, ids, _, carried in outcome.batches:
            for index, is_carried in zip(ids, carried, strict=True):
                by_epoch[epoch - is_carried].append(index)
    assert all(sorted(ids) == list(range(19)) for ids in by_epoch.values())
    assert sum(carried[0] for outcome in outcomes for *_, carried in outcome.batches if carried) > 0


# --- losses that are no numbers ---


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_loss_that_is_no_number_stops_the_run_and_names_step_and_samples(ranks, tmp_path, world_size):
    from raytrain.train.checkpoints import shelf

    case = Case(
        16, 4, world_size, model="not_a_number_above", options={"limit": 50.0}, loud={5: 1e4}, folder=str(tmp_path)
    )
    outcomes = ranks.run(changed(case, checkpoint={"every_steps": 1, "keep": 99}))
    errors = [outcome.error for outcome in outcomes if outcome.error and outcome.error.startswith("LossError")]
    assert errors
    (where,) = [(o, ids) for o in outcomes for _, ids, _, _ in o.batches if 5 in ids]
    assert (
        f"the loss is nan at step {where[0].steps} (epoch 1) of samples {', '.join(map(str, where[1]))};" in errors[0]
    )
    assert all(facts.steps < where[0].steps for _, facts in shelf.whole(tmp_path)), "no checkpoint of a broken model"


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_loss_that_is_no_number_can_be_skipped(ranks, world_size, accumulate):
    """What is left is the training without that update."""
    case = Case(16, 2, world_size, 1, model="not_a_number_above", options={"limit": 50.0}, loud={5: 1e4})
    case = changed(case, on_nan="skip", accumulate=accumulate, **SGD)
    outcomes = ranks.run(case)
    for outcome in outcomes:
        assert outcome.error is None, outcome.error
        assert all(torch.isfinite(value).all() for value in outcome.model.values())
        assert outcome.updates == 16 // (2 * world_size * accumulate) - 1
        assert math.isfinite(outcome.history[0]["loss"])
    assert sum(outcome.counts["skipped_steps"] for outcome in outcomes) == 1
    assert sum(outcome.counts["skipped_samples"] for outcome in outcomes) == 2 * world_size * accumulate
    clean = replace(case, holes=frozenset(_window_of(case, 5)), loud={})
    (reference,) = ranks.run(replace(clean, world_size=1, batch_size=2 * world_size))
    assert reference.error is None, reference.error
    for name, value in reference.model.items():
        assert torch.allclose(outcomes[0].model[name], value, atol=TOLERANCE), name


@pytest.mark.parametrize("world_size", [1, 2])
def test_batch_norm_forgets_what_was_skipped(ranks, world_size):
    """One image with NaN would be in the running statistics for good."""
    case = Case(16, 4, world_size, 2, model="with_batch_norm", loud={5: math.nan}, num_validation=8)
    for outcome in ranks.run(changed(case, on_nan="skip", **SGD)):
        assert outcome.error is None, outcome.error
        assert all(torch.isfinite(value).all() for value in outcome.model.values())
        assert outcome.updates == 2 * (4 // world_size - 1)
        assert outcome.model["1.num_batches_tracked"] == outcome.updates
        assert math.isfinite(outcome.history[-1]["validation_loss"])


def _window_of(case, sample):
    from ranks import _updates

    return next(sum(batches, []) for epoch in _updates(case) for batches in epoch if sample in sum(batches, []))


# --- loops of one's own ---


def learn(ctx, model, optimizer):
    """An epoch as in the README: the batch's mean loss, times its weight."""
    for batch in ctx.batches("train"):
        loss = F.cross_entropy(model(batch.image), batch.label)
        (loss * batch.weight).backward()
        optimizer.step()
        optimizer.zero_grad()
        ctx.report(loss)


def own_loop(ctx):
    from ranks import mlp

    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model, optimizer = ctx.prepare(model, optimizer)
    for _ in ctx.epochs():
        learn(ctx, model, optimizer)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_loop_of_ones_own_is_exact_with_the_batchs_weight(ranks, world_size):
    case = Case(29, 4, world_size, holes=frozenset({1, 2, 3, 9}), training=SGD)
    for outcome in ranks.run(replace(case, loop=own_loop)):
        agree(outcome, case)


def loop_that_validates_by_hand(ctx):
    """Through the prepared model, batch by batch, without a thought of other ranks."""
    from ranks import with_batch_norm

    model = with_batch_norm()
    model, optimizer = ctx.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    for _ in ctx.epochs():
        model.train()
        learn(ctx, model, optimizer)
        model.eval()
        total = count = 0.0
        with torch.no_grad():
            for batch in ctx.batches("validation"):
                total += F.cross_entropy(model(batch.image), batch.label, reduction="sum").item()
                count += batch.size
        total, count = ctx.sum_over_ranks(total, count)
        ctx.log(validation_loss=total / count, count=count)


@pytest.mark.parametrize("num_validation", [1, 9])
def test_validation_by_hand_counts_each_sample_once_whoever_has_none(ranks, num_validation):
    """The ranks have different numbers of batches, and DDP exchanges BatchNorm's buffers in none of their forwards."""
    case = Case(24, 4, 3, epochs=2, num_validation=num_validation, loop=loop_that_validates_by_hand, training=SGD)
    images, labels = case.samples("validation")
    outcomes = ranks.run(case)
    model = with_batch_norm()
    model.load_state_dict(outcomes[0].model)
    model.eval()
    with torch.no_grad():
        expected = F.cross_entropy(model(images), labels).item()
    for outcome in outcomes:
        assert [entry["count"] for entry in outcome.history] == [num_validation] * 2
        assert outcome.history[-1]["validation_loss"] == pytest.approx(expected, rel=1e-5)
