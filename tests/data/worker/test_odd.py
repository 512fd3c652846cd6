"""Samples that come out unlike the others: which are left out, which stage is to blame, and what is no exception."""

from __future__ import annotations

import numpy as np
import pytest

from raytrain import Pipeline
from raytrain.config.job import Job
from raytrain.data import padded, random_crop, resize, stage
from raytrain.data.order import Position, StreamPlan, StreamSpec
from raytrain.data.producer import Producer, StreamWork
from raytrain.data.worker.odd import nan_in
from raytrain.errors import DataError

ODD = 7


class Images:
    """Sample i is an image of i, and those of `missing` are NaN."""

    def __init__(self, count=12, missing=()):
        self.count, self.missing = count, missing

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        value = np.nan if index in self.missing else index
        return {"image": np.full((8, 6, 3), value, np.float32), "number": index}


def batch_of(stages, images=None, batch_size=12, **options):
    opened = Pipeline(images or Images(), stages, batch_size=batch_size, **options).open(0)
    plan = StreamPlan(StreamSpec(opened.train.num_samples, 0, batch_size, 0, epochs=1), Position(), 1)
    return Producer(StreamWork(plan, opened.pickled_splits())).batch(0, 0)


def on_odd(change):
    def odd(fields):
        return {"image": change(fields["image"]) if fields["number"] == ODD else fields["image"]}

    return stage(odd, on=["image", "number"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x: x[:5], "field `image` is (5, 6, 3) float32 behind `odd`, and (8, 6, 3) float32 of most samples"),
        (lambda x: x.mean(2), "field `image` is (8, 6) float32 behind `odd`, and (8, 6, 3) float32 of most samples"),
        (
            lambda x: x.astype(np.float64),
            "field `image` is (8, 6, 3) float64 behind `odd`, and (8, 6, 3) float32 of most samples",
        ),
        (lambda x: x * np.nan, "field `image` is NaN in places behind `odd`"),
        (lambda x: np.where(x[..., :1] == ODD, np.float32(np.nan), x), "field `image` is NaN in places behind `odd`"),
    ],
    ids=["shape", "axes", "dtype", "nan", "nan-of-where"],
)
def test_a_sample_that_comes_out_otherwise_is_left_out_with_the_stage_and_its_id(change, reason):
    behind = stage(lambda image, rng: image + rng.random(image.shape).astype(image.dtype), name="noise")
    batch = batch_of([random_crop((8, 6), padding=1), on_odd(change), behind])
    [failure] = batch.header.failures
    assert (failure.id, failure.stage, failure.reason) == (ODD, "odd", reason)
    assert failure.where.endswith(f"Images[{ODD}]")
    assert batch.header.left_out == [ODD] and sorted(batch.key) == [n for n in range(12) if n != ODD]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_what_is_no_number_is_seen_in_any_type(dtype):
    values = np.array([np.inf, -np.inf, 0.0, -0.0, np.finfo(dtype).max, np.finfo(dtype).smallest_subnormal], dtype)
    assert nan_in({"x": values, "y": np.int64(3), "z": "text"}) is None
    for nan in (np.nan, -np.nan):
        assert nan_in({"y": values, "x": np.append(values, dtype(nan))[::-1].reshape(1, 7)}) == "x"
    assert nan_in({"x": dtype(np.nan)}) is None, "a single number may be missing"


def test_what_agrees_again_behind_a_later_stage_is_not_odd():
    batch = batch_of([on_odd(lambda x: x[:5]), resize((8, 6))])
    assert batch.header.failures == [] and len(batch.key) == 12


def test_numbers_that_the_source_lacks_are_no_stages_fault():
    batch = batch_of([stage(lambda image: image + 1, name="add")], Images(missing=(3, 4)))
    assert batch.header.failures == [] and len(batch.key) == 12


def test_nan_may_be_allowed_in_a_job_file_too():
    assert len(batch_of([on_odd(lambda x: x * np.nan)], allow_nan=True).key) == 12
    data = {"train": {"kind": "synthetic", "num_samples": 8}, "allow_nan": True}
    job = Job.from_dict({"name": "a", "data": data, "training": {"epochs": 1}})
    assert Pipeline.from_config(job.data).allow_nan


def test_lengths_that_may_vary_are_not_odd():
    cut = on_odd(lambda x: x[:5])
    assert len(batch_of([cut], collate={"image": padded(axes=(0,))}).key) == 12
    [failure] = batch_of([on_odd(lambda x: x[:, :5])], collate={"image": padded()}).header.failures
    assert failure.reason == "field `image` is (?, 5, 3) float32 behind `odd`, and (?, 6, 3) float32 of most samples"


def test_where_many_differ_the_job_is_wrong_and_not_the_samples():
    def two_shapes(fields):
        return {"image": fields["image"][: 8 - (fields["number"] % 3 == 0)]}

    with pytest.raises(DataError, match="different shapes: field `image`"):
        batch_of([stage(two_shapes, on=["image", "number"])])


def test_a_batch_of_two_blames_nobody():
    with pytest.raises(DataError, match="different shapes: field `image`"):
        batch_of([stage(lambda f: {"image": f["image"][: 8 - f["number"]]}, on=["image", "number"])], Images(2), 2)
