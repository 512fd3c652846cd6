"""Which model a job means: from a run, a file or a name, and one line for everything that is none."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import small_models
import torch
from buckets import bucket
from safetensors.torch import save_file

from raytrain.config.inference import PredictingModel
from raytrain.errors import CheckpointError, ConfigError
from raytrain.infer.backends.find import digested, find_model
from raytrain.infer.backends.load import load
from raytrain.infer.backends.module import built, output_of
from raytrain.infer.contract import BackendOptions
from raytrain.train.checkpoints import checkpoint, shelf

pytestmark = pytest.mark.usefixtures("one_thread")
SUMS = "small_models:sums"
ENCODER = "small_models:encoder"


def find(**section):
    return find_model(PredictingModel(**section))


def write_checkpoint(folder, number, *states, modules=None, **facts):
    """As the keeper does, with as many objects."""
    place = folder / "checkpoints" / "attempt" / f"checkpoint_{number}"
    place.mkdir(parents=True)
    known = shelf.Facts(0, number, number, 12, 0, "f", 0, 1, **facts)
    checkpoint.save(place, known, {"modules": list(range(len(states))) if modules is None else modules}, states)
    return place


@pytest.fixture
def run(tmp_path, record):
    """A function that writes a run of `raytrain train` with a small encoder, whose best checkpoint is not its last."""

    def write(name=ENCODER, options=None, classes=("a", "b", "c"), states=None, **changes):
        folder = tmp_path / "run"
        described = {"name": name, "options": options or {}} if name else None
        replaced = {"job": {**record.job, "model": described}, "classes": list(classes), **changes}
        record.model_copy(update=replaced).write(folder / "record.json")
        for number, state in enumerate(states or map(weights, (1, 2))):
            facts = {"metric": "max validation_accuracy", "score": 0.5 - number / 10}
            write_checkpoint(folder, number + 1, state, {"lr": 0.1}, modules=[0], **facts)
        return folder

    return write


def weights(seed, num_classes=3):
    torch.manual_seed(seed)
    return small_models.encoder(num_classes).state_dict()


def same(file, state):
    own = built(file).state_dict()
    return all(torch.equal(own[name], value) for name, value in state.items())


def test_a_runs_best_checkpoint_or_its_last(run):
    folder = run()
    found = find(run=str(folder), inputs={"tokens": "text", "mask": "mask"})
    assert same(found, weights(1)) and same(find(run=str(folder), checkpoint="last"), weights(2))
    assert (found.kind, found.num_classes, found.classes) == ("module", 3, ("a", "b", "c"))
    assert found.arguments == ("tokens", "mask")
    assert found.source == f"{folder}, best checkpoint after 1 updates, validation_accuracy 0.5"
    assert find(run=str(folder), classes=("x", "y", "z")).classes == ("x", "y", "z")


def test_a_damaged_best_checkpoint_is_passed_over(run):
    folder = run()
    (folder / "checkpoints/attempt/checkpoint_1/object_0.pt").write_bytes(b"cut")
    assert same(find(run=str(folder)), weights(2))


def test_a_loss_is_told_as_it_was_logged(run):
    folder = run()
    write_checkpoint(folder, 9, weights(3), metric="min validation_loss", score=-0.25)
    assert find(run=str(folder)).source.endswith("best checkpoint after 9 updates, validation_loss 0.25")


def test_labels_without_names_have_as_many_classes_as_the_checkpoint(run):
    found = find(run=str(run(classes=(), states=[weights(1, 7)])))
    assert found.num_classes == 7 and same(found, weights(1, 7))


def test_a_run_elsewhere(run):
    folder = run()
    with bucket("models") as client:
        for path in folder.rglob("*.*"):
            client.upload_file(str(path), "models", f"run/{path.relative_to(folder)}")
        torch.save(weights(4), folder / "w.pt")
        client.upload_file(str(folder / "w.pt"), "models", "w.pt")
        assert find(run="s3://models/run").digest == find(run=str(folder)).digest
        assert same(find(name=ENCODER, weights="s3://models/w.pt"), weights(4))
        with pytest.raises(ConfigError, match="s3://models/other has no record.json: give the folder of a run"):
            find(run="s3://models/other")


def test_runs_that_cannot_be_predicted_with(run, tmp_path):
    with pytest.raises(ConfigError, match=r"has no record.json \(looked for /.*nothing;.*: give the folder of a run"):
        find(run="nothing")
    folder = run()
    write_checkpoint(folder, 9, weights(1), weights(2), metric="max validation_accuracy", score=0.9)
    with pytest.raises(ConfigError, match="prepared 2 modules; give the one to predict with as model.name"):
        find(run=str(folder))
    own = json.loads((folder / "record.json").read_text())
    own["job"]["model"] = None
    (folder / "record.json").write_text(json.dumps(own))
    with pytest.raises(ConfigError, match="builds its model itself; give model.name"):
        find(run=str(folder))
    with pytest.raises(CheckpointError, match="has no whole checkpoint"):
        find(run=str(emptied(folder)))


def emptied(folder):
    own = json.loads((folder / "record.json").read_text())
    own["job"]["model"] = {"name": ENCODER}
    (folder / "record.json").write_text(json.dumps(own))
    for path in folder.rglob("object_0.pt"):
        path.write_bytes(b"")
    return folder


def test_a_state_for_another_number_of_classes_than_are_named(tmp_path):
    torch.save(weights(1, 4), tmp_path / "weights.pt")
    with pytest.raises(ConfigError, match=r"model.classes has 3 names, and model.weights: .*weights.pt has 4 classes"):
        find(name=ENCODER, weights=str(tmp_path / "weights.pt"), classes=("a", "b", "c"))


def test_a_checkpoint_of_another_model(run):
    state = weights(1)
    state["more.weight"] = torch.ones(2)
    for name in [name for name in state if name.startswith("layers.layers.0.norm")]:
        del state[name]
    state["places.weight"] = torch.ones(4, 2)
    message = (
        r"the checkpoint of .*run does not fit model 'small_models:encoder': 4 of the model's tensors are missing "
        r"\(layers.layers.0.norm1.weight, layers.layers.0.norm1.bias, layers.layers.0.norm2.weight and 1 more\); "
        r"1 are not the model's \(more.weight\); 1 have another size \(places.weight: 4x2 and not 32x32\); give "
    )
    with pytest.raises(CheckpointError, match=message):
        find(run=str(run(states=[state])))


def test_weights_of_a_model_by_name(tmp_path):
    state = weights(5)
    torch.save(state, tmp_path / "plain.pt")
    torch.save({"state_dict": {f"module._orig_mod.{k}": v for k, v in state.items()}, "epoch": 3}, tmp_path / "a.pth")
    torch.save({"model": {f"_orig_mod.module.{k}": v for k, v in state.items()}}, tmp_path / "b.pth")
    save_file(state, tmp_path / "c.safetensors")
    found = [find(name=ENCODER, weights=str(tmp_path / n)) for n in ("plain.pt", "a.pth", "b.pth", "c.safetensors")]
    assert all(same(each, state) for each in found)
    assert len({each.digest for each in found}) == 1, "of what it is, and not of where it is from"
    assert found[0].source == f"{ENCODER} with {tmp_path / 'plain.pt'}"


def test_without_weights_they_are_random_and_everywhere_the_same():
    found = find(name=ENCODER)
    assert found.source == "small_models:encoder with random weights of seed 0"
    torch.manual_seed(99)
    again = find(name=ENCODER)
    assert again.digest == found.digest and again.data == found.data
    assert same(replace(found, data=b""), built(found).state_dict())


def test_a_digest_is_of_everything_but_where_it_is_from():
    found = find(name=ENCODER)
    others = [find(name=ENCODER, options={"num_classes": 4}), find(name=ENCODER, classes=("a", "b", "c"))]
    others.append(find(name=ENCODER, inputs={"tokens": "x", "mask": "m"}))
    others.append(replace(found, data=b"other weights"))
    assert len({found.digest, *(digested(each).digest for each in others)}) == 5


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no file of torch", "is no file of torch.save"),
        (b"PK\x03\x04 and no more", "was cut off, or is no file of torch.save"),
        ([{"a": torch.ones(1)}, {}], "holds the states of 2 modules; save the one"),
        ({"a": 1}, "holds no state of a module"),
        ({}, "holds no state of a module"),
        (torch.ones(1), "holds no state of a module"),
        ({"a": io.BytesIO()}, "holds more than tensors and plain values, and is not loaded"),
    ],
)
def test_files_without_weights(tmp_path, data, message):
    path = tmp_path / "w.pt"
    if isinstance(data, bytes):
        path.write_bytes(data)
    else:
        torch.save(data, path)
    with pytest.raises(CheckpointError, match=f"model.weights: {path} {message}"):
        find(name=ENCODER, weights=str(path))


def test_safetensors_that_are_none(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"none")
    with pytest.raises(CheckpointError, match="cannot read model.weights: .*w.safetensors"):
        find(name=ENCODER, weights=str(tmp_path / "w.safetensors"))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, r"give exactly one of run, file and name \(given: none\)"),
        ({"run": "a", "name": "b"}, r"exactly one of run, file and name \(given: run, name\)"),
        ({"run": "a", "weights": "b"}, "model.weights goes with model.name, and not with model.run"),
        ({"file": "a.onnx", "options": {"x": 1}}, "model.options goes with model.name, and not with model.file"),
        ({"file": "a.pt"}, "a.pt is neither .pt2 of torch.export.save nor .onnx; a state goes with model.name"),
        ({"file": "nothing.onnx"}, "model.file: nothing.onnx does not exist"),
        ({"file": "/proc/self/mem/x.onnx"}, "model.file: cannot read /proc/self/mem/x.onnx"),
        ({"name": ENCODER, "weights": "nothing.pt"}, "model.weights: nothing.pt does not exist"),
        ({"name": "resnt18"}, "timm has no model 'resnt18'; did you mean 'resnet18'"),
        ({"name": ENCODER, "inputs": {"token": "x"}}, "takes no argument 'token'; did you mean 'tokens'"),
    ],
)
def test_one_line_for_what_is_no_model(section, message):
    with pytest.raises(ConfigError, match=message):
        find(**section)


@pytest.mark.parametrize("how", ["tensor", "first", "logits"])
def test_the_output_of_several(how):
    model = load(find(name=SUMS, options={"how": how}), BackendOptions())
    assert model(torch.arange(6.0).reshape(3, 2)).output.tolist() == [[1, 1], [5, 5], [9, 9]]


def test_a_model_that_returns_no_tensor():
    model = load(find(name=SUMS, options={"how": "text"}), BackendOptions())
    with pytest.raises(ConfigError, match="the model returns str: it must return a tensor, or several"):
        model(torch.ones(2, 2))
    with pytest.raises(ConfigError, match="the model returns dict"):
        output_of({})


def exported(rows=torch.export.Dim.AUTO, module=None):
    module = module or small_models.sums()
    example = torch.ones(4, 3, 2)
    return torch.export.export(module.eval(), (example,), dynamic_shapes=({0: rows} if rows else {},))


def saved(program, path):
    torch.export.save(program, path)
    return path


def rewritten(path, part, change):
    """The same archive with one of its parts changed; None: it is added."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(parts)).split("/")[0]
    parts[f"{root}/{part}"] = change(parts.get(f"{root}/{part}", b""))
    other = path.with_name("changed.pt2")
    with zipfile.ZipFile(other, "w", zipfile.ZIP_STORED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return other


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("EXPLODED",))


def replacing(old, new):
    def change(text):
        assert old in text
        return text.replace(old, new)

    return change


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("data/sample_inputs/model.pt", lambda _: pickle.dumps(((Bomb(),), {})), "sample inputs that are no plain"),
        ("data/weights/model.pt", lambda _: pickle.dumps(Bomb()), "a part 'data/weights/model.pt'"),
        ("data/aotinductor/model/x.so", lambda _: b"", "a part 'data/aotinductor/model/x.so'"),
        ("data/weights/model_weights_config.json", replacing(b'"use_pickle": false', b'"use_pickle": true'), "pickled"),
        ("data/weights/model_weights_config.json", replacing(b'"weight_0"', b'"../w"'), r"a payload '\.\./w'"),
        (
            "models/model.json",
            replacing(b'"torch.ops.aten.mul.Tensor"', b'"torch.os.mkdir"'),
            "the operation 'torch.os.mk",
        ),
        ("models/model.json", replacing(b'"expr_str": "', b'"expr_str": "exit()+'), "the expression 'exit"),
        ("models/model.json", replacing(b'"name": "x"', b'"name": "x=exit()"'), r"the name 'x=exit\(\)'"),
    ],
)
def test_a_program_that_could_execute_code_is_not_loaded(tmp_path, monkeypatch, part, change, message):
    monkeypatch.chdir(tmp_path)
    path = saved(exported(), tmp_path / "model.pt2")
    assert find(file=str(path)).kind == "export"
    with pytest.raises(ConfigError, match=f"changed.pt2 holds {message}.*is not loaded since that could execute code"):
        find(file=str(rewritten(path, part, change)))
    assert not (tmp_path / "EXPLODED").exists()


def test_files_that_are_no_programs(tmp_path):
    path = tmp_path / "model.pt2"
    path.write_bytes(b"none")
    with pytest.raises(ConfigError, match="model.pt2 is no file of torch.export.save, or was cut off"):
        find(file=str(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/x", b"")
    with pytest.raises(ConfigError, match="is no file of torch.export.save, of torch 2.8 or later"):
        find(file=str(path))
    other = rewritten(saved(exported(), path), "archive_version", lambda _: b"99")
    with pytest.raises(ConfigError, match=r"torch .* cannot load .*changed.pt2: .*; save it again with this version"):
        load(find(file=str(other)), BackendOptions())


@pytest.mark.parametrize(
    "rows",
    [torch.export.Dim.AUTO, None, torch.export.Dim("rows", min=3, max=64)],
    ids=["any number", "four only", "three at least"],
)
def test_a_program_is_filled_up_to_its_batch(tmp_path, rows):
    model = load(find(file=str(saved(exported(rows), tmp_path / "model.pt2"))), BackendOptions())
    for num in (1, 3, 4, 9):
        x = torch.arange(num * 6.0).reshape(num, 3, 2)
        torch.testing.assert_close(model(x).output, x.sum((1, 2)).repeat(2, 1).T)


class Masked(torch.nn.Module):
    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"hidden": tokens, "logits": tokens * 2.0 - mask.float()}


def test_a_program_takes_its_arguments_by_name(tmp_path):
    module = Masked()
    (tokens, mask), _ = small_models.samples("encoder", 4)
    inputs = {"tokens": torch.from_numpy(tokens), "mask": torch.from_numpy(mask)}
    varying = {name: {0: torch.export.Dim.AUTO} for name in inputs}
    for number, program in enumerate(
        (
            torch.export.export(module, tuple(inputs.values()), dynamic_shapes=varying),
            torch.export.export(module, (inputs["tokens"],), {"mask": inputs["mask"]}, dynamic_shapes=varying),
        )
    ):
        path = str(saved(program, tmp_path / f"{number}.pt2"))
        model = load(find(file=path, inputs={"mask": "m", "tokens": "t"}), BackendOptions())
        torch.testing.assert_close(model(inputs["mask"], inputs["tokens"]).output, module(**inputs)["logits"])
        for wrong in (None, {"mask": "m", "words": "t"}):
            with pytest.raises(ConfigError, match="takes tokens, mask, and not (a field alone|mask, words); name"):
                load(find(file=path, inputs=wrong), BackendOptions())


def test_weights_are_those_of_the_file_and_not_of_the_hub(tmp_path):
    """A model that timm fetched weights for in training does not fetch them again."""
    torch.save(find_and_state(small_models.VIT), tmp_path / "w.pt")
    options = {**small_models.VIT["options"], "pretrained": True}
    found = find(name=small_models.VIT["name"], options=options, weights=str(tmp_path / "w.pt"))
    assert "pretrained" not in found.model.options
    assert np.isfinite(sum(float(each.sum()) for each in built(found).state_dict().values()))


def find_and_state(section):
    return built(find(**section)).state_dict()
