"""A run inside a SageMaker job: where it keeps its things, what it leaves, and how it goes on after an interruption."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import run_cli

from raytrain.cluster.environment import emulated_gpus, job_folders
from raytrain.config.job import Job
from raytrain.errors import CheckpointError, ConfigError, TrainingError
from raytrain.record.schema import RunRecord, read_record
from raytrain.run.folder import RunFolder
from raytrain.run.hosted import deliver, hosted
from raytrain.train.checkpoints import checkpoint, shelf
from raytrain.train.models import build_model


@pytest.fixture
def ml(tmp_path, monkeypatch):
    """A container's /opt/ml, elsewhere: SageMaker's own variable says where."""
    folder = tmp_path / "ml"
    (folder / "input/config").mkdir(parents=True)
    config = {"current_host": "algo-1", "hosts": ["algo-1"], "network_interface_name": "lo"}
    (folder / "input/config/resourceconfig.json").write_text(json.dumps(config))
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(folder))
    return folder


def test_outside_of_a_job_nothing_is_different(tmp_path, monkeypatch):
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(tmp_path))
    assert job_folders() is None


@pytest.mark.ray
def test_a_run_leaves_record_and_model_and_goes_on_by_itself(ml, job_file, job_tree):
    job_tree.pop("run_dir")
    words = ("--nodes", "train=1x1")
    first = run_cli("train", job_file(training__epochs=1), *words)
    assert first.returncode == 0, first.stderr
    record = read_record(ml / "output/data/record.json")
    assert (record.status, record.resumed_from) == ("finished", None)
    assert (ml / "checkpoints/small/record.json").is_file()
    model = build_model(Job.from_dict(job_tree).model)
    model.load_state_dict(torch.load(ml / "model/model.pt", weights_only=True))
    assert json.loads((ml / "model/checkpoint.json").read_text())["epoch"] == 1

    second = run_cli("train", job_file(training__epochs=2), *words)  # as after an interruption: nobody says --resume
    assert second.returncode == 0, second.stderr
    record = read_record(ml / "output/data/record.json")
    assert record.resumed_from is not None
    assert [epoch["epoch"] for epoch in record.epochs] == [1, 2]

    for written in (True, False):  # and again after it had finished: what it leaves must not depend on luck
        trained = (ml / "model/model.pt").read_bytes()
        shutil.rmtree(ml / "model")
        shutil.rmtree(ml / "output")
        if not written:  # killed between its last checkpoint and its record
            (ml / "checkpoints/small/record.json").unlink()
        again = run_cli("train", job_file(training__epochs=2), *words)
        assert again.returncode == 0, again.stderr
        assert (ml / "model/model.pt").read_bytes() == trained
        assert (ml / "model/best_model.pt").is_file()
        left = read_record(ml / "output/data/record.json")
        assert (left.status, left.epochs) == ("finished", record.epochs)
        assert left.totals.samples == (record.totals.samples if written else 0)


def test_the_jobs_own_run_dir_stays(ml):
    job = Job.from_dict({"name": "a", "training": {"epochs": 1}, "run_dir": "/elsewhere"})
    assert hosted(job, job_folders()) == (job, False)
    other = Job.from_dict({"name": "a", "training": {"epochs": 1}})
    assert hosted(other, job_folders())[0].run_dir == str(ml / "checkpoints")


def test_a_damaged_checkpoint_is_no_reason_to_go_on(ml):
    job = Job.from_dict({"name": "a", "training": {"epochs": 1}})
    damaged = ml / "checkpoints/a/checkpoints/1/checkpoint_1"
    damaged.mkdir(parents=True)
    (damaged / "checkpoint.json").write_text("{")
    assert hosted(job, job_folders())[1] is False


def test_a_run_that_did_not_get_far_leaves_nothing(ml):
    deliver(RunFolder(ml / "checkpoints/a"), job_folders())
    assert not (ml / "model").exists()
    assert not (ml / "output/data").exists()


def test_what_cannot_be_left_does_not_hide_the_runs_own_end(ml, capsys, monkeypatch):
    from raytrain.run import driver

    folder = RunFolder(ml / "checkpoints/a")
    monkeypatch.setattr(driver, "deliver", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    driver._leave(folder, job_folders(), ConfigError("mine"))
    assert "record and model could not be left for SageMaker: [Errno 28] No space left" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="record and model could not be left for SageMaker"):
        driver._leave(folder, job_folders(), None)


@pytest.fixture
def ending(tmp_path, record, monkeypatch):
    """A run that is about to end: its plan, and what was seen of it."""
    from raytrain.run import driver

    def build(plan, seen, error, command):
        return record.model_copy(update={"status": "failed" if error else "finished", "error": error and str(error)})

    monkeypatch.setattr(driver, "build_record", build)
    folder = RunFolder(tmp_path / "runs" / "a")
    folder.path.mkdir(parents=True)
    plan = SimpleNamespace(options=SimpleNamespace(folder=folder, kept=None))
    return driver, plan, SimpleNamespace(began_at=1.0, close=lambda: None), folder


def full(*_):
    raise OSError(28, "No space left on device")


def test_a_run_whose_model_cannot_be_written_has_failed_by_its_record_too(ending, monkeypatch):
    driver, plan, course, folder = ending
    monkeypatch.setattr(driver, "deliver", full)
    with pytest.raises(CheckpointError, match="the run's model could not be written: .*No space left"):
        driver._end(plan, course, None)
    left = read_record(folder.record)
    assert left.status == "failed" and "the run's model could not be written" in left.error


@pytest.mark.parametrize("error", [None, TrainingError("the loop failed")])
def test_a_record_that_cannot_be_written_does_not_hide_what_ended_the_run(ending, monkeypatch, capsys, error):
    driver, plan, course, folder = ending
    monkeypatch.setattr(RunRecord, "write", full)
    with pytest.raises(CheckpointError if error is None else TrainingError) as caught:
        driver._end(plan, course, error)
    told = str(caught.value) if error is None else capsys.readouterr().err
    assert "the run's record could not be written: [Errno 28] No space left on device" in told
    assert error is None or caught.value is error


def test_what_ended_before_it_began_leaves_no_record(ending):
    driver, plan, course, folder = ending
    course.began_at = None
    with pytest.raises(TrainingError, match="early"):
        driver._end(plan, course, TrainingError("early"))
    assert not folder.record.exists()


def write(folder, number, score, weight):
    path = folder.checkpoints / f"1/checkpoint_{number}"
    path.mkdir(parents=True)
    facts = shelf.Facts(0, number, 1, 1, 0, "f", 0, 1, metric="max validation_accuracy", score=score)
    checkpoint.save(path, facts, {"modules": [0]}, [{"w": torch.tensor([weight])}, {"lr": 1}])


def left(folder):
    """What the models of a run's folder hold, and the steps that they are from."""
    weights = {p.name: torch.load(p, weights_only=True)["w"].item() for p in folder.path.glob("*model.pt")}
    steps = {p.name: json.loads(p.read_text())["steps"] for p in folder.path.glob("*checkpoint.json")}
    return weights, steps


def test_outside_of_a_job_the_models_are_left_in_the_runs_folder(tmp_path):
    folder = RunFolder(tmp_path / "a")
    write(folder, 1, 0.9, 10.0)
    write(folder, 2, 0.5, 20.0)
    deliver(folder, None)
    assert left(folder) == (
        {"model.pt": 20.0, "best_model.pt": 10.0},
        {"checkpoint.json": 2, "best_checkpoint.json": 1},
    )
    write(folder, 3, 0.95, 30.0)
    deliver(folder, None)  # the last is the best: one copy
    assert left(folder) == (
        {"model.pt": 30.0, "best_model.pt": 30.0},
        {"checkpoint.json": 3, "best_checkpoint.json": 3},
    )
    assert (folder.path / "best_model.pt").samefile(folder.path / "model.pt")
    for number in (1, 2, 3):
        shutil.rmtree(folder.checkpoints / f"1/checkpoint_{number}")
    write(folder, 4, None, 40.0)
    deliver(folder, None)  # and nothing of what was the best before
    assert left(folder) == ({"model.pt": 40.0}, {"checkpoint.json": 4})


def test_several_models_are_a_list(tmp_path):
    facts = shelf.Facts(0, 1, 1, 1, 0, "f", 0, 1)
    objects = [{"a": torch.ones(1)}, {"lr": 1}, {"b": torch.zeros(1)}]
    checkpoint.save(tmp_path, facts, {"modules": [0, 2]}, objects)
    checkpoint.write_model(tmp_path, tmp_path / "model.pt")
    assert [list(found) for found in torch.load(tmp_path / "model.pt", weights_only=True)] == [["a"], ["b"]]


def test_emulated_gpus_are_a_number(monkeypatch):
    monkeypatch.setenv("RAYTRAIN_EMULATED_GPUS", "2")
    assert emulated_gpus() == 2
    monkeypatch.setenv("RAYTRAIN_EMULATED_GPUS", "two")
    with pytest.raises(ConfigError, match="must be a whole number of GPUs to emulate, not 'two'"):
        emulated_gpus()
