"""A source has the same options in Python and in a job file."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from raytrain import data
from raytrain.config.data import SOURCES
from raytrain.config.file import section_of
from raytrain.data import Field, arrays, synthetic
from raytrain.data.sources.open import open_manifest
from raytrain.errors import ConfigError

VALUES = {  # of any source that has the option
    "path": "folder",
    "images": "pictures",
    "annotations": "a.json",
    "num_samples": 7,
    "limit": 2,
    "weights": "w",
    "files": {"image": "name"},
    "root": "root",
    "masks": ["m"],
    "labels": ["l"],
    "columns": {"image": "png"},
    "shapes": {"x": (2, 3)},
    "split": "train",
    "task": "segmentation",
    "shape": (2, 3, 4),
    "num_classes": 5,
    "longest": 6,
    "fields": {"image": "png"},
}
FIELDS = {"x": Field("int64", (None,), classes=("0", "1")), "image": Field("uint8", (2, 3, 3), "image")}
AS_KEYS = {
    "x": {"dtype": "int64", "shape": [None], "classes": 2},
    "image": {"dtype": "uint8", "shape": [2, 3, 3], "kind": "image"},
}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_function_has_the_keys_of_its_section(kind):
    function, keys = getattr(data, kind), SOURCES[kind].model_fields
    parameters = inspect.signature(function).parameters
    assert {*parameters} == {*keys} - {"kind"}
    for name, each in parameters.items():
        assert (each.default is each.empty) == keys[name].is_required(), name
        assert (each.kind is each.KEYWORD_ONLY) == (not keys[name].is_required()), name


@pytest.mark.parametrize("kind", SOURCES)
def test_what_is_left_out_and_what_is_given_mean_the_same(kind):
    function, section = getattr(data, kind), SOURCES[kind]
    keys = [name for name in section.model_fields if name != "kind"]
    needed = {name: VALUES[name] for name in keys if section.model_fields[name].is_required()}
    assert function(*needed.values()) == section_of(section, {"kind": kind, **needed}, "job")
    given = {name: VALUES[name] for name in keys}
    in_python = {**given, "fields": FIELDS} if kind == "synthetic" else given
    in_file = {**given, "fields": AS_KEYS} if kind == "synthetic" else given
    made = function(**in_python)
    assert made == section_of(section, {"kind": kind, **in_file}, "job")
    assert all(getattr(made, name) != section.model_fields[name].default for name in keys), "each has another value"


def test_arrays_in_memory_have_them_too(tmp_path):
    x = np.arange(4)
    np.savez(tmp_path / "a.npz", x=x)
    for given in ({"x": x}, tmp_path / "a.npz", [tmp_path / "a.npz"]):
        manifest = open_manifest(arrays(given, weights="x", limit=3), seed=1)
        assert sorted(sample["x"].item() for sample in manifest.read_many(range(3))) in (
            [1, 2, 2],
            [1, 1, 2],
            [2, 2, 2],
        )
    with pytest.raises(ConfigError, match="arrays: limit must be greater than 0"):
        arrays({"x": x}, limit=0)


def test_limits_and_weights_are_kept_to():
    manifest = open_manifest(synthetic(10, num_classes=3, limit=4, weights="label"), seed=3)
    labels = manifest.values("label").tolist()
    assert len(labels) == 4 and labels.count(2) >= 2 and 0 not in labels, "of 0, 1, 2, 0: 1.3 and 2.7 times"
