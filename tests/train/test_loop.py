"""The parts of the training room that need no cluster."""

from __future__ import annotations

import io
import json
import random
import re
import shutil
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ranks import Case, train_rank

from raytrain.config.job import Job
from raytrain.config.learning import Model, Optimizer, Schedule
from raytrain.config.training import CheckpointPolicy
from raytrain.errors import CheckpointError, ConfigError
from raytrain.train import modules
from raytrain.train.checkpoints import checkpoint, shelf
from raytrain.train.learning.optimizers import build_optimizer, build_scheduler, lr_factor
from raytrain.train.models import build_model, check_model, check_outputs


def test_the_schedule_warms_up_and_follows_a_cosine():
    settings = Schedule(name="cosine", warmup_share=0.1, final_share=0.1)
    factors = [lr_factor(settings, step, 100) for step in range(101)]
    assert factors[0] == 0.1
    assert factors[9] == factors[10] == 1.0
    assert factors[55] == pytest.approx(0.55)
    assert factors[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in zip(factors[10:], factors[11:], strict=False))
    assert lr_factor(settings, 500, 100) == pytest.approx(0.1)


def test_a_constant_rate_is_constant():
    assert {lr_factor(Schedule(), step, 10) for step in range(20)} == {1.0}


def test_the_cosine_agrees_with_torch():
    parameter = torch.nn.Parameter(torch.zeros(2, 2))
    ours = build_scheduler(torch.optim.SGD([parameter], lr=0.5), Schedule(name="cosine"), 20)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(torch.optim.SGD([parameter], lr=0.5), 20)
    for _ in range(20):
        assert ours.get_last_lr()[0] == pytest.approx(theirs.get_last_lr()[0])
        for scheduler in (ours, theirs):
            scheduler.optimizer.step()
            scheduler.step()


def test_an_epoch_has_the_learning_rate_that_its_last_update_left():
    cosine = {"name": "cosine", "final_share": 0.2}
    case = Case(30, 4, training={"optimizer": {"name": "sgd", "lr": 0.1}, "schedule": cosine})
    outcome = train_rank(case, 0)  # two epochs of eight updates
    halfway = 0.2 + 0.8 * 0.5  # of the peak
    assert [entry["learning_rate"] for entry in outcome.history] == pytest.approx([0.1 * halfway, 0.1 * 0.2])


class Narrow(Case):
    def samples(self, split="train"):
        images, labels = super().samples(split)
        return images, labels.to(torch.int32)


def test_classes_of_any_whole_type_are_learnt():
    """torch's own loss takes int64 and uint8 alone."""
    length = {"num_train": 12, "num_validation": 8, "epochs": 1}
    [narrow], [wide] = (train_rank(case, 0).history for case in (Narrow(**length), Case(**length)))
    for figure in ("loss", "validation_loss", "validation_accuracy"):
        assert narrow[figure] == wide[figure]


def test_weight_decay_leaves_biases_alone():
    model = torch.nn.Linear(3, 2)
    for name in ("sgd", "adamw"):
        optimizer = build_optimizer(model, Optimizer(name=name, lr=0.1, weight_decay=0.3))
        assert [(len(g["params"]), g["weight_decay"], g["lr"]) for g in optimizer.param_groups] == [
            (1, 0.3, 0.1),
            (1, 0.0, 0.1),
        ]


def test_models_by_name_and_by_import_path():
    assert sum(p.numel() for p in build_model(Model(name="test_vit")).parameters()) > 0
    model = build_model(Model(name="torch.nn:Linear", options={"in_features": 2, "out_features": 3}))
    assert model.weight.shape == (3, 2)


def test_a_model_that_can_be_told_has_as_many_classes_as_the_data():
    assert build_model(Model(name="test_vit"), 7).head.out_features == 7
    assert build_model(Model(name="test_vit", options={"num_classes": 9}), 7).head.out_features == 9
    assert build_model(Model(name="timm.models:VisionTransformer"), 7).head.out_features == 7
    linear = Model(name="torch.nn:Linear", options={"in_features": 2, "out_features": 3})
    assert build_model(linear, 7).out_features == 3, "it has no such option"


def test_a_model_with_fewer_outputs_than_classes_is_named():
    check_outputs(Model(name="a:b"), 10, 10)
    check_outputs(Model(name="a:b"), 11, 10)
    with pytest.raises(ConfigError, match="model 'a:b' has 9 outputs, but the data has 10 classes"):
        check_outputs(Model(name="a:b"), 9, 10)


@pytest.mark.parametrize("name", ["vit_base_patch16_224", "resnet50", "vit_base_patch16_224.augreg_in21k", "torch.b:c"])
def test_models_that_exist_pass_the_check(name):
    check_model(Model(name=name))


def test_a_model_that_does_not_exist_names_the_nearest():
    with pytest.raises(ConfigError, match="timm has no model 'resnet5O'; did you mean 'resnet50'"):
        check_model(Model(name="resnet5O"))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            Model(name="nowhere:f"),
            "cannot import 'nowhere:f': there is no module 'nowhere'; put nowhere.py",
        ),
        (Model(name="math:f"), "module 'math' .*has no 'f'"),
        (Model(name="test_vit", options={"depht": 3}), "cannot build model 'test_vit': .*'depht'"),
        (Model(name="builtins:list"), "'builtins:list' must return a torch module, not list"),
        (Model(name="test_vit", options={"depht": 3}), "unexpected keyword argument 'depht'"),
    ],
)
def test_a_model_that_cannot_be_built_says_why(model, message):
    with pytest.raises(ConfigError) as caught:
        build_model(model)
    assert re.search(message, str(caught.value)), str(caught.value)


FACTS = shelf.Facts(
    epoch=1, steps=20, updates=20, samples=160, consumed_in_epoch=3, fingerprint="f", seed=0, world_size=1
)


def write(folder, **changes):
    folder.mkdir(parents=True)
    facts = replace(FACTS, **changes)
    checkpoint.save(folder, facts, {"consumed": torch.tensor([True, False]), "modules": [0]}, [{"w": torch.ones(3)}])
    return folder


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    facts, state = checkpoint.load(write(tmp_path / "c"))
    assert replace(facts, sha256={}) == FACTS
    assert state["consumed"].tolist() == [True, False]
    assert checkpoint.load_object(tmp_path / "c", 0)["w"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("modules", [[0], [1, 0]])
def test_a_model_alone_is_what_load_state_dict_takes(tmp_path, modules):
    folder = tmp_path / "c"
    folder.mkdir()
    checkpoint.save(folder, FACTS, {"modules": modules}, [{"w": torch.ones(3)}, {"w": torch.zeros(2)}])
    checkpoint.write_model(folder, tmp_path / "model.pt")
    found = torch.load(tmp_path / "model.pt", weights_only=True)
    states = [{"w": [1, 1, 1]}, {"w": [0, 0]}]
    found = [found] if isinstance(found, dict) else found
    assert [{name: tensor.tolist() for name, tensor in each.items()} for each in found] == [states[n] for n in modules]
    assert isinstance(torch.load(tmp_path / "model.pt", weights_only=True), dict) == (len(modules) == 1)


def test_memory_is_read_as_a_file_is():
    view = checkpoint._View(np.arange(10, dtype=np.uint8))
    assert io.BufferedReader(view, buffer_size=3).read(7) == bytes(range(7))
    assert view.seek(-2, io.SEEK_END) == 8 and view.read(5) == bytes([8, 9]) and view.read(1) == b""


def test_a_checkpoint_never_executes_code(tmp_path):
    class Bad:
        def __reduce__(self):
            return (print, ("executed",))

    folder = tmp_path / "c"
    folder.mkdir()
    checkpoint.save(folder, FACTS, {"bad": Bad()}, [{"bad": Bad()}])
    for read in (checkpoint.load, lambda path: checkpoint.load_object(path, 0)):
        with pytest.raises(CheckpointError, match="holds more than tensors and plain values: Weights only"):
            read(folder)
    checkpoint.check("Linear", torch.nn.Linear(1, 1).state_dict())
    for wrong in (np.float64(3), Bad(), lambda: 3, threading.Lock(), {"deep": [(np.zeros(2),)]}):
        with pytest.raises(CheckpointError, match="the state of Best holds more than tensors"):
            checkpoint.check("Best", {"best": wrong})


def test_what_was_packed_is_unpacked_out_of_the_memory_it_lies_in():
    state = {"w": torch.arange(5), "n": 3}
    data = checkpoint.pack(state)
    data.setflags(write=False)  # as in the object store
    facts = replace(FACTS, sha256={"a.pt": shelf.digest(data)})
    again = checkpoint.unpack(facts, "a.pt", data)
    assert again["w"].tolist() == [0, 1, 2, 3, 4] and again["n"] == 3
    damaged = data.copy()
    damaged[10] ^= 1
    for name, wrong in (("a.pt", damaged), ("b.pt", data)):
        with pytest.raises(CheckpointError, match="the checkpoint was damaged between the host"):
            checkpoint.unpack(facts, name, wrong)


@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "object", "no facts", "cut facts", "version"])
def test_a_damaged_checkpoint_is_refused_and_passed_over(tmp_path, damage):
    older = write(tmp_path / "one" / "checkpoint_1", steps=5)
    newer = write(tmp_path / "one" / "checkpoint_2", steps=9)
    assert shelf.latest(tmp_path) == newer
    state, facts = newer / "state.pt", newer / "checkpoint.json"
    if damage == "cut":
        state.write_bytes(state.read_bytes()[:-20])
    elif damage == "flip":
        data = bytearray(state.read_bytes())
        data[len(data) // 2] ^= 1
        state.write_bytes(data)
    elif damage == "object":
        (newer / "object_0.pt").write_bytes(b"")
    elif damage == "gone":
        state.unlink()
    elif damage == "no facts":
        facts.unlink()
    elif damage == "cut facts":
        facts.write_text(facts.read_text()[:30])
    else:
        facts.write_text(json.dumps({**json.loads(facts.read_text()), "version": 99}))
    message = "is cut off or damaged|cannot read|is not a raytrain checkpoint, or was cut off|has checkpoint version 99"
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(newer)
    assert shelf.latest(tmp_path) == older
    shutil.rmtree(older)
    assert shelf.latest(tmp_path) is None


def test_random_numbers_go_on_where_they_stopped(tmp_path):
    state = checkpoint.rng_state()
    torch.save(state, tmp_path / "rng.pt")
    expected = (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random())
    checkpoint.set_rng_state(torch.load(tmp_path / "rng.pt", weights_only=True))
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()) == expected


def test_the_best_checkpoint_is_the_first_of_the_best(tmp_path):
    assert shelf.best(tmp_path) is None
    write(tmp_path / "zero" / "checkpoint_0", steps=0, score=7.0, metric="max other")
    write(tmp_path / "zero" / "checkpoint_0.bak", steps=99, score=9.0)
    scores = {1: None, 2: 0.5, 3: 0.9, 4: 0.9, 5: 0.1}
    for number, score in scores.items():
        write(tmp_path / "one" / f"checkpoint_{number}", steps=number, score=score)
    assert shelf.best(tmp_path).name == "checkpoint_3"
    assert shelf.latest(tmp_path).name == "checkpoint_5"
    (tmp_path / "one" / "checkpoint_3" / "state.pt").write_bytes(b"")
    assert shelf.best(tmp_path).name == "checkpoint_4", "a damaged one is passed over"


def test_what_is_best():
    metrics = {"validation_accuracy": 0.9, "validation_loss": 0.3, "f1": 0.5, "odd": None}
    for settings, expected in (
        ({}, 0.9),
        ({"best": "validation_loss"}, -0.3),
        ({"best": "validation_loss", "best_is": "max"}, 0.3),
        ({"best": "f1", "best_is": "min"}, -0.5),
        ({"best": "odd"}, None),
        ({"best": "missing"}, None),
        ({"best": None}, None),
    ):
        assert CheckpointPolicy(**settings).score(metrics) == expected
    assert CheckpointPolicy().goal == "max validation_accuracy"
    assert CheckpointPolicy(best="a_loss").goal == "min a_loss"
    assert CheckpointPolicy(best=None).goal is None


def test_statistics_are_frozen_for_as_long_as_asked():
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    model[2].eval()
    with modules.frozen_statistics([model], 1):
        assert not model[0].training and model[1].training
        model(torch.ones(1, 2))
    assert model[0].running_mean.tolist() == [0, 0]
    assert model[0].training and not model[2].training, "as it was"


def test_a_synchronised_batch_norm_is_left_to_the_other_ranks():
    plain = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))
    assert not modules.synchronises_batch_norm([plain])
    synchronised = torch.nn.SyncBatchNorm.convert_sync_batchnorm(plain)
    assert modules.synchronises_batch_norm([synchronised])
    with modules.frozen_statistics([synchronised], 2):
        assert synchronised[1].training, "it would not take part, and the others would wait for it"
    with modules.frozen_statistics([synchronised], 1):
        assert not synchronised[1].training, "alone it is like any other"


def test_synchronising_batch_norm_leaves_a_models_function_as_it_is(monkeypatch):
    """timm's BatchNorm has the activation inside, which torch's own conversion forgets."""
    from raytrain.train import loop

    made = []
    monkeypatch.setattr(
        loop, "build_model", lambda *_: made.append(build_model(Model(name="efficientnet_b0"))) or made[0]
    )

    def prepare(model, *others):
        made.append(model)
        raise StopIteration

    job = Job.from_dict({"name": "x", "model": {"name": "m"}, "training": {"epochs": 1, "sync_batchnorm": True}})
    ctx = SimpleNamespace(job=job, world_size=2, updates=0, num_updates=lambda _: 1, device=torch.device("cpu"))
    ctx.prepare, ctx.num_classes = prepare, 10
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain = build_model(Model(name="efficientnet_b0"))
    with pytest.raises(StopIteration):
        loop.train_loop(ctx)
    converted = made[-1]
    assert modules.synchronises_batch_norm([converted]) and not modules.synchronises_batch_norm([plain])
    plain.load_state_dict(converted.state_dict())
    with torch.no_grad():
        assert torch.equal(plain.eval()(image), converted.eval()(image))


def test_a_frozen_module_is_not_distributed():
    teacher = torch.nn.Linear(1, 1).requires_grad_(False)
    assert not modules.is_distributed(teacher, 2)
    assert modules.is_distributed(torch.nn.Linear(1, 1), 2)
    assert not modules.is_distributed(torch.nn.Linear(1, 1), 1)
    assert modules.distributed(teacher, torch.device("cpu"), 2) is teacher


def test_what_restored_the_objects_is_let_go_of():
    """They hold on to a whole checkpoint in the object store, and a rank to them for as long as it runs."""
    model = torch.nn.Linear(1, 1)
    readers = [lambda: {"weight": torch.full((1, 1), 3.0), "bias": torch.zeros(1)}]
    checkpoint.restore([model], readers, 0, 1)
    assert readers == [] and model.weight.item() == 3


def test_a_checkpoint_is_read_through_once_and_again_when_a_file_has_changed(tmp_path, monkeypatch):
    folder = tmp_path / "run" / "a" / "checkpoint_1"
    folder.mkdir(parents=True)
    checkpoint.save(folder, FACTS, {"modules": []}, [torch.nn.Linear(2, 2).state_dict()])
    read = []
    real = shelf.hashlib.file_digest
    monkeypatch.setattr(shelf.hashlib, "file_digest", lambda file, kind: read.append(file.name) or real(file, kind))
    for _ in range(3):
        assert shelf.latest(tmp_path / "run") == folder
    assert sorted(read) == [str(folder / "object_0.pt"), str(folder / "state.pt")]
    whole = (folder / "state.pt").read_bytes()
    (folder / "state.pt").write_bytes(whole[:-1] + b"x")
    assert shelf.latest(tmp_path / "run") is None
