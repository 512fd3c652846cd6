"""Whether a run may go on from a checkpoint, before anything is started."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raytrain.config.job import Job
from raytrain.data.pipeline import Pipeline
from raytrain.errors import CheckpointError
from raytrain.run.plan import DataPlan, RunOptions
from raytrain.train.checkpoints import checkpoint, shelf
from raytrain.train.checkpoints.keeper import Keeper


class Pets:
    labels = (0, 1, 0, 1)

    def __init__(self, *classes):
        self.classes = classes

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index):
        return np.zeros((4, 4, 3), np.uint8), self.labels[index]


def planned(tmp_path, *classes, resume=False):
    training = {"epochs": 2}
    job = Job.from_dict({"name": "pets", "run_dir": str(tmp_path), "model": {"name": "resnet18"}, "training": training})
    options = RunOptions.of(job, None, resume, "resume=True", started_at=0.0, environment={})
    try:
        found = DataPlan.of(options, Pipeline(Pets(*classes), batch_size=2), lambda told: None, default_loop=True)
    finally:
        options.folder.close()
    return options, found


def test_a_run_goes_on_with_the_classes_that_it_has_learnt(tmp_path):
    options, plan = planned(tmp_path, "cat", "dog")
    facts = shelf.Facts(1, 2, 2, 4, 0, plan.opened.train.fingerprint, 0, 1, classes=["cat", "dog"])
    state = checkpoint.pack({"consumed": torch.zeros(0, dtype=torch.uint8), "owed": torch.zeros(0, dtype=torch.int64)})
    text = shelf.describe(facts, {shelf.STATE: shelf.digest(state)})
    assert Keeper(str(options.folder.checkpoints), "attempt", keep=1).save(text, [shelf.STATE], state) is None

    _, again = planned(tmp_path, "cat", "dog", resume=True)
    assert (again.position.epoch, again.steps) == (1, 2)
    with pytest.raises(CheckpointError) as caught:
        planned(tmp_path, "dog", "cat", resume=True)
    assert str(caught.value) == (
        f"{again.resumed_from} was written for other classes of field `label` (cat, dog, and not dog, cat); start "
        "without resume=True"
    )
