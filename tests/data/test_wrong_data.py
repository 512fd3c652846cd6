"""What a wrong `data` section of a job file says before anything starts: one line that names the field and the mend."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raytrain import Pipeline
from raytrain.config.file import from_yaml
from raytrain.config.job import Job
from raytrain.errors import RaytrainError

TABLE = "train: {kind: parquet, path: table.parquet%s}\n"
IMAGES = "train: {kind: synthetic, num_samples: 8, shape: [8, 8, 3]}\n"


@pytest.fixture(autouse=True)
def table(tmp_path, monkeypatch):
    columns = {"tokens": [[1], [2, 3]], "label": ["x", "y"], "share": [0.5, 1.5], "text": ["a", "bc"]}
    pq.write_table(pa.table(columns), tmp_path / "table.parquet")
    np.savez(tmp_path / "one.npz", x=np.float32(3))
    monkeypatch.chdir(tmp_path)


def opened(section: str):
    job = Job.from_dict({"name": "wrong", "data": from_yaml(section), "training": {"epochs": 1}})
    return Pipeline.from_config(job.data).open(0)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (TABLE % ", masks: [mask]", "source 'parquet': `masks` wants field `mask`; there are `tokens`, `label`, "),
        (TABLE % ", shapes: {token: [2]}", "source 'parquet': `shapes` wants field `token`; did you mean 'tokens'?"),
        (TABLE % ", labels: [lable]", "source 'parquet': `labels` wants field `lable`; did you mean 'label'?"),
        (
            TABLE % ", weights: text",
            "weights: 'text' is no number that is known before samples are read (those are: label)",
        ),
        (TABLE % "" + "buckets: {by: share}", "buckets: field `share` is float64, which has no length"),
        (
            TABLE % "" + "collate: {tokens: {padded: {axes: [1]}}}",
            "collate: field `tokens` is int64(?), which has no axis 1 that could vary",
        ),
        (TABLE % "" + "collate: {tokens: {padded: {axes: [1, 0]}}}", "padded: axes must be different axes in order"),
        (
            IMAGES + "normalize: {mean: [0.5, 0.5]}",
            "data.normalize.mean has 2 numbers, and field `image` is float32(8, 8, 3) image; give one, or 3",
        ),
        (IMAGES + "fields: {label: {normalize: {std: [1, 2]}}}", "data.fields.label.normalize.std has 2 numbers"),
        (
            IMAGES + "fields: {label: {channels_first: true}}",
            "data.fields.label: field `label` is int64; channels_first is for (height, width, channels)",
        ),
        (
            IMAGES + "stages: [{random_crop: {size: 4, on: label}}]",
            "data.stages: stage 1, `random_crop`, is for image, mask, boxes, and field `label` is int64",
        ),
        (IMAGES + "stages: [{resize: {size: 4, on: imag}}]", "data.stages: stage 1, `resize`, wants field `imag`; did"),
        (IMAGES + "stages: [{resize: {size: 4, on: 5}}]", "stage 'resize': `on` is a field or a list of fields (given"),
        (IMAGES + "stages: [{resize: {size: 4, on: '*'}}]", "stage 'resize': `on` is a field or a list of fields"),
        (
            IMAGES + "stages: [{resize: {size: '4'}}]",
            "stage 'resize': size must be a whole number or a list of 2 whole numbers (given: '4')",
        ),
        (IMAGES + "stages: [{torchvision: {transfrm: Resize}}]", "stage 'torchvision' needs its option 'transform'"),
        (
            "train: {kind: synthetic, num_samples: 8, fields: {x: {shap: [1]}}}",
            "job: unknown key 'data.train.fields.x.shap'; did you mean 'shape'?",
        ),
        (TABLE % "" + "collate: {tokens: {ragged: false}}", "job: data.collate.tokens: `padded`, `padded: {value: 0}`"),
        ("train: {kind: arrays, path: one.npz}", "one.npz: `x` is a single number; an array has the samples along"),
        ("train: {kind: from_torch}", "job: data.train: `from_torch` is for Python; name your data set itself"),
    ],
)
def test_a_wrong_section_is_one_clear_line(section, message):
    with pytest.raises(RaytrainError) as caught:
        opened(section)
    assert str(caught.value).startswith(message), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_collation_without_options_is_the_one_that_is_named():
    schema = opened(TABLE % "" + "collate: {tokens: {padded: }}").schema
    assert [*schema][-2:] == ["tokens_mask", "tokens_length"]
    assert "tokens_mask" not in opened(TABLE % "" + "collate: {tokens: {ragged: }}").schema


def test_a_stage_is_on_a_field():
    opened_ = opened(IMAGES + "stages: [{resize: {size: 4, on: image}}]")
    assert opened_.splits["train"].stages[0].on == ("image",)
