"""A run that was interrupted, once, twice or at every step, is the run that was not."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ranks import EXAMPLES, Case, changed, train_rank

from raytrain.data.order import Position, StreamPlan
from raytrain.train.checkpoints import checkpoint, shelf

EVERYTHING = {
    "optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1},
    "schedule": {"name": "cosine", "warmup_share": 0.3},
    "checkpoint": {"every_steps": 1, "keep": 999},
}
TAILS = ("share", "drop_last", "pad", "carry")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def case_of(folder, tail="share", **training) -> Case:
    """Dropout, BatchNorm, moments of Adam, a schedule and samples that are broken: each of them would be missed."""
    holes = frozenset({2, 11})
    case = Case(19, 4, 1, epochs=3, tail=tail, model="normed", folder=str(folder), holes=holes, training=EVERYTHING)
    return changed(case, **training)


def same(outcome, expected) -> None:
    assert outcome.error is None, outcome.error
    for name, value in expected.model.items():
        assert torch.equal(outcome.model[name], value), name
    told = [[{"epoch": e["epoch"], "loss": e["loss"]} for e in each.history] for each in (outcome, expected)]
    assert told[0] == told[1]
    assert (outcome.steps, outcome.updates, outcome.counts) == (expected.steps, expected.updates, expected.counts)


@pytest.mark.parametrize(
    ("tail", "training"),
    [("share", {}), ("share", {"precision": "bf16"}), *((tail, {"accumulate": 2}) for tail in TAILS)],
    ids=lambda value: value if isinstance(value, str) else next(iter(value), "plain"),
)
def test_resumed_at_every_step_is_uninterrupted_bit_by_bit(tmp_path, tail, training):
    case = case_of(tmp_path, tail, **training)
    whole = train_rank(case, 0)
    found = [facts for _, facts in shelf.whole(tmp_path)]
    assert len({facts.steps for facts in found}) == whole.updates, "a checkpoint an update"
    for facts in {facts.steps: facts for facts in found}.values():
        if facts.steps < whole.steps:
            resumed = train_rank(replace(case, folder=_copy(tmp_path, facts.steps)), 0)
            same(resumed, whole)
            assert resumed.learning_rates == whole.learning_rates[facts.updates :]


def _copy(folder: Path, steps: int) -> str:
    """A folder with that checkpoint alone; of two of as many steps, the one at the end of the epoch."""
    import shutil

    found = [path for path, facts in shelf.whole(folder) if facts.steps == steps][-1]
    target = folder.parent / f"from{steps}-{found.name}"
    shutil.copytree(found, target / "attempt" / found.name)
    return str(target)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize(("accumulate", "every"), [(1, 1), (2, 3), (3, 5), (3, 7)])
def test_stopped_again_and_again_is_uninterrupted(tmp_path, tail, accumulate, every):
    """Asked to stop after so many batches, in the middle of a window too, each time it goes on."""
    whole = train_rank(case_of(tmp_path / "whole", tail, accumulate=accumulate, checkpoint={}), 0)
    case = case_of(tmp_path / "parts", tail, accumulate=accumulate, checkpoint={})
    case = replace(case, stop_after=every)
    attempts = 0
    while (outcome := train_rank(case, 0)).stopped:
        attempts += 1
        assert attempts < 30
    assert attempts >= 1
    same(outcome, whole)
    last, expected = (shelf.read_facts(shelf.latest(tmp_path / name)) for name in ("parts", "whole"))
    assert last.samples == expected.samples
    assert (last.loss_samples, last.consumed_in_epoch) == (0, 0)


def finish(ranks, case, shapes):
    """Interrupted, each time on another number of ranks; what was trained on, by epoch, and the last outcomes."""
    trained, attempt = [], 0
    while True:
        world = shapes[min(attempt, len(shapes) - 1)]
        stop = None if attempt >= len(shapes) else case.stop_after
        outcomes = ranks.run(replace(case, world_size=world, stop_after=stop))
        for outcome in outcomes:
            assert outcome.error is None, outcome.error
            trained += [
                (epoch - carried, index)
                for epoch, ids, _, flags in outcome.batches
                for index, carried in zip(ids, flags, strict=True)
            ]
        attempt += 1
        if not outcomes[0].stopped:
            return trained, outcomes


@pytest.mark.ranks
@settings(deadline=None, max_examples=int(25 * EXAMPLES), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    num_train=st.integers(12, 40),
    shapes=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    stop_after=st.integers(1, 5),
    tail=st.sampled_from(TAILS),
    batch=st.integers(1, 4),
    holes=st.frozensets(st.integers(0, 11), max_size=3),
)
def test_every_sample_is_consumed_exactly_once_whatever_the_shapes(
    ranks, tmp_path_factory, num_train, shapes, stop_after, tail, batch, holes
):
    """As counted from the restored checkpoints: what a sample's epoch is does not change when it is carried over."""
    folder = tmp_path_factory.mktemp("shapes")
    case = Case(num_train, batch, 1, epochs=3, tail=tail, stop_after=stop_after, folder=str(folder), holes=holes)
    trained, outcomes = finish(ranks, case, shapes)
    times = Counter(trained)
    expected = {(epoch, index) for epoch in range(3) for index in range(num_train)}
    counts = {name: sum(outcome.counts[name] for outcome in outcomes) for name in outcomes[0].counts}
    assert set(times) <= expected
    missing = expected - set(times)
    broken = {(epoch, index) for epoch in range(3) for index in holes}
    assert broken <= missing
    assert len(missing - broken) <= counts["dropped"] <= len(missing), "some of the dropped were broken too"
    assert sum(times.values()) - len(times) == counts["repeated"]
    assert (counts["dropped"] == 0 or tail == "drop_last") and (counts["repeated"] == 0 or tail == "pad")
    facts = shelf.read_facts(shelf.latest(folder))
    assert facts.samples == sum(times.values())
    assert facts.counts == counts


@pytest.mark.ranks
@pytest.mark.parametrize("stop_after", [2, 5])
def test_ranks_that_were_interrupted_train_the_same_model(ranks, tmp_path, stop_after):
    case = case_of(tmp_path / "whole", checkpoint={"keep": 999}, accumulate=2)
    case = replace(case, world_size=2, num_train=40)
    whole = ranks.run(case)
    folder = str(tmp_path / "parts")
    _, resumed = finish(ranks, replace(case, folder=folder, stop_after=stop_after), [2, 2])
    for outcome, expected in zip(resumed, whole, strict=True):
        for name, value in expected.model.items():
            assert torch.allclose(outcome.model[name], value, atol=1e-6), "each rank has its own random numbers again"
        assert [e["loss"] for e in outcome.history] == pytest.approx([e["loss"] for e in expected.history], rel=1e-5)
    assert [outcome.read for outcome in resumed] == [[0, 1, 2, 3], [1, 2, 3]], "the model comes from the first rank"


def test_what_was_carried_over_is_counted(tmp_path):
    case = case_of(tmp_path, tail="carry")
    carried = [part.carried for part in StreamPlan(case.spec, Position(), 1).segments]
    assert train_rank(case, 0).counts["carried"] == sum(carried) > 0


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_loss_is_scaled_in_fp16_alone(tmp_path, precision):
    case = replace(case_of(tmp_path, precision=precision), model="linear", holes=frozenset(), epochs=1)
    outcome = train_rank(case, 0)
    assert outcome.error is None, outcome.error
    scaler = checkpoint.load_object(shelf.latest(tmp_path), 3)
    assert ("scale" in scaler) == (precision == "fp16")


def test_the_scale_of_fp16_is_kept(tmp_path):
    loud = dict.fromkeys(range(19), 100.0)
    case = replace(case_of(tmp_path / "a", precision="fp16"), model="linear", loud=loud, holes=frozenset())
    whole = train_rank(case, 0)
    assert whole.counts["skipped_steps"] > 1
    skipped = whole.counts["skipped_steps"]
    after = [
        f for _, f in shelf.whole(tmp_path / "a") if f.counts["skipped_steps"] == skipped and f.steps < whole.steps
    ]
    assert after
    for facts in {facts.steps: facts for facts in after}.values():
        resumed = train_rank(replace(case, folder=_copy(tmp_path / "a", facts.steps)), 0)
        assert resumed.error is None, resumed.error
        assert resumed.counts["skipped_steps"] == skipped, "it need not come down again"


def test_what_was_skipped_is_not_consumed(tmp_path):
    loud = dict.fromkeys(range(19), 100.0)
    case = replace(case_of(tmp_path, precision="fp16"), model="linear", loud=loud, holes=frozenset(), epochs=1)
    outcome = train_rank(case, 0)
    first = [(facts, checkpoint.load(path)[1]["consumed"]) for path, facts in shelf.whole(tmp_path)][0]
    skipped = outcome.counts["skipped_steps"]
    ids = [ids for _, ids, _, _ in outcome.batches]
    facts, consumed = first
    assert facts.steps == 1 and facts.updates == 0, "every_steps counts batches"
    assert not len(consumed)
    assert shelf.read_facts(shelf.latest(tmp_path)).samples == 19 - sum(map(len, ids[:skipped]))


def test_the_random_numbers_of_a_gpu_are_part_of_a_checkpoint(monkeypatch):
    """Without a GPU: where torch says that there is one, its state is asked for and given back."""
    given = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: torch.tensor([7], dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "set_rng_state", given.append)
    state = checkpoint.rng_state()
    assert state["cuda"].tolist() == [7]
    checkpoint.set_rng_state(state)
    assert [each.tolist() for each in given] == [[7]]


def test_a_restored_state_is_let_go_of(tmp_path, monkeypatch):
    case = case_of(tmp_path)
    train_rank(replace(case, stop_after=2), 0)
    alive: list[weakref.ref] = []
    load = checkpoint.load_object

    def watched(folder, number):
        state = load(folder, number)
        if number == 0:
            alive.extend(weakref.ref(value) for value in state.values())
        return state

    monkeypatch.setattr(checkpoint, "load_object", watched)

    def loop(ctx):
        from ranks import normed

        model = ctx.prepare(normed(), *(_Stateful() for _ in range(3)))[0]
        gc.collect()
        assert alive and all(reference() is None for reference in alive)
        assert model is not None

    outcome = train_rank(replace(case, loop=loop), 0)
    assert outcome.error is None, outcome.error


class _Stateful:
    def load_state_dict(self, state):
        pass

    def state_dict(self):
        return {}


def test_another_number_of_objects_is_refused(tmp_path):
    case = case_of(tmp_path)
    train_rank(replace(case, stop_after=2), 0)
    outcome = train_rank(replace(case, loop=lambda ctx: ctx.prepare(torch.nn.Linear(1, 1))), 0)
    assert "the checkpoint holds 4 objects, the loop prepares 1" in outcome.error
    wrong = train_rank(replace(case, model="linear"), 0)
    assert "the checkpoint does not fit this Sequential" in wrong.error


def test_an_interrupted_epoch_has_the_loss_of_all_its_samples(tmp_path):
    whole = train_rank(case_of(tmp_path / "whole"), 0)
    parts = case_of(tmp_path / "parts", checkpoint={"keep": 2})
    train_rank(replace(parts, stop_after=3), 0)
    facts = shelf.read_facts(shelf.latest(tmp_path / "parts"))
    assert facts.loss_samples == facts.samples and 10 <= facts.samples <= 12
    assert train_rank(parts, 0).history[0]["loss"] == whole.history[0]["loss"]
    assert np.isfinite(facts.loss_sum)


@pytest.mark.parametrize("tail", TAILS)
def test_broken_samples_change_neither_steps_nor_counts_of_a_resume(tmp_path, tail):
    """They are done with, although nothing was trained on them."""
    case = replace(case_of(tmp_path / "whole", tail), num_train=20, holes=frozenset({0, 3, 7}))
    whole = train_rank(case, 0)
    parts = replace(case, folder=str(tmp_path / "parts"), stop_after=1)
    for _ in range(30):
        outcome = train_rank(parts, 0)
        if not outcome.stopped:
            break
    same(outcome, whole)


def test_steps_that_end_in_an_epoch_have_a_score_and_one_row_an_epoch(tmp_path):
    steps = replace(case_of(tmp_path), epochs=None, steps=2, num_validation=7, holes=frozenset())
    first = train_rank(steps, 0)
    assert shelf.best(tmp_path) is not None, "it was evaluated"
    assert [entry["epoch"] for entry in first.history] == [1]
    second = train_rank(replace(steps, steps=7), 0)
    whole = train_rank(replace(steps, steps=7, folder=str(tmp_path.parent / "whole")), 0)
    assert [(entry["epoch"], entry["steps"]) for entry in second.history] == [(1, 5), (2, 2)]
    assert [entry["epoch"] for entry in whole.history] == [1, 2]
    sizes = [len(ids) for epoch, ids, _, _ in whole.batches if epoch == 0]
    assert second.history[0]["samples_per_s"] > 0 and sum(sizes) == 19
    row = shelf.read_facts(next(p for p, f in shelf.whole(tmp_path) if f.epoch == 1))
    assert row.loss_samples in (0, sum(len(ids) for e, ids, _, _ in whole.batches if e == 1))


def overflowing(ctx):
    """A finite loss whose gradient is infinite."""
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer = ctx.prepare(model, optimizer)
    for _ in ctx.epochs():
        for _batch in ctx.batches():
            loss = torch.sqrt(model.weight.sum() * 0)
            loss.backward()
            optimizer.step()
            ctx.report(loss)


def test_a_broken_model_is_never_kept(tmp_path):
    outcome = train_rank(replace(case_of(tmp_path), loop=overflowing), 0)
    assert "TrainingError: the model's weights are no finite numbers at step 1" in outcome.error
    assert shelf.latest(tmp_path) is None


def test_what_a_loop_leaves_of_a_window_is_dropped(tmp_path):
    """Half of a window is not part of the next epoch's first update."""

    def leaving(ctx):
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(18, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model, optimizer = ctx.prepare(model, optimizer)
        update = ctx.updater(model, optimizer, accumulate=2)
        for epoch in ctx.epochs():
            for batch in ctx.batches():
                update(batch, lambda batch: torch.nn.functional.cross_entropy(model(batch.image), batch.label))
                if epoch == 0:
                    break
                if batch.index == 0:
                    expected = model[1].weight.grad.clone()
                    model.zero_grad()
                    own = torch.nn.functional.cross_entropy(model(batch.image), batch.label)
                    (own * (len(batch.image) / ctx.window(0, 2)[1])).backward()
                    assert torch.allclose(expected, model[1].weight.grad)
            if epoch == 1:
                break

    outcome = train_rank(replace(case_of(tmp_path, checkpoint={}), loop=leaving), 0)
    assert outcome.error is None, outcome.error
