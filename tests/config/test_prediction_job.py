"""A prediction job as a file, and what is wrong in one."""

from __future__ import annotations

import pytest
import yaml

from raytrain import Job, PredictionJob
from raytrain.errors import ConfigError

TREE = {"name": "a", "model": {"run": "runs/b"}, "data": {"source": {"kind": "image_folder", "path": "images"}}}


def test_a_file_and_what_is_said_on_the_command_line(tmp_path):
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(TREE))
    job = PredictionJob.from_yaml(tmp_path / "job.yaml", ["inference.batch_size=8", "output.probabilities=all"])
    assert (job.inference.batch_size, job.output.probabilities) == (8, "all")
    assert (job.data.stages, job.model.inputs, job.inference.tasks_per_gpu) == (None, None, 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"inference": {"batchsize": 8}}, "batchsize"),
        ({"output": {"probabilities": "some"}}, "output.probabilities"),
        ({"inference": {"tasks_per_gpu": 0}}, "inference.tasks_per_gpu"),
        (
            {"inference": {"buckets": {"by": "text", "classes": [{"upto": 8}, {"upto": 8}]}}},
            r"`upto` must ascend from class to class, not \[8, 8\]",
        ),
    ],
)
def test_what_is_wrong_is_named(changes, said):
    with pytest.raises(ConfigError, match=said):
        PredictionJob.from_dict({**TREE, **changes})


def test_a_job_of_the_other_command_is_named_as_such():
    training = {"name": "a", "data": {"train": {"kind": "image_folder", "path": "images"}}, "training": {"epochs": 1}}
    with pytest.raises(ConfigError, match="job is a job of `raytrain train`"):
        PredictionJob.from_dict(training)
    with pytest.raises(ConfigError, match="job is a job of `raytrain infer`"):
        Job.from_dict(TREE)
    with pytest.raises(ConfigError, match="unknown key 'training'"):  # one key too many makes it no other job
        PredictionJob.from_dict({**TREE, "training": {"epochs": 1}})
    with pytest.raises(ConfigError, match="unknown key 'data.source'"):
        Job.from_dict({**TREE, "training": {"epochs": 1}})
