"""Data that come from elsewhere: lists cannot lead out of their folder, and nothing that is loaded runs code."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_images
from formats import write_list, write_tar

from raytrain.data import arrays, coco, huggingface, image_folder, image_list, parquet, webdataset
from raytrain.data.sources import cache
from raytrain.data.sources.files import list_files
from raytrain.data.sources.open import open_manifest
from raytrain.errors import DataError

AWAY = [
    *("file:///etc/passwd", "file:/etc/passwd", "FILE:///etc/passwd", "/etc/passwd", "//169.254.169.254/latest"),
    *("http://169.254.169.254/latest/meta-data/iam/", "http://[fd00:ec2::254]/latest", "https://localhost:8080/x.jpg"),
    *("../../etc/passwd", "a/../../b.jpg", "..", "s3://other/x.jpg", "gs://b/x", "jar:file:///x!/y"),
]
RULE = "what comes from elsewhere may only name files below its folder: no URL, no / at the start and no .."


class Planted:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def rows(*paths):
    return [{"path": path, "label": number} for number, path in enumerate(paths)]


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "images", {"a": 2})


@pytest.mark.parametrize("path", AWAY)
@pytest.mark.parametrize("root", [None, "here"], ids=["beside it", "files of this machine"])
def test_a_list_from_elsewhere_leads_nowhere_else(s3, images, tmp_path, path, root):
    listed = write_list(tmp_path / "list.csv", rows("a/000.jpg", path))
    s3.upload_file(str(listed), "data", "lists/list.csv")
    with pytest.raises(DataError) as caught:
        open_manifest(image_list("s3://data/lists/list.csv", root=root and images))
    assert str(caught.value) == f"data/lists/list.csv, column 'path': row 2 names {path!r}; {RULE}"


def test_a_list_from_elsewhere_of_what_lies_below_it(s3, images, tmp_path):
    listed = write_list(tmp_path / "list.csv", rows("a/000.jpg", "a/..001.jpg"))
    s3.upload_file(str(listed), "data", "good/list.csv")
    s3.upload_file(str(images / "a/000.jpg"), "data", "good/a/000.jpg")
    manifest = open_manifest(image_list("s3://data/good/list.csv"))
    assert manifest.read_many([0])[0]["image"] == (images / "a/000.jpg").read_bytes()


def test_a_list_of_this_machine_may_name_any_file_of_it_but_no_url(images, tmp_path):
    (tmp_path / "lists").mkdir()
    paths = ["../images/a/000.jpg", str(images / "a/001.jpg")]
    manifest = open_manifest(image_list(write_list(tmp_path / "lists/list.csv", rows(*paths))))
    read = [each["image"] for each in manifest.read_many([0, 1])]
    assert read == [(images / f"a/00{number}.jpg").read_bytes() for number in (0, 1)]
    for path in ("file:///etc/passwd", "http://169.254.169.254/latest", "s3://other/x.jpg"):
        listed = write_list(tmp_path / "lists/list.csv", rows(*paths, path))
        with pytest.raises(
            DataError, match=f"row 3 names '{re.escape(path)}'; a list has paths and no URLs, and `root`"
        ):
            open_manifest(image_list(listed))


def test_annotations_from_elsewhere_lead_nowhere_else(s3, images):
    tree = {"images": [{"id": 1, "file_name": "../../etc/passwd"}], "annotations": [], "categories": [{"id": 1}]}
    s3.put_object(Bucket="data", Key="coco.json", Body=json.dumps(tree))
    with pytest.raises(DataError, match="s3://data/coco.json, `file_name`: row 1 names '../../etc/passwd'; what comes"):
        open_manifest(coco(images, "s3://data/coco.json"))


@pytest.mark.parametrize("name", ["../other.arrow", "/etc/passwd", "http://169.254.169.254/"])
def test_a_data_set_of_hugging_face_names_files_beside_it_wherever_it_is(tmp_path, name):
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(DataError, match=f"state.json: row 1 names '{name}'; what comes from elsewhere"):
        open_manifest(huggingface(tmp_path))


def test_the_path_beside_an_images_bytes_is_never_opened(tmp_path):
    """Hugging Face's Parquet files have both; elsewhere the path is read where there are no bytes."""
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    values = pa.array([{"bytes": None, "path": "/etc/passwd"}], kind)
    pq.write_table(pa.table({"image": values}), tmp_path / "x.parquet")
    [found] = open_manifest(parquet(tmp_path / "x.parquet")).read_many([0])
    assert str(found) == "column 'image' is null"


def test_members_and_links_of_a_shard_are_never_paths(tmp_path):
    """Nothing is unpacked: of a sample its bytes are read where they lie in the shard."""
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, kind, target in [
            ("0.jpg", tarfile.SYMTYPE, "/etc/passwd"),
            ("0.png", tarfile.LNKTYPE, "/etc/passwd"),
        ]:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            tar.addfile(member)
        for name, data in [("../../1.txt", b"inside"), ("/etc/2.txt", b"this too")]:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    before = sorted(tmp_path.rglob("*"))
    read = open_manifest(webdataset(tmp_path)).read_many([0, 1])
    assert [each["txt"] for each in read] == ["inside", "this too"]
    assert sorted(tmp_path.rglob("*")) == before


def test_links_in_a_folder_of_this_machine_are_followed_but_not_in_a_ring(images, tmp_path):
    folder = tmp_path / "linked"
    folder.mkdir()
    (folder / "b").symlink_to(images / "a")
    assert list_files(str(folder)).names == ["b/000.jpg", "b/001.jpg"]
    (images / "a" / "again").symlink_to(folder)
    with pytest.raises(DataError, match=f"the link {folder}/b/again leads back to {folder}; remove it"):
        open_manifest(image_folder(folder))


def test_arrays_run_no_code(tmp_path):
    mark = tmp_path / "ran"
    planted = np.array([Planted(mark)], dtype=object)
    np.save(tmp_path / "x.npy", planted, allow_pickle=True)
    np.savez(tmp_path / "y.npz", image=planted, label=np.zeros(1), allow_pickle=True)
    for path in ("x.npy", "y.npz"):
        with pytest.raises(DataError, match="x.npy|y.npz"):
            open_manifest(arrays(tmp_path / path)).read_many([0])
    write_tar(tmp_path / "z.tar", {"0.npy": (tmp_path / "x.npy").read_bytes()})
    [found] = open_manifest(webdataset(tmp_path / "z.tar")).read_many([0])
    assert "field `npy` is no npy" in str(found)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Planted(mark)))
    assert mark.exists(), "it would have left its mark"


def test_a_kept_manifest_names_a_reader_and_runs_nothing_else(tmp_path, monkeypatch):
    pq.write_table(pa.table({"x": [1, 2]}), tmp_path / "x.parquet")
    with cache.kept_in(tmp_path / "kept"):
        open_manifest(parquet(tmp_path / "x.parquet"))
    [kept] = (tmp_path / "kept").glob("*.arrow")
    table = pa.ipc.open_file(pa.py_buffer(kept.read_bytes()[: -cache.DIGEST_BYTES])).read_all()
    about = json.loads(table.schema.metadata[b"about"])
    called = []
    monkeypatch.setattr("raytrain.data.sources.files.list_files", lambda **given: called.append(given))
    for module, name in [("subprocess", "run"), ("raytrain.data.sources.files", "list_files")]:
        changed = table.replace_schema_metadata({"about": json.dumps({**about, "reader": [module, name, {}]})})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, changed.schema) as writer:
            writer.write_table(changed)
        body = sink.getvalue().to_pybytes()
        kept.write_bytes(body + hashlib.sha256(body).digest())
        assert cache._read(kept, pa.fs.LocalFileSystem()) is None
    assert called == []
