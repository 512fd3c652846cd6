"""Any column of Parquet files and any member of tar shards is a field; noise of any schema."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from formats import write_tar
from pictures import encoded, photo

from raytrain.data.samples.fields import Field
from raytrain.data.sources.kinds.arrays import arrays
from raytrain.data.sources.kinds.parquet import parquet
from raytrain.data.sources.kinds.synthetic import synthetic
from raytrain.data.sources.kinds.webdataset import webdataset
from raytrain.data.sources.open import open_manifest
from raytrain.errors import ConfigError, DataError

PNG = encoded(photo(), "PNG")


def written(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


def test_every_column_of_parquet_is_a_field(tmp_path):
    boxes = pa.array([[[1, 2, 3, 4], [5, 6, 7, 8]], []], pa.list_(pa.list_(pa.float32(), 4)))
    path = written(
        tmp_path / "x.parquet",
        text=["one", "zwei"],
        tokens=pa.array([[1, 2, 3], [4]], pa.list_(pa.int32())),
        flat=pa.array([list(range(6)), list(range(6, 12))], pa.list_(pa.uint8())),
        boxes=boxes,
        photo=[{"bytes": PNG, "path": "a"}, {"bytes": PNG, "path": "b"}],
        blob=[b"x", b"yy"],
        seg=[PNG, PNG],
        flag=[True, False],
        number=pa.array([1.5, 2.5], pa.float32()),
        label=["dog", "cat"],
    )
    manifest = open_manifest(parquet(path, shapes={"flat": (2, 3)}, masks=["seg"]))
    assert dict(manifest.schema) == {
        "text": Field("text", ()),
        "tokens": Field("int32", (None,)),
        "flat": Field("uint8", (2, 3)),
        "boxes": Field("float32", (None, 4)),
        "photo": Field("bytes", (), "image"),
        "blob": Field("bytes", ()),
        "seg": Field("bytes", (), "mask"),
        "flag": Field("bool", ()),
        "number": Field("float32", ()),
        "label": Field("int64", (), classes=("cat", "dog")),
    }
    one, other = manifest.read_many([0, 1])
    assert (one["text"], other["text"]) == ("one", "zwei")
    assert (one["tokens"].tolist(), other["tokens"].tolist()) == ([1, 2, 3], [4])
    assert other["flat"].tolist() == [[6, 7, 8], [9, 10, 11]]
    assert (one["boxes"].tolist(), other["boxes"].shape) == ([[1, 2, 3, 4], [5, 6, 7, 8]], (0, 4))
    assert (one["photo"], other["blob"], one["seg"]) == (PNG, b"yy", PNG)
    assert (one["flag"], other["number"], one["label"], other["label"]) == (True, 2.5, 1, 0)
    assert (one["flag"].dtype, other["number"].dtype) == (np.bool_, np.float32)


def test_columns_are_chosen_and_renamed(tmp_path):
    path = written(tmp_path / "x.parquet", a=[1, 2], b=["x", "y"], when=pa.array([0, 1], pa.timestamp("s")))
    manifest = open_manifest(parquet(path, columns={"label": "b", "image": "a"}))
    assert manifest.read_many([1]) == [{"label": 1, "image": 2}]


def test_labels_may_be_categories_or_several(tmp_path):
    path = written(tmp_path / "x.parquet", label=pa.array(["b", "a"]).dictionary_encode())
    manifest = open_manifest(parquet(path))
    assert manifest.schema["label"].classes == ("a", "b")
    assert manifest.values("label").tolist() == [1, 0]
    path = written(tmp_path / "y.parquet", label=[[0.0, 1.0], [1.0, 0.0]])
    manifest = open_manifest(parquet(path))
    assert manifest.schema["label"] == Field("float64", (None,))
    assert manifest.read_many([0])[0]["label"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[1, 2], [3]], "a list of lists of different lengths is no array"),
        ([[1], [2, 3, 4]], "a list of lists of different lengths is no array"),
        ([[1, None], [3, 4]], "a list holds nothing in a place"),
        (None, "column 'x' is null"),
    ],
)
def test_a_row_that_is_no_array_is_left_out(tmp_path, value, message):
    path = written(tmp_path / "x.parquet", x=pa.array([[[1, 2], [3, 4]], value], pa.list_(pa.list_(pa.int64()))))
    good, bad = open_manifest(parquet(path)).read_many([0, 1])
    assert good["x"].tolist() == [[1, 2], [3, 4]]
    assert str(bad) == message


def test_a_file_without_rows_is_no_hindrance(tmp_path):
    written(tmp_path / "0.parquet", image=pa.array([], pa.binary()))
    written(tmp_path / "1.parquet", image=[PNG])
    manifest = open_manifest(parquet(tmp_path))
    assert manifest.schema["image"].kind == "image"
    assert manifest.read_many([0]) == [{"image": PNG}]


def npy(array):
    np.save(file := io.BytesIO(), array)
    return file.getvalue()


def npz(array):
    np.savez(file := io.BytesIO(), x=array)
    return file.getvalue()


def members(key, **more):
    found = {
        "jpg": PNG,
        "seg.png": PNG,
        "txt": b"a cat",
        "json": b"[1, 2, 3]",
        "npy": npy(np.eye(2, dtype=np.float32)),
        "index": b"7",
        "cls": b"cat",
        "bin": b"xyz",
    }
    return {f"{key}.{extension}": data for extension, data in (found | more).items()}


def test_every_member_of_a_shard_is_a_field(tmp_path):
    write_tar(tmp_path / "0.tar", members("a") | members("b", cls=b"ant"))
    manifest = open_manifest(webdataset(tmp_path, masks=["seg_png"]))
    schema = manifest.schema
    assert (schema["image"].kind, schema["seg_png"].kind, schema["bin"]) == ("image", "mask", Field("bytes", ()))
    assert schema["label"].classes == ("ant", "cat")
    one, other = manifest.read_many([0, 1])
    assert (one["image"], one["seg_png"], one["bin"]) == (PNG, PNG, b"xyz")
    assert (one["txt"], one["json"].tolist(), one["index"]) == ("a cat", [1, 2, 3], 7)
    assert np.array_equal(one["npy"], np.eye(2))
    assert (one["label"], other["label"]) == (1, 0)


def test_members_are_chosen_by_their_extension(tmp_path):
    write_tar(tmp_path / "0.tar", members("a", json=json.dumps({"label": 3}).encode()))
    manifest = open_manifest(webdataset(tmp_path, fields={"caption": "txt", "second": "seg.png", "label": "json"}))
    assert manifest.read_many([0]) == [{"caption": "a cat", "second": PNG, "label": 3}]
    with pytest.raises(DataError, match=r"sample 'a' has no .mask \(seg\)"):
        open_manifest(webdataset(tmp_path, fields={"seg": "mask"}))


def test_a_member_that_is_not_what_its_name_says_is_left_out(tmp_path):
    write_tar(tmp_path / "0.tar", {"a.npy": npy(np.ones(2)), "b.npy": b"no array", "c.npy": npy(np.zeros(2))})
    good, bad, last = open_manifest(webdataset(tmp_path)).read_many([0, 1, 2])
    assert (good["npy"].tolist(), last["npy"].tolist()) == ([1, 1], [0, 0])
    assert isinstance(bad, ValueError)


@pytest.mark.parametrize("member", ["b.npy", "b.index"])
@pytest.mark.parametrize("data", [b"", b"9" * 40, b"PK\x03\x04", npz(np.ones(2))])
def test_whatever_is_wrong_with_a_member_its_sample_is_left_out(tmp_path, member, data):
    write_tar(
        tmp_path / "0.tar", {"a.txt": b"", f"a{member[1:]}": members("a")[f"a{member[1:]}"], "b.txt": b"", member: data}
    )
    good, bad = open_manifest(webdataset(tmp_path)).read_many([0, 1])
    assert isinstance(bad, ValueError)
    assert not isinstance(good, Exception)


def test_json_that_is_no_array_is_text_as_it_stands(tmp_path):
    each = {"a": b'{"width": 3}', "b": b"null", "c": b'["x", "y"]', "d": b'"x"', "e": b"[0.5, 1]"}
    write_tar(tmp_path / "0.tar", {f"{key}.json": data for key, data in each.items()})
    *texts, numbers = [sample["json"] for sample in open_manifest(webdataset(tmp_path)).read_many(range(5))]
    assert texts == ['{"width": 3}', "null", '["x", "y"]', "x"]
    assert numbers.tolist() == [0.5, 1]


def test_images_of_a_shard_may_be_of_several_kinds(tmp_path):
    write_tar(
        tmp_path / "0.tar", {"a.jpg": b"1", "a.cls": b"0", "b.cls": b"1", "b.png": b"2", "c.JPG": b"3", "c.cls": b"0"}
    )
    samples = open_manifest(webdataset(tmp_path)).read_many(range(3))
    assert [(each["image"], int(each["label"])) for each in samples] == [(b"1", 0), (b"2", 1), (b"3", 0)]
    with pytest.raises(DataError, match=r"sample 'b' has no \.jpg \(image\); it has \.cls, \.png$"):
        open_manifest(webdataset(tmp_path, fields={"image": "jpg"}))


SCHEMA = {
    "x": Field("float16", (3, None)),
    "tokens": Field("int64", (None,)),
    "kind": Field("int64", (), classes=("a", "b", "c")),
    "small": Field("int8", (1000,)),
    "flag": Field("bool", (1000,)),
    "wave": Field("float32", (5,)),
    "caption": Field("text", (None,)),
    "blob": Field("bytes", (4,)),
    "image": Field("float64", (4, 4, 3)),
}


def test_noise_of_any_schema():
    manifest = open_manifest(synthetic(300, fields=SCHEMA, longest=5))
    samples = manifest.read_many(range(300))
    assert manifest.schema["image"].kind == "image"
    assert {len(sample["tokens"]) for sample in samples} == {1, 2, 3, 4, 5}
    assert {int(sample["kind"]) for sample in samples} == {0, 1, 2}
    assert {len(sample["caption"]) for sample in samples} == {1, 2, 3, 4, 5}
    for name, what in SCHEMA.items():
        if what.dtype not in ("text", "bytes"):
            assert samples[0][name].dtype == what.dtype, name
            assert samples[0][name].ndim == len(what.shape)
    assert (samples[0]["small"].min() < -100, samples[0]["small"].max() > 100) == (True, True)
    assert 400 < samples[0]["flag"].sum() < 600
    assert len(samples[0]["blob"]) == 4


def test_noise_of_more_classes_than_a_short_number_has():
    words = Field("int64", (1000,), classes=tuple(map(str, range(128_000))))
    drawn = np.concatenate(
        [each["x"] for each in open_manifest(synthetic(20, fields={"x": words})).read_many(range(20))]
    )
    assert (drawn.min() >= 0, drawn.max() < 128_000) == (True, True)
    assert 0.47 < np.mean(drawn >= 64_000) < 0.53


def test_noise_of_no_known_type_is_refused():
    with pytest.raises(ConfigError, match="synthetic field `x`: unknown dtype 'flaot32'; did you mean 'float32'"):
        open_manifest(synthetic(1, fields={"x": Field("flaot32", ())}))
    with pytest.raises(ConfigError, match="a synthetic source with `fields` needs one at least"):
        open_manifest(synthetic(1, fields={}))


# --- names that a manifest has for places -------------------------------------------------------------------------


def test_fields_may_have_the_names_of_places(tmp_path):
    table = {"file": [5, 6, 7], "group": ["a", "b", "c"], "row": [[1], [2], [3]], "number": [9.0, 8.0, 7.0]}
    manifest = open_manifest(parquet(written(tmp_path / "x.parquet", **table)))
    assert [[sample[name] for name in ("file", "group", "number")] for sample in manifest.read_many([2, 0])] == [
        [7, "c", 7.0],
        [5, "a", 9.0],
    ]
    numbers = open_manifest(arrays({"number": np.array([7, 8, 9]), "x": np.array([[1], [2], [3]])}))
    assert [(sample["number"], sample["x"].tolist()) for sample in numbers.read_many([2, 0])] == [(9, [3]), (7, [1])]


def test_labels_and_weights_may_not(tmp_path):
    path = written(tmp_path / "x.parquet", group=["a", "b"], row=[1.0, 2.0])
    for options in ({"labels": ["group"]}, {"weights": "row"}):
        with pytest.raises(
            DataError, match="labels and weights cannot be called '(group|row)'; give that field another"
        ):
            open_manifest(parquet(path, **options))
    renamed = open_manifest(parquet(path, columns={"kind": "group"}, labels=["kind"]))
    assert renamed.schema["kind"].classes == ("a", "b")
    with pytest.raises(DataError, match="arrays: labels and weights cannot be called 'number'"):
        open_manifest(arrays({"number": np.array([1, 0])}, labels=["number"]))
