"""What arrays, COCO's form, Hugging Face's and a `ray.data.Dataset` are not: one clear line, before anything starts."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from pictures import encoded, photo

from raytrain.data import arrays, coco, from_ray, huggingface
from raytrain.data.sources.open import open_manifest
from raytrain.errors import ConfigError, DataError


def refused(source) -> str:
    with pytest.raises(DataError) as caught:
        open_manifest(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- arrays -------------------------------------------------------------------------------------------------------


def test_a_folder_without_arrays(tmp_path):
    (tmp_path / "notes.txt").write_text("none")
    assert refused(arrays(tmp_path)) == f"{tmp_path} holds no arrays (*.npz or *.npy)"


@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_a_number_in_the_place_of_an_array(kind, tmp_path):
    """Among those that are some, in whatever file it is."""
    if kind == "npz":
        np.savez(tmp_path / "a.npz", x=np.zeros(3), scale=np.float32(2))
    else:
        np.save(tmp_path / "x.npy", np.zeros(3))
        np.save(tmp_path / "scale.npy", np.float32(2))
    told = refused(arrays(tmp_path))
    assert told == f"{tmp_path}: `scale` is a single number; an array has the samples along its first axis"


@pytest.mark.parametrize("given", [{"x": np.float32(1)}, {"x": np.array(1)}, {"x": [1, 2]}])
def test_what_a_program_gives_is_an_array_of_samples(given):
    with pytest.raises(DataError) as caught:
        arrays(given)
    assert str(caught.value) == "arrays: `x` must be a NumPy array with the samples along its first axis"


# --- COCO ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_an_annotation_of_no_category(task, tmp_path):
    (tmp_path / "0.jpg").write_bytes(encoded(photo()))
    known = {"id": 4, "image_id": 0, "category_id": 7, "bbox": [1, 2, 3, 4]}
    tree = {
        "images": [{"id": 0, "file_name": "0.jpg", "height": 40, "width": 60}],
        "annotations": [known, {**known, "id": 5, "category_id": 8}],
        "categories": [{"id": 7, "name": "a"}],
    }
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(tree))
    assert refused(coco(tmp_path, path, task=task)) == f"{path}: annotation 5 has no known category"


@pytest.mark.parametrize(
    ("task", "what", "key"),
    [
        ("detection", "annotations", "bbox"),
        ("detection", "annotations", "category_id"),
        ("segmentation", "annotations", "image_id"),
        ("segmentation", "images", "height"),
        ("detection", "images", "file_name"),
        ("detection", "categories", "id"),
    ],
)
def test_an_entry_that_lacks_what_is_read_of_it(task, what, key, tmp_path):
    (tmp_path / "0.jpg").write_bytes(encoded(photo()))
    tree = {
        "images": [{"id": 0, "file_name": "0.jpg", "height": 40, "width": 60}],
        "annotations": [{"image_id": 0, "category_id": 7, "bbox": [1, 2, 3, 4]}],
        "categories": [{"id": 7}],
    }
    del tree[what][0][key]
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(tree))
    assert refused(coco(tmp_path, path, task=task)) == f"{path}: {what}[0] has no `{key}`"


# --- Hugging Face -------------------------------------------------------------------------------------------------


def saved(folder, **state):
    """As `save_to_disk` leaves a data set of one column."""
    table = pa.table({"x": [1, 2]})
    with pa.OSFile(str(folder / "0.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    (folder / "dataset_info.json").write_text("{}")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "0.arrow"}], **state}))
    return folder


def test_a_data_set_as_it_should_be(tmp_path):
    assert open_manifest(huggingface(saved(tmp_path, _indices_data_files=None))).read_many([1]) == [{"x": 2}]


@pytest.mark.parametrize(
    ("state", "options", "told"),
    [
        (
            {"_indices_data_files": [{"filename": "indices.arrow"}]},
            {},
            "was selected from or shuffled; call flatten_indices() before save_to_disk()",
        ),
        ({"_data_files": []}, {}, "names no data files in state.json"),
        ({}, {"split": "train"}, "is one data set and has no splits; leave `split` out"),
    ],
)
def test_a_data_set_on_disk_that_cannot_be_read(state, options, told, tmp_path):
    assert refused(huggingface(saved(tmp_path, **state), **options)) == f"{tmp_path} {told}"


def labelled(folder, names):
    folder.mkdir()
    table = pa.table({"label": [0, 1]})
    with pa.OSFile(str(folder / "0.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    features = {"label": {"names": names, "_type": "ClassLabel"}}
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "0.arrow"}]}))
    return huggingface(folder)


@pytest.mark.parametrize(
    ("names", "told"), [(["dog", "cat"], "dog for cat"), (["cat", "dog", "eel"], "3 for 2"), (["cat", "dog"], "")]
)
def test_validation_numbers_its_classes_as_training_does(names, told, tmp_path):
    schema = open_manifest(labelled(tmp_path / "train", ["cat", "dog"])).schema
    other = labelled(tmp_path / "validation", names)
    if not told:
        assert open_manifest(other, like=schema).schema["label"].classes == ("cat", "dog")
        return
    with pytest.raises(DataError) as caught:
        open_manifest(other, like=schema)
    numbers = f"{tmp_path / 'validation'}: column 'label' numbers other classes than the training data does"
    assert str(caught.value) == f"{numbers}: {told}"


# --- Ray Data -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "kind"), [([1, 2], "list"), ("s3://b/x.parquet", "str"), (None, "NoneType")])
def test_what_is_no_data_set_of_ray(given, kind):
    with pytest.raises(ConfigError) as caught:
        from_ray(given)
    assert str(caught.value) == f"from_ray takes a ray.data.Dataset, not {kind}"
