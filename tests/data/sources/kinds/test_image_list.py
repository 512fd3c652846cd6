"""Lists of files, and what they say when they do not fit."""

from __future__ import annotations

import json

import numpy as np
import pytest
from formats import write_list
from pictures import encoded, photo

from raytrain.data.samples.fields import Field
from raytrain.data.sources.kinds.image_list import image_list
from raytrain.data.sources.open import open_manifest
from raytrain.errors import DataError


@pytest.fixture
def folder(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(encoded(photo(seed=number), "PNG"))
    return tmp_path


def rows(**more):
    return [{"path": f"{n}.png", **{name: values[n] for name, values in more.items()}} for n in range(3)]


@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("tsv", "\t"), ("txt", "\t")])
def test_every_column_is_a_field(folder, suffix, delimiter):
    given = rows(label=["dog", "cat", "dog"], weight=[0.5, 1.5, 2.0], day=["2026-01-01"] * 3, seg=["1.png"] * 3)
    write_list(folder / f"list.{suffix}", given, delimiter)
    manifest = open_manifest(
        image_list(folder / f"list.{suffix}", files={"image": "path", "mask": "seg"}, masks=["mask"])
    )
    assert manifest.schema["image"] == Field("bytes", (), "image")
    assert manifest.schema["mask"] == Field("bytes", (), "mask")
    assert manifest.schema["label"] == Field("int64", (), classes=("cat", "dog"))
    assert (manifest.schema["weight"].dtype, manifest.schema["day"].dtype) == ("float64", "text")
    sample = manifest.read_many([2])[0]
    assert sample["image"] == (folder / "2.png").read_bytes()
    assert sample["mask"] == (folder / "1.png").read_bytes()
    assert (sample["label"], sample["weight"], sample["day"]) == (1, 2.0, "2026-01-01")
    assert manifest.describe(2) == f"{folder}/2.png"


def test_lines_of_json_may_hold_lists(folder):
    lines = [json.dumps({"path": f"{n}.png", "box": [1.5, 2, 3, n], "label": [0, n]}) for n in range(3)]
    (folder / "list.jsonl").write_text("\n".join(lines))
    manifest = open_manifest(image_list(folder / "list.jsonl"))
    sample = manifest.read_many([1])[0]
    assert sample["box"].tolist() == [1.5, 2, 3, 1]
    assert sample["label"].tolist() == [0, 1], "several labels are a field like any other"


def test_lists_of_several_folders_start_from_their_own(tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "007").write_bytes(encoded(photo(seed=seed), "PNG"))
        write_list(tmp_path / name / "list.csv", [{"path": "007", "label": seed}])
    manifest = open_manifest(image_list(f"{tmp_path}/{{a,b}}/list.csv"))
    for number, (sample, name) in enumerate(zip(manifest.read_many([0, 1]), "ab", strict=True), start=1):
        assert sample["image"] == (tmp_path / name / "007").read_bytes()
        assert sample["label"] == number
    with pytest.raises(DataError, match="cannot read .*007: not a file"):
        open_manifest(image_list(f"{tmp_path}/?/list.csv", root=tmp_path))


@pytest.mark.parametrize(
    ("text", "name", "options", "message"),
    [
        (
            "pth,label\n0.png,1\n",
            "l.csv",
            {},
            "has no column 'path' for field `image`; did you mean 'pth'?; it has pth, la",
        ),
        ("path,label\n,1\n", "l.csv", {}, "1 rows have nothing in column 'path'"),
        ('{"path": null, "x": 1}\n{"path": "0.png", "x": 1}\n', "l.jsonl", {}, "1 rows have nothing in column 'path'"),
        ("path,x\n0.png,\n0.png,1\n", "l.csv", {}, "1 rows have nothing in column 'x'"),
        ("path,label\n0.png,\n0.png,1\n", "l.csv", {}, "1 labels in column 'label' are null"),
        ("path,label\n0.png,-1\n", "l.csv", {}, "column 'label' holds the negative label -1"),
        ("path,label\nnone.png,1\n", "l.csv", {}, "none.png: not a file, or a link to nothing"),
        (
            "path,label\nnone.png,1\n0.png,1\nno.png,1\n",
            "l.csv",
            {},
            "a link to nothing (and 1 more); mend it, or take",
        ),
        ("path,seg\n0.png,none.png\n", "l.csv", {"files": {"image": "path", "m": "seg"}}, "none.png: not a file"),
        (
            '{"path": "0.png", "x": {"a": 1}}\n',
            "l.jsonl",
            {},
            "column 'x' is struct<a: int64>; a list has numbers, text an",
        ),
        ("path,x\n0.png,K\udcf6ln\n", "l.csv", {}, "column 'x' is not UTF-8; a list has numbers, text and"),
        ("path,label\n0.png,1,2\n", "l.csv", {}, "cannot read"),
        ("image,path\nA,0.png\n", "l.csv", {}, "column 'image' has the name of a field of `files`; rename one"),
        ("image.path,path\nA,0.png\n", "l.csv", {}, "column 'image.path' has the name of a field of `files`; rename"),
        ("path\n", "l.csv", {}, "holds no samples"),
        ("path\n0.png\n", "l.xml", {}, "l.xml is no list of files: its name must end in .csv, .tsv or .jsonl"),
    ],
)
def test_a_list_that_does_not_fit_is_one_clear_line(folder, text, name, options, message):
    (folder / name).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError) as caught:
        open_manifest(image_list(folder / name, **options))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_list_in_another_encoding_is_told(folder):
    (folder / "l.csv").write_bytes("path,name\n0.png,Müller\n".encode("latin-1"))
    with pytest.raises(DataError, match="cannot read .*l.csv"):
        open_manifest(image_list(folder / "l.csv", files={"image": "name"}))


def test_lists_with_columns_of_different_types_are_told(folder):
    (folder / "a.jsonl").write_text('{"path": "0.png", "x": [1]}\n')
    (folder / "b.jsonl").write_text('{"path": "0.png", "x": "one"}\n')
    with pytest.raises(DataError, match="the lists .*a.jsonl, .*b.jsonl have different columns: "):
        open_manifest(image_list([folder / "a.jsonl", folder / "b.jsonl"]))


def test_validation_numbers_text_as_training_does(folder):
    write_list(folder / "t.csv", rows(label=["a", "b", "c"]))
    train = open_manifest(image_list(folder / "t.csv"))
    write_list(folder / "v.csv", rows(label=["c", "a", "c"]))
    validation = open_manifest(image_list(folder / "v.csv"), like=train.schema)
    assert validation.values("label").tolist() == [2, 0, 2]
    assert validation.values("label").dtype == np.int64
    write_list(folder / "w.csv", rows(label=["c", "a", "zebra"]))
    with pytest.raises(DataError, match="class 'zebra' of .*w.csv is not among the training classes"):
        open_manifest(image_list(folder / "w.csv"), like=train.schema)
