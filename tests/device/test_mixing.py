"""MixUp and CutMix against what their papers say, from numbers drawn by sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from moved_stages import Run

from raytrain import Job, Pipeline
from raytrain.data import cutmix, from_torch, held_out, mixup, on_cpu, on_device, to_dtype
from raytrain.data.order import SampleRng
from raytrain.data.samples.fields import Field
from raytrain.data.stages.mixing import cutmix_draws
from raytrain.data.stages.registry import parse_stage
from raytrain.errors import ConfigError, DataError
from raytrain.run.checks import check_data

COUNT, SIDES, CLASSES, SEED = 7, (6, 8), 3, 3


class Labelled:
    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = np.random.default_rng(index).integers(0, 256, (*SIDES, 3), np.uint8)
        return {"image": image, "label": index % CLASSES}


def run(*stages: Any, batch_size: int = COUNT) -> Run:
    return Run([*stages], Labelled(), batch_size=batch_size, seed=SEED)


def batch_of(made: Run) -> tuple[list[int], list[int]]:
    """Ids in the order of the only batch, and the other one of each."""
    ids = made.plan.segment_keys(0).tolist()
    return ids, ids[::-1]


def one_hot(index: int) -> np.ndarray:
    return np.eye(CLASSES, dtype=np.float32)[index % CLASSES]


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup_blends_images_and_labels(alpha):
    made = run(mixup(num_classes=CLASSES, alpha=alpha))
    weights = []
    for index, other in zip(*batch_of(made), strict=True):
        weight = SampleRng(SEED).of(0, index).beta(alpha, alpha)
        weights.append(weight)
        image, label = (made.samples[index][name] for name in ("image", "label"))
        expected = weight * Labelled()[index]["image"] + (1 - weight) * Labelled()[other]["image"]
        assert image.dtype == np.uint8 and np.abs(image - expected).max() <= 0.51, "rounded"
        assert label == pytest.approx(weight * one_hot(index) + (1 - weight) * one_hot(other), abs=1e-6)
    assert len({*weights}) == COUNT, "each sample has its own"


def test_cutmix_puts_a_rectangle_of_another_image_into_each():
    made = run(cutmix(num_classes=CLASSES))
    cut = 0
    for index, other in zip(*batch_of(made), strict=True):
        top, left, height, width, own = cutmix_draws(SampleRng(SEED).of(0, index), SIDES, CLASSES)
        expected = Labelled()[index]["image"].copy()
        box = np.s_[top : top + height, left : left + width]
        expected[box] = Labelled()[other]["image"][box]
        assert np.array_equal(made.samples[index]["image"], expected)
        assert own == 1 - height * width / (SIDES[0] * SIDES[1])
        mixed = own * one_hot(index) + (1 - own) * one_hot(other)
        assert made.samples[index]["label"] == pytest.approx(mixed, abs=1e-6)
        cut += height * width
    assert cut > 0


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1000), st.integers(1, 40), st.integers(1, 40), st.sampled_from([0.3, 1.0, 4.0]))
def test_a_rectangle_lies_within_the_image(seed, height, width, alpha):
    top, left, tall, wide, own = cutmix_draws(np.random.default_rng(seed), (height, width), 2, alpha)
    assert 0 <= top <= top + tall <= height and 0 <= left <= left + wide <= width and 0 <= own <= 1


def test_both_after_each_other_and_floats():
    made = run(to_dtype("float32", scale=True), mixup(num_classes=CLASSES), cutmix(num_classes=CLASSES))
    for sample in made.samples.values():
        assert sample["image"].dtype == np.float32 and 0 <= sample["image"].min() <= sample["image"].max() <= 1
        assert sample["label"].sum() == pytest.approx(1, abs=1e-6) and sample["label"].min() >= 0
    assert [each.name for each in made.opened.on_device["train"].at()] == ["mixup", "cutmix"]
    assert made.opened.schema["label"] == Field("float32", (CLASSES,))


def test_a_batch_that_is_mixed_is_not_done_in_parts(monkeypatch):
    from raytrain.device import stages as device_stages

    tried = []

    def refusing(stage: Any, fields: Any, drawn: Any) -> Any:
        tried.append(len(fields["image"]))
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(device_stages, "_changed", refusing)
    with pytest.raises(DataError, match="need more memory than it has"):
        run(mixup(num_classes=CLASSES))
    assert tried == [COUNT]


def job(**more: Any) -> Job:
    model = {"name": "resnet10t", "options": {"num_classes": CLASSES}}
    return Job.from_dict({"name": "mixed", "training": {"epochs": 1}, "model": model, **more})


def test_validation_is_not_mixed_and_the_loop_learns_from_both():
    stages = [mixup(num_classes=CLASSES)]
    opened = Pipeline(from_torch(Labelled()), stages, batch_size=2, validation=held_out(0.4)).open(0)
    assert opened.on_device["validation"].at() == ()
    assert check_data(opened, True, job()).num_classes == CLASSES


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (
            lambda: on_cpu(mixup(num_classes=2)),
            "on_cpu: `mixup` mixes a whole batch, which is done on the device alone",
        ),
        (lambda: parse_stage({"cutmix": {"num_classes": 2, "place": "cpu"}}), "on_cpu: `cutmix` mixes a whole batch"),
        (lambda: mixup(num_classes=0), "stage 'mixup': num_classes and alpha are above 0"),
        (lambda: cutmix(num_classes=2, alpha=0.0), "stage 'cutmix': num_classes and alpha are above 0"),
        (lambda: mixup(num_classes="3"), "stage 'mixup': num_classes must be a whole number"),
        (
            lambda: run(mixup(num_classes=2, on=["image", "text"])),
            "`mixup`, wants field `text`; there are `image`, `label`",
        ),
        (
            lambda: run(mixup(num_classes=4), cutmix(num_classes=3)),
            "stage 'cutmix' mixes images and class labels, and one",
        ),
        (
            lambda: check_data(Pipeline(from_torch(Labelled()), [mixup(num_classes=5)]).open(0), True, job()),
            "a stage mixes labels of 5 classes, and field `label` has 3; say so with its num_classes",
        ),
    ],
)
def test_what_cannot_be_mixed(make, told):
    with pytest.raises(ConfigError) as error:
        make()
    assert told in str(error.value)


def test_a_label_that_is_none_of_the_classes():
    with pytest.raises(DataError, match="the stage `mixup` failed on the device, on a batch"):
        run(on_device(mixup(num_classes=2)))
