"""Whether a run may go on from a checkpoint, and whether it fits, before it begins."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from keeping import keeper_of, save

from raytrain.cluster.topology import GROUP_LABEL
from raytrain.config.job import Job
from raytrain.data import stage, synthetic
from raytrain.data.pipeline import Pipeline
from raytrain.errors import CheckpointError, ConfigError
from raytrain.run.checks import check_placed, check_size, check_store
from raytrain.run.plan import DataPlan, RunOptions
from raytrain.train.checkpoints import checkpoint, shelf


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
    assert save(keeper_of(options.folder.checkpoints, "attempt", keep=1), text, {shelf.STATE: state}) is None

    _, again = planned(tmp_path, "cat", "dog", resume=True)
    assert (again.position.epoch, again.steps) == (1, 2)
    with pytest.raises(CheckpointError) as caught:
        planned(tmp_path, "dog", "cat", resume=True)
    assert str(caught.value) == (
        f"{again.resumed_from} was written for other classes of field `label` (cat, dog, and not dog, cat); start "
        "without resume=True"
    )


@pytest.mark.parametrize(
    ("world", "sizes", "message"),
    [
        (
            3,
            {"global_batch_size": 16},
            "data.global_batch_size=16 cannot be shared evenly by 3 ranks; make it 15 or 18, or",
        ),
        (
            3,
            {"global_batch_size": 20},
            "data.global_batch_size=20 cannot be shared evenly by 3 ranks; make it 18 or 21, or",
        ),
        (
            8,
            {"global_batch_size": 4},
            "data.global_batch_size=4 cannot be shared evenly by 8 ranks; make it 8, or take an",
        ),
        (3, {"batch_size": 7}, "a step of 3 ranks x data.batch_size=7 is larger than the training set of 20 samples"),
        (4, {"global_batch_size": 20}, None),
        (4, {"batch_size": 5}, None),
    ],
)
def test_a_step_that_the_ranks_cannot_share_is_refused(world, sizes, message):
    pipeline, job = Pipeline(Pets("cat"), **sizes), Job.from_dict({"name": "pets", "training": {"epochs": 1}})
    with pytest.raises(ConfigError) if message else contextlib.nullcontext() as caught:
        check_placed(job, pipeline, 20, SimpleNamespace(world_size=world, has_real_gpus=False), attached=False)
    assert message is None or message in str(caught.value)


def test_a_step_larger_than_the_data_is_refused():
    with pytest.raises(ConfigError, match="data.global_batch_size=21 is larger than the training set of 20 samples"):
        check_size(Pipeline(Pets("cat"), global_batch_size=21), 20)


def node(group, cpus, store, alive=True):
    resources = {"CPU": float(cpus), "object_store_memory": float(store)}
    return {"Alive": alive, "Labels": {GROUP_LABEL: group}, "Resources": resources, "NodeManagerAddress": "10.0.0.1"}


def of_noise(*stages):
    """Of 400 x 500 x 3 float32 and a label of int64: 2,400,008 bytes a sample."""
    source = synthetic(num_samples=1000, shape=(400, 500, 3), num_classes=2)
    return Pipeline(source, stages, batch_size=300).open(0)


def test_a_batch_that_no_object_store_holds_is_refused_with_the_arithmetic():
    opened, batch = of_noise(), 300 * 2_400_008
    check_store(opened, 300, [node("cpu", 2, 2 * batch), node("gpu", 9, batch, alive=False)], ())
    check_store(opened, 300, [node("cpu", 2, 2 * batch), node("gpu", 9, batch)], ("cpu",))
    with pytest.raises(ConfigError) as caught:
        check_store(opened, 300, [node("gpu", 9, 9 * batch), node("cpu", 2, 2 * batch - 1)], ())
    assert str(caught.value) == (
        "a batch of 300 samples x 2,400,008 bytes (`image` is float32(400, 500, 3) image) is 687 MiB, and one on each "
        "of the 2 CPUs of cpu 1,373 MiB, whose object store has 1,373 MiB; make data.batch_size (or a rank's share of "
        "data.global_batch_size) 299, end the stages with a smaller type (uint8, float16), or give Ray's nodes a "
        "larger store"
    )
    check_store(opened, 299, [node("cpu", 2, 2 * batch - 1)], ())


def test_what_nobody_knows_the_size_of_is_not_refused():
    check_store(of_noise(stage(lambda image: image)), 300, [node("cpu", 2, 10_000)], ())
    check_store(of_noise(), 300, [{"Alive": True, "Resources": {"CPU": 2.0}}], ())
