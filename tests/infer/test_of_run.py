"""What a job leaves out comes from the run whose model it takes."""

from __future__ import annotations

import pytest

from raytrain import PredictionJob
from raytrain.errors import ConfigError
from raytrain.infer.of_run import completed
from raytrain.infer.plan import pipeline_of


def job(run, **data) -> PredictionJob:
    source = {"kind": "image_folder", "path": "images"}
    return PredictionJob.from_dict({"name": "p", "model": {"run": str(run)}, "data": {"source": source, **data}})


def test_stages_normalisation_classes_and_the_input_are_those_of_its_validation(record, tmp_path):
    trained = record.model_copy(update={"classes": ["dark", "grey", "light"]})
    trained.write(tmp_path / "record.json")
    found = completed(job(tmp_path))
    assert found.model.classes == ("dark", "grey", "light") and found.model.inputs == "image"
    assert found.data.normalize.mean == (0.5,)
    assert [stage.name for stage in pipeline_of(found).stages] == ["decode", "resize"], "without the random crop"
    own = completed(job(tmp_path, stages=["decode"], normalize={"mean": [0.1]}))
    assert own.data.stages == ("decode",) and own.data.normalize.mean == (0.1,)
    trained.job["data"]["validation_stages"] = ["decode", {"resize": {"size": 4}}]
    trained.write(tmp_path / "record.json")
    assert completed(job(tmp_path)).data.stages[1] == {"resize": {"size": 4}}


def test_as_many_classes_are_named_as_it_was_trained_on(record, tmp_path):
    record.model_copy(update={"classes": ["dark", "grey", "light"]}).write(tmp_path / "record.json")
    tree = {"name": "p", "data": {"source": {"kind": "image_folder", "path": "images"}}}
    own = {"run": str(tmp_path), "classes": ["black", "brown", "white"]}
    assert completed(PredictionJob.from_dict({**tree, "model": own})).model.classes == ("black", "brown", "white")
    with pytest.raises(ConfigError, match="model.classes has 2 names, and .* was trained on 3 classes; leave it out"):
        completed(PredictionJob.from_dict({**tree, "model": {**own, "classes": ["black", "white"]}}))


def test_a_run_that_does_not_say_is_told(record, tmp_path):
    with pytest.raises(ConfigError, match=r"has no record.json \(looked in [^)]*\); give the folder of a run"):
        completed(job(tmp_path))
    record.job["data"] = None
    record.write(tmp_path / "record.json")
    with pytest.raises(ConfigError, match="had its data from a script, so that its record does not say"):
        completed(job(tmp_path))
    assert completed(job(tmp_path, stages=["decode"])).data.stages == ("decode",)


def test_a_secret_of_the_run_is_missed_only_where_the_job_needs_it(record, tmp_path):
    """Where the training data came from, and stages that the job has of its own, are not needed."""
    record.job["data"]["train"] |= {"path": "s3://***@bucket/train"}
    record.write(tmp_path / "record.json")
    assert completed(job(tmp_path)).data.normalize.mean == (0.5,)
    record.job["data"]["stages"] = [{"mine:own": {"api_key": "***"}}]
    record.write(tmp_path / "record.json")
    assert completed(job(tmp_path, stages=["decode"])).data.stages == ("decode",)
    with pytest.raises(ConfigError, match=r"does not have data.stages.0.mine:own.api_key, which looked like a secret"):
        completed(job(tmp_path))
    record.job["model"]["options"] = {"api_key": "***"}
    record.write(tmp_path / "record.json")
    with pytest.raises(ConfigError, match=r"does not have model.options.api_key"):
        completed(job(tmp_path, stages=["decode"]))
