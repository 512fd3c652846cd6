"""Sources of files, on local disk and on S3 (played by moto's server, over HTTP, through pyarrow)."""

from __future__ import annotations

import datetime
import errno
import os
import pickle
import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_images
from formats import write_parquet, write_shards, write_tar

from raytrain.data.order import epoch_order
from raytrain.data.samples.fields import Schema
from raytrain.data.sources import manifest as manifests
from raytrain.data.sources import readers
from raytrain.data.sources.kinds.image_folder import image_folder
from raytrain.data.sources.kinds.parquet import parquet
from raytrain.data.sources.kinds.synthetic import synthetic
from raytrain.data.sources.kinds.webdataset import webdataset
from raytrain.data.sources.labels import label_field
from raytrain.data.sources.open import open_manifest
from raytrain.errors import DataError


def jpeg_of(folder, name):
    return (folder / name).read_bytes()


@pytest.fixture
def folder(tmp_path):
    return write_images(tmp_path / "images", {"cat": 5, "dog": 3})


def contents(manifest):
    """(label, bytes) of every sample, sorted: what is in a data set, whatever its format."""
    return sorted((int(each["label"]), each["image"]) for each in manifest.read_many(range(manifest.num_samples)))


def expected(folder):
    return sorted(
        (label, file.read_bytes())
        for label, name in enumerate(sorted(p.name for p in folder.iterdir()))
        for file in (folder / name).glob("*.jpg")
    )


def test_every_format_holds_the_same_samples(folder, tmp_path):
    assert contents(open_manifest(image_folder(folder))) == expected(folder)
    assert contents(open_manifest(parquet(write_parquet(tmp_path / "p", folder)))) == expected(folder)
    assert contents(open_manifest(parquet(write_parquet(tmp_path / "s", folder, struct=True)))) == expected(folder)
    assert contents(open_manifest(parquet(write_parquet(tmp_path / "t", folder, labels="text")))) == expected(folder)
    assert contents(open_manifest(webdataset(write_shards(tmp_path / "w", folder)))) == expected(folder)
    json = write_shards(tmp_path / "j", folder, label=lambda n: b'{"label": %d}' % n, extension="json")
    assert contents(open_manifest(webdataset(json, fields={"image": "jpg", "label": "json"}))) == expected(folder)


def test_a_manifest_travels_without_its_cache(folder, tmp_path):
    manifest = open_manifest(parquet(write_parquet(tmp_path / "p", folder)))
    before = len(pickle.dumps(manifest))
    manifest.read_many(range(8))
    assert len(pickle.dumps(manifest)) == before
    assert contents(pickle.loads(pickle.dumps(manifest))) == expected(folder)


def test_an_epoch_reads_large_row_groups_once_and_footers_once_a_file(tmp_path, monkeypatch):
    """A cache of four groups: the shuffle stays within two at a time."""
    values = np.random.default_rng(0).integers(0, 255, (160, 1000), np.uint8)
    table = pa.table({"image": pa.array([row.tobytes() for row in values]), "label": np.arange(160)})
    for part in (0, 1):
        pq.write_table(table.slice(80 * part, 80), tmp_path / f"{part}.parquet", row_group_size=10)
    monkeypatch.setattr(readers, "ROW_GROUP_CACHE_BYTES", 4 * 13_000)
    manifest = pickle.loads(pickle.dumps(open_manifest(parquet(str(tmp_path)))))
    assert manifest.groups.window == 2
    reads, footers = [], []
    real, made = pq.ParquetFile.read_row_group, pq.ParquetFile.__init__
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda *a, **k: reads.append(a[1]) or real(*a, **k))
    monkeypatch.setattr(
        pq.ParquetFile,
        "__init__",
        lambda *a, metadata=None, **k: footers.append(metadata is None) or made(*a, metadata=metadata, **k),
    )
    order = epoch_order(160, 0, 0, manifest.groups)
    found = [sample["label"] for at in range(0, 160, 16) for sample in manifest.read_many(order[at : at + 16])]
    assert sorted(found) == list(range(160))
    assert len(reads) == 16 and sum(footers) == 2


def test_row_groups_are_read_once_while_they_fit(folder, tmp_path, monkeypatch):
    manifest = pickle.loads(pickle.dumps(open_manifest(parquet(write_parquet(tmp_path / "p", folder)))))
    assert manifest.groups.starts.tolist() == [0, 3, 4, 7]
    reads = []
    real = pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda *a, **k: reads.append(a[1]) or real(*a, **k))
    manifest.read_many([0, 3, 1, 4, 2, 0])
    assert len(reads) == 3
    monkeypatch.setattr("raytrain.data.sources.readers.ROW_GROUP_CACHE_BYTES", 1)
    manifest = pickle.loads(pickle.dumps(manifest))
    again = manifest.read_many([0, 3, 1, 4])
    assert len(reads) == 6, "one group at a time is still kept, and each is read once a batch"
    assert again == [manifest.read_many([i])[0] for i in (0, 3, 1, 4)]


def test_arrays_in_parquet(tmp_path):
    arrays = np.arange(5 * 2 * 3, dtype=np.uint8).reshape(5, 2, 3)
    flat = pa.FixedSizeListArray.from_arrays(arrays.reshape(-1), 6)
    nested = pa.array(arrays.tolist(), type=pa.list_(pa.list_(pa.uint8())))
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(arrays)
    for name, column, shape in (("flat", flat, (2, 3)), ("nested", nested, None), ("tensor", tensor, None)):
        pq.write_table(pa.table({"x": column, "y": pa.array(range(5))}), tmp_path / f"{name}.parquet")
        columns, shapes = {"image": "x", "label": "y"}, {"image": shape} if shape else None
        manifest = open_manifest(parquet(tmp_path / f"{name}.parquet", columns=columns, shapes=shapes))
        read = manifest.read_many([4, 0])
        assert np.array_equal(read[0]["image"], arrays[4]), name
        assert read[1]["image"].dtype == np.uint8
        assert [sample["label"] for sample in read] == [4, 0]


def test_synthetic_images_are_standard_normal_noise():
    manifest = open_manifest(synthetic(8, shape=(101, 99, 3)))
    images = np.stack([sample["image"] for sample in manifest.read_many(range(8))])
    assert (images.shape, images.dtype) == ((8, 101, 99, 3), np.float32)
    assert abs(images.mean()) < 0.01
    assert images.std() == pytest.approx(1, abs=0.01)
    assert np.quantile(images, [0.1, 0.9]) == pytest.approx([-1.2816, 1.2816], abs=0.02)
    assert abs(np.corrcoef(images.reshape(8, -1)) - np.eye(8)).max() < 0.03
    assert abs(np.corrcoef(images[..., 0].ravel(), images[..., 1].ravel())[0, 1]) < 0.02


def test_synthetic_images_depend_on_seed_and_id_alone():
    one, same, other = (open_manifest(synthetic(5, shape=(4, 4, 3), num_classes=2), seed=s) for s in (0, 0, 1))
    assert one.values("label").tolist() == [0, 1, 0, 1, 0]
    assert np.array_equal(one.read_many([3])[0]["image"], same.read_many([3])[0]["image"])
    assert not np.array_equal(one.read_many([3])[0]["image"], other.read_many([3])[0]["image"])
    assert one.read_many([0])[0]["image"].dtype == np.float32
    assert one.describe(3) == "synthetic sample 3"
    assert one.schema["label"].classes == ("0", "1")


def test_validation_numbers_classes_as_training_does(tmp_path):
    train = open_manifest(image_folder(write_images(tmp_path / "t", {"a": 1, "b": 1, "c": 1})))
    some = write_images(tmp_path / "v", {"c": 2, "a": 1})
    assert open_manifest(image_folder(some), like=train.schema).values("label").tolist() == [0, 2, 2]
    more = write_images(tmp_path / "x", {"a": 1, "zebra": 1})
    with pytest.raises(DataError, match="class 'zebra' of .* is not among the training classes"):
        open_manifest(image_folder(more), like=train.schema)


def test_text_labels_of_validation_are_numbered_as_in_training(folder, tmp_path):
    source = parquet(write_parquet(tmp_path / "t", folder, labels="text"))
    train = open_manifest(source)
    assert train.schema["label"].classes == ("cat", "dog")
    with pytest.raises(DataError, match="class 'cat' of .* is not among the training classes"):
        open_manifest(source, like=Schema({"label": label_field(("dog", "horse"))}))
    numbers = parquet(write_parquet(tmp_path / "n", folder))
    assert open_manifest(numbers, like=train.schema).values("label").max() == 1
    with pytest.raises(DataError, match="column 'label' holds the label 1, which none of the 1 training classes has"):
        open_manifest(numbers, like=Schema({"label": label_field(("dog",))}))


def test_the_fingerprint_tells_data_sets_apart(folder, tmp_path):
    first = open_manifest(image_folder(folder)).fingerprint
    assert open_manifest(image_folder(folder)).fingerprint == first
    (folder / "cat" / "000.jpg").rename(folder / "cat" / "new.jpg")
    assert open_manifest(image_folder(folder)).fingerprint != first


def test_places_are_described(folder, tmp_path):
    assert open_manifest(image_folder(folder)).describe(0) == f"{folder}/cat/000.jpg"
    shards = write_shards(tmp_path / "w", folder)
    assert open_manifest(webdataset(shards)).describe(1) == f"{shards}/0.tar:0001"
    rows = write_parquet(tmp_path / "p", folder)
    assert open_manifest(parquet(rows)).describe(3) == f"{rows}/0.parquet (row group 1, row 0)"


def test_hidden_and_foreign_files_are_passed_over(folder):
    (folder / "cat" / "._000.jpg").write_bytes(b"")
    (folder / "cat" / "notes.txt").write_text("x")
    (folder / ".git").mkdir()
    assert open_manifest(image_folder(folder)).num_samples == 8


def test_a_relative_path_that_does_not_exist_is_shown_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        open_manifest(image_folder("photos/trian"))
    assert str(caught.value) == (
        f"photos/trian does not exist (looked for {tmp_path}/photos/trian; relative paths start where raytrain is "
        "started); check the path in the job file (data.*.path)"
    )
    with pytest.raises(DataError, match="/trian does not exist; check"):
        open_manifest(image_folder(tmp_path / "trian"))


def test_folders_that_hold_nothing_say_so(tmp_path):
    with pytest.raises(DataError, match="does not exist; check the path"):
        open_manifest(image_folder(tmp_path / "none"))
    with pytest.raises(DataError, match="holds no images in class folders; expected .*: kind: image_list, a CSV"):
        open_manifest(image_folder(tmp_path))
    with pytest.raises(DataError, match="holds no Parquet files"):
        open_manifest(parquet(tmp_path))
    with pytest.raises(DataError, match="holds no tar shards"):
        open_manifest(webdataset(tmp_path))
    with pytest.raises(DataError, match="cannot open nothing://x"):
        open_manifest(image_folder("nothing://x"))


def test_a_class_folder_without_images_is_an_error(folder):
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="class folder .*/empty holds no images; add some or remove the folder"):
        open_manifest(image_folder(folder))


def test_an_unreadable_file_is_found_before_training(folder, monkeypatch):
    (folder / "cat" / "link.jpg").symlink_to(folder / "nowhere.jpg")
    with pytest.raises(DataError, match=r"cannot read .*link.jpg: not a file, or a link to nothing"):
        open_manifest(image_folder(folder))
    (folder / "cat" / "link.jpg").unlink()
    monkeypatch.setattr("os.access", lambda path, mode: not path.endswith("001.jpg"))
    with pytest.raises(DataError, match=r"cannot read .*/cat/001.jpg: permission denied"):
        open_manifest(image_folder(folder))


def test_a_folder_that_cannot_be_listed_is_not_passed_over(folder, monkeypatch):
    scandir = os.scandir

    def closed(path):
        if str(path).endswith("cat"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", closed)
    with pytest.raises(DataError, match="cannot list .*: .*Permission denied.*/cat"):
        open_manifest(webdataset(folder))


def test_a_file_that_goes_away_during_training_is_named(folder, tmp_path):
    manifest = open_manifest(image_folder(folder))
    (folder / "cat" / "002.jpg").unlink()
    [whole, gone] = manifest.read_many([1, 2])
    assert whole["label"] == 0 and str(gone) == "cannot read it: No such file or directory"
    shards = write_shards(tmp_path / "w", folder)
    manifest = open_manifest(webdataset(shards))
    with (shards / "0.tar").open("r+b") as file:
        file.truncate(600)
    [cut] = manifest.read_many([0])
    assert isinstance(cut, ValueError) and str(cut).startswith("the shard ends after")


class Failing:
    """A reader that fails so many times."""

    remote, filesystem = False, None

    def __init__(self, error: Exception, times: int):
        self.error, self.left = error, times

    def read(self, rows, index):
        if self.left:
            self.left -= 1
            raise self.error
        return {"x": np.int64(index)}


@pytest.mark.parametrize(
    ("error", "times", "read", "waited"),
    [
        (OSError("AWS Error SLOW_DOWN during GetObject"), 3, True, 3),
        (OSError(errno.EIO, "Input/output error"), 6, True, 6),
        (OSError(errno.EIO, "Input/output error"), 7, "cannot read it, after 7 tries in 31.5 s: Input/output error", 6),
        (OSError(errno.ESTALE, "Stale file handle"), 1, True, 1),
        (PermissionError(errno.EACCES, "Permission denied"), 1, "cannot read it: Permission denied", 0),
        (OSError(errno.ENAMETOOLONG, "File name too long"), 1, "cannot read it: File name too long", 0),
        (pa.ArrowInvalid("Parquet magic bytes not found"), 1, "cannot read it: Parquet magic bytes not found", 0),
        (ValueError("no number"), 1, "no number", 0),
    ],
)
def test_what_may_pass_is_tried_again(folder, monkeypatch, error, times, read, waited):
    slept = []
    monkeypatch.setattr(manifests.time, "sleep", slept.append)
    manifest = replace(open_manifest(image_folder(folder)), reader=Failing(error, times), known=())
    [found] = manifest.read_many([1])
    assert found == {"x": 1} if read is True else str(found) == read
    expected = [0.5, 1, 2, 4, 8, 16][:waited]
    assert len(slept) == waited and all(0.8 * e <= s <= 1.2 * e for s, e in zip(slept, expected, strict=True))


def test_parquet_that_does_not_fit_says_why(folder, tmp_path):
    path = write_parquet(tmp_path / "p", folder)
    with pytest.raises(DataError, match="has no column 'imag'; did you mean 'image'.; it has image, label"):
        open_manifest(parquet(path, columns={"picture": "imag"}))
    pq.write_table(pa.table({"x": [datetime.date(2026, 1, 1)]}), tmp_path / "date.parquet")
    with pytest.raises(DataError, match="column 'x' is date32.*, which can be no field; leave it out with `columns`"):
        open_manifest(parquet(tmp_path / "date.parquet"))
    pq.write_table(pa.table({"image": [b"x", b"y"], "label": [1, None]}), tmp_path / "null.parquet")
    with pytest.raises(DataError, match="1 labels in column 'label' are null"):
        open_manifest(parquet(tmp_path / "null.parquet"))
    pq.write_table(pa.table({"image": [b"x"], "label": [-1]}), tmp_path / "negative.parquet")
    with pytest.raises(DataError, match="holds the negative label -1"):
        open_manifest(parquet(tmp_path / "negative.parquet"))
    pq.write_table(pa.table({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}), tmp_path / "e.pq")
    with pytest.raises(DataError, match="holds no samples"):
        open_manifest(parquet(tmp_path / "e.pq"))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="cannot read .*broken.parquet"):
        open_manifest(parquet(tmp_path / "broken.parquet"))
    lists = pa.array([None], type=pa.list_(pa.uint8()))
    for name, column in (("bytes", pa.array([None], pa.binary())), ("list", lists)):
        pq.write_table(pa.table({"image": column, "label": [0]}), tmp_path / f"no_{name}.parquet")
        [error] = open_manifest(parquet(tmp_path / f"no_{name}.parquet")).read_many([0])
        assert str(error) == "column 'image' is null", "and is left out and counted"


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.jpg": b"x", "a.cls": b"1", "b.jpg": b"x"}, r"sample 'b' has no .cls \(label\)"),
        ({"a.jpg": b"x", "a.cls": b"1", "b.cls": b"1"}, r"sample 'b' has no \.jpg \(image\); it has \.cls$"),
        ({"a.jpg": b"x", "a.cls": b"true"}, r"a.cls is no label: a whole number, text, or JSON with a `label`: 'true'"),
        ({"a.cls": b"1", "b.cls": b"cat"}, r"labels must be all whole numbers or all text"),
        ({"d/a.jpg": b"x", "d/a.cls": b"1", "a.cls": b"1"}, r"sample 'a' has no \.jpg \(image\); it has \.cls$"),
        ({".a.jpg": b"x"}, r"holds no samples"),
    ],
)
def test_shards_that_do_not_fit_say_why(tmp_path, members, message):
    write_tar(tmp_path / "s.tar", members)
    with pytest.raises(DataError) as caught:
        open_manifest(webdataset(tmp_path))
    assert re.search(message, str(caught.value)), str(caught.value)


def test_a_file_that_is_no_shard_says_so(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(DataError, match="cannot read .*x.tar"):
        open_manifest(webdataset(tmp_path))


def test_s3_holds_the_same_samples(s3, folder, tmp_path):
    shards, rows = write_shards(tmp_path / "w", folder), write_parquet(tmp_path / "p", folder)
    for root, prefix in ((folder, "images"), (shards, "shards"), (rows, "rows")):
        for file in root.rglob("*.*"):
            s3.upload_file(str(file), "data", f"{prefix}/{file.relative_to(root)}")
    assert contents(open_manifest(image_folder("s3://data/images"))) == expected(folder)
    assert contents(open_manifest(webdataset("s3://data/shards"))) == expected(folder)
    assert contents(open_manifest(parquet("s3://data/rows"))) == expected(folder)
    manifest = pickle.loads(pickle.dumps(open_manifest(image_folder("s3://data/images"))))
    assert contents(manifest) == expected(folder)
    with pytest.raises(DataError, match="s3://data/nothing does not exist; check"):
        open_manifest(image_folder("s3://data/nothing"))
    with pytest.raises(DataError, match="(cannot list|does not exist).*"):
        open_manifest(image_folder("s3://no-such-bucket/x"))
    s3.delete_object(Bucket="data", Key="images/cat/001.jpg")
    [whole, gone] = manifest.read_many([0, 1])
    assert "image" in whole and str(gone).startswith("cannot read it: ")
