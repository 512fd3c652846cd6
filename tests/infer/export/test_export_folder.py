"""A run's model in a folder that needs no raytrain."""

from __future__ import annotations

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from conftest import run_cli
from patience import patient

import raytrain
from raytrain.config.inference import PredictingModel
from raytrain.config.learning import Model
from raytrain.data.stages.geometry import center_crop_field, resize_field
from raytrain.data.stages.images import decode_field
from raytrain.errors import CheckpointError, ConfigError
from raytrain.infer.backends.find import find_model
from raytrain.infer.backends.module import built
from raytrain.infer.export import programs
from raytrain.infer.export.folder import export
from raytrain.train.checkpoints import checkpoint, shelf
from raytrain.train.learning.averaged import WEIGHTS
from raytrain.train.models import build_model

pytestmark = pytest.mark.usefixtures("one_thread")
FIXED = ["decode", {"resize": {"size": [8, 8]}}]


@pytest.fixture
def run(tmp_path, record):
    """A function that writes the record and a checkpoint of a run with a small transformer."""

    def write(model=None, averaged=False, **data):
        folder = tmp_path / "small"
        job = {**record.job, "data": {**record.job["data"], "stages": FIXED, **data}}
        job["model"] = model or job["model"]
        record.model_copy(update={"job": job, "classes": ["dark", "grey", "light"]}).write(folder / "record.json")
        torch.manual_seed(1)
        states = [build_model(Model(**job["model"]), 3).state_dict() for _ in range(2)]
        objects = [states[0], {"updates": 1, WEIGHTS: states[1]}] if averaged else states[:1]
        place = folder / "checkpoints" / "attempt" / "checkpoint_1"
        place.mkdir(parents=True)
        state = {"modules": [0], "averaged": [1] if averaged else []}
        checkpoint.save(place, shelf.Facts(0, 1, 1, 12, 0, "f", 0, 1), state, objects)
        return folder, states[1 if averaged else 0]

    return write


def without_raytrain(code, folder):
    start = "import sys; sys.modules['raytrain'] = None; import json, torch\n"
    done = subprocess.run(
        [sys.executable, "-c", start + code], cwd=folder, capture_output=True, text=True, timeout=patient(200)
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def code_of(readme):
    return "\n".join(line[4:] for line in readme.splitlines() if line.startswith("    "))


@pytest.mark.process
@pytest.mark.parametrize("kind", ["safetensors", "torch-export", "onnx"])
def test_the_lines_of_its_page_load_it_where_there_is_no_raytrain(run, tmp_path, kind):
    folder, _ = run()
    done = export(folder, kind, tmp_path / "out")
    assert set(done.files) == {path.name for path in done.folder.iterdir()}
    for seed in (1, 5):  # as many samples
        batch = torch.linspace(-2, 2, seed * 192).reshape(seed, 3, 8, 8)
        wanted = built(find_model(PredictingModel(run=str(folder))))(batch)
        code = f"batch = torch.linspace(-2, 2, {seed} * 192).reshape({seed}, 3, 8, 8)\n"
        code += "batch = batch.numpy()\n" if kind == "onnx" else ""
        code += code_of((tmp_path / "out" / "README.md").read_text())
        code += "\nprint(json.dumps((outputs[0] if 'outputs' in dir() else model(batch)).tolist()))"
        assert torch.allclose(torch.tensor(without_raytrain(code, tmp_path / "out")), wanted, atol=1e-5)


@pytest.mark.process
def test_its_preprocessing_is_that_of_the_validation(run, tmp_path):
    """Where an image grows or keeps its size the pixels are the same within a rounding."""
    stages = ["decode", {"resize": {"size": 8}}, {"center_crop": {"size": [6, 10]}}]
    options = {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.25, 0.2]}
    done = export(run(validation_stages=stages, normalize=options)[0], output=tmp_path / "out")
    assert done.notes == (
        "resize: where an image shrinks, the pixels differ slightly from those of the training (another filter)",
    )
    image = np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "image.png"), image[..., ::-1])
    value = decode_field((tmp_path / "image.png").read_bytes(), "image")
    value = resize_field(value, "image", value.shape[:2], 8)
    value = center_crop_field(value, "image", value.shape[:2], (6, 10))
    wanted = (value / 255 - np.array(options["mean"])) / np.array(options["std"])
    code = f"from preprocess import preprocess\nprint(json.dumps(preprocess({str(tmp_path / 'image.png')!r}).tolist()))"
    found = np.array(without_raytrain(code, tmp_path / "out"))
    assert found.shape == (3, 6, 10)
    assert np.abs(found - wanted.transpose(2, 0, 1)).max() < 1.01 / 255 / 0.2, "a level at most"


def test_averaged_weights_are_the_ones(run, tmp_path):
    from safetensors.torch import load_file

    folder, state = run(averaged=True)
    export(folder, output=tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in state.items()) and set(found) == set(state)


def test_what_it_says_beside_the_weights(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stages = ["decode", {"random_crop": {"size": 8}}, {"gaussian_blur": {"kernel_size": 3}}]
    done = raytrain.export(run(stages=stages)[0])
    assert str(done.folder) == "small-safetensors"
    assert json.loads((done.folder / "classes.json").read_text()) == ["dark", "grey", "light"]
    told = json.loads((done.folder / "preprocess.json").read_text())
    assert told["input"] == "image" and told["stages"] == ["decode"] and told["normalize"]["mean"] == [0.5]


@pytest.mark.parametrize(
    ("data", "left"),
    [
        ({"stages": ["decode", {"grayscale": {}}]}, "the stage grayscale"),
        ({"stages": [{"resize": {"size": 8}}]}, "input that is not an image file"),
        ({"stages": ["decode", "decode"]}, "a second decode"),
        ({"stages": ["decode", {"resize": {"size": 8, "on": ["mask"]}}]}, "the stage resize"),
        ({"fields": {"image": {"dtype": "float32"}}}, "data.fields.image"),
    ],
)
def test_what_torchvision_does_not_express_is_named(run, tmp_path, data, left):
    done = export(run(**data)[0], output=tmp_path / "out")
    assert "preprocess.py" not in done.files
    assert done.notes == (f"no preprocess.py: torchvision does not express {left}",)


def test_bad_input_is_one_line(run, record, tmp_path):
    with pytest.raises(ConfigError, match="has no record.json"):
        export(tmp_path / "none")
    with pytest.raises(ConfigError, match="format: 'pickle' is none of safetensors, torch-export, onnx"):
        export(tmp_path, "pickle")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ConfigError, match="full is not an empty folder; give another"):
        export(tmp_path, output=tmp_path / "full")
    folder, _ = run(stages=["decode", {"resize": {"size": 8}}])
    with pytest.raises(ConfigError, match="give it, such as --shape 3,224,224"):
        export(folder, "onnx", tmp_path / "out")
    record.write(tmp_path / "bare" / "record.json")
    with pytest.raises(CheckpointError, match="has no whole checkpoint"):
        export(tmp_path / "bare", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_cannot_be_exported_is_one_line_and_leaves_nothing(run, tmp_path, monkeypatch):
    folder, _ = run()
    with pytest.raises(ConfigError, match=r"cannot export .* with torch.export for inputs of shape \[3, 9, 9\]"):
        export(folder, "torch-export", tmp_path / "out", shape=(3, 9, 9))
    with pytest.raises(ConfigError, match="cannot convert .* to ONNX"):
        export(folder, "onnx", tmp_path / "out", shape=(3, 9, 9))
    opened = programs._opened
    monkeypatch.setattr(programs, "_opened", lambda *given: lambda x: opened(*given)(x) * 1.01)
    with pytest.raises(ConfigError, match="differs from the model by 0.01 of its largest output"):
        export(folder, "torch-export", tmp_path / "out")
    monkeypatch.setattr(programs, "_opened", lambda *given: lambda x: opened(*given)(x) * torch.nan)
    with pytest.raises(ConfigError, match="differs from the model by nan"):
        export(folder, "torch-export", tmp_path / "out")
    monkeypatch.setattr(programs, "_opened", lambda *given: lambda x: opened(*given)(x)[:1])
    with pytest.raises(ConfigError, match="the torch-export file of .* does not run: it returns"):
        export(folder, "torch-export", tmp_path / "out")
    assert [each.name for each in tmp_path.iterdir() if "out" in each.name] == []


@pytest.mark.process
def test_the_command(run, tmp_path):
    folder, _ = run()
    done = run_cli("export", folder, "--output", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["files"][0] == "model.safetensors"
    bad = run_cli("export", folder, "--shape", "3,x")
    assert bad.returncode == 2 and "--shape: '3,x' is no list of whole numbers" in bad.stderr


def test_a_model_of_ones_own_is_built_by_its_own_module(run, tmp_path):
    folder, _ = run({"name": "small_models:encoder", "options": {}})
    export(folder, output=tmp_path / "out")
    lines = code_of((tmp_path / "out" / "README.md").read_text()).splitlines()
    assert "import small_models" in lines and "model = small_models.encoder(num_classes=3)" in lines


def test_of_a_run_with_data_of_a_script_the_record_does_not_know_the_stages(run, tmp_path):
    folder, _ = run()
    job = json.loads((folder / "record.json").read_text())
    job["job"]["data"] = None
    (folder / "record.json").write_text(json.dumps(job))
    done = export(folder, output=tmp_path / "out")
    assert done.notes == ("no preprocess.py: the data came from a script, which the record does not have",)
    assert not json.loads((tmp_path / "out" / "preprocess.json").read_text())["known"]


def test_stages_with_what_looked_like_a_secret_are_not_exported(run, tmp_path):
    folder, _ = run(stages=[{"mine:own": {"api_key": "***"}}])
    with pytest.raises(ConfigError, match="does not have data.stages.0.mine:own.api_key, which looked like a secret"):
        export(folder, output=tmp_path / "out")
