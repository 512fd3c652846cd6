"""Arrays of a program's own, and how they travel."""

from __future__ import annotations

import numpy as np
import pytest

from raytrain import Pipeline
from raytrain.data import arrays, stage, torchvision
from raytrain.data.order import Position, StreamPlan, StreamSpec
from raytrain.data.producer import Producer, StreamWork
from raytrain.data.samples.block import Batch, batches_of
from raytrain.data.sources.open import open_manifest


def prepared(pipeline: Pipeline, epochs: int = 1) -> list[Batch]:
    """The one batch of each epoch."""
    opened = pipeline.open(0)
    plan = StreamPlan(StreamSpec(opened.train.num_samples, 0, 64, 0, epochs=epochs), Position(), 1)
    producer = Producer(StreamWork(plan, opened.pickled_splits()))
    return [batch for segment in range(epochs) for batch in batches_of(producer.block(segment, 0, 1))]


@pytest.mark.parametrize("kind", ["in memory", "npz"])
def test_numbers_may_be_in_another_byte_order(kind, tmp_path):
    """Labels, and what may be weights or lengths, stand in an Arrow table."""
    given = {"x": np.eye(3, dtype=">f4"), "w": np.array([1, 0, 2], ">f8"), "label": np.array([2, 1, 0], ">i8")}
    np.savez(tmp_path / "all.npz", **given)
    manifest = open_manifest(arrays(given if kind == "in memory" else tmp_path / "all.npz"))
    assert manifest.values("label").tolist() == [2, 1, 0]
    assert manifest.values("w").tolist() == [1, 0, 2]
    assert [each["x"].tolist() for each in manifest.read_many([0, 2])] == [[1, 0, 0], [0, 0, 1]]


def added(x):
    x += 1
    return x


def test_a_stage_does_not_change_the_data():
    """It would add to what it has added in the epoch before."""
    [batch] = prepared(Pipeline(arrays({"x": np.zeros((4, 3)), "y": np.ones(4)}), [stage(added, on="x")]))
    assert {each.stage for each in batch.header.failures} == {"added"}
    assert {each.reason for each in batch.header.failures} == {"ValueError: output array is read-only"}


def test_a_transform_that_works_in_place_gets_a_copy():
    images = np.ones((4, 8, 8, 3), np.float32)
    halves = torchvision("Normalize", mean=[0.5] * 3, std=[1.0] * 3, inplace=True)
    for batch in prepared(Pipeline(arrays({"image": images}), [halves]), epochs=2):
        assert np.all(batch.fields["image"] == 0.5)
