"""A prediction job as a file, and what is wrong in one."""

from __future__ import annotations

import pytest
import yaml

from raytrain import PredictionJob
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
