"""Damaged data sets: whatever a library raises of them is one line that names the file, or a sample left out."""

from __future__ import annotations

import io
import json
import struct
import tarfile

import numpy as np
import pyarrow as pa
import pytest
from pictures import encoded, photo

from raytrain.data import arrays, coco, huggingface, image_list, parquet, webdataset
from raytrain.data.sources.files import expand_braces, list_files
from raytrain.data.sources.open import open_manifest
from raytrain.errors import DataError


def refused(source) -> str:
    with pytest.raises(DataError) as caught:
        open_manifest(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["a.npz", "x.npy"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda d: b"",
        lambda d: d[:40],
        lambda d: b"PK\3\4" + bytes(60),
        lambda d: d.replace(b"{", b"(", 1),
        lambda d: d[:-30],
    ],
)
def test_arrays_that_were_cut_off_or_changed(tmp_path, name, damage):
    file = io.BytesIO()
    (np.savez if name == "a.npz" else np.save)(file, np.arange(100.0))
    (tmp_path / name).write_bytes(damage(file.getvalue()))
    assert str(tmp_path) in refused(arrays(tmp_path))


def test_a_member_that_is_no_array(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", b"plain bytes")
    assert refused(arrays(tmp_path)) == f"cannot read the array `x` of {tmp_path}: it is no array"


def tar_of(**members: bytes) -> bytearray:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name.replace("_", "."))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return bytearray(file.getvalue())


def with_size(shard: bytearray, field: bytes) -> bytes:
    """The size in the second header, with the sum that then belongs to it."""
    at = 1024
    shard[at + 124 : at + 136] = field
    shard[at + 148 : at + 156] = b" " * 8
    shard[at + 148 : at + 156] = b"%06o\0 " % sum(shard[at : at + 512])
    return bytes(shard)


@pytest.mark.parametrize("size", [-512, -1024, -1536, 1 << 62, 1 << 70])
def test_a_member_of_a_shard_that_ends_before_it_begins_or_far_behind_the_end(tmp_path, size):
    """tarfile would read the same members for ever, or ask for as much memory."""
    field = (b"\xff" if size < 0 else b"\x80") + (size % (1 << 88)).to_bytes(11)
    (tmp_path / "a.tar").write_bytes(with_size(tar_of(a_txt=b"1", b_txt=b"2", c_txt=b"3"), field))
    assert str(tmp_path / "a.tar") in refused(webdataset(tmp_path))


def test_a_label_as_long_as_a_book(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_of(a_cls=b"x" * 100_000))
    assert "a.cls is no label" in refused(webdataset(tmp_path))


def test_a_damaged_packed_shard_is_not_tried_again(tmp_path, monkeypatch):
    import gzip

    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(bytes(tar_of(a_txt=b"words", b_txt=b"more"))))
    manifest = open_manifest(webdataset(tmp_path))
    monkeypatch.setattr("raytrain.data.sources.manifest.time.sleep", pytest.fail)
    (tmp_path / "a.tar.gz").write_bytes(b"\x1f\x8b\x08" + b"\0" * 40)
    for each in manifest.read_many([0, 1]):
        assert str(each).startswith("cannot read it: ")


def test_an_arrow_file_whose_offsets_lead_out_of_it(tmp_path):
    """Arrow itself would end the process when the text is looked at."""
    text = pa.array(["aaaa", "bbbb"])
    wild = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(struct.pack("<iii", 0, -(2**31), 4)), text.buffers()[2]]
    )
    with (
        pa.OSFile(str(tmp_path / "0.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, pa.schema({"x": pa.string()})) as out,
    ):
        out.write_batch(pa.RecordBatch.from_arrays([wild], ["x"]))
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "0.arrow"}]}))
    assert refused(huggingface(tmp_path)).startswith(f"cannot read {tmp_path}/0.arrow: ")


@pytest.mark.parametrize("files", [5, ["x"], [{}], [{"filename": 3}]])
def test_a_state_that_names_no_files_of_its_folder(tmp_path, files):
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": files}))
    assert "state.json names a file" in refused(huggingface(tmp_path))


@pytest.mark.parametrize(
    ("columns", "told"), [({}, "has no columns"), ({"label": pa.array([], pa.int64())}, "holds no samples")]
)
@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_a_table_of_nothing(tmp_path, kind, columns, told):
    import pyarrow.parquet as pq

    table = pa.table(columns)
    if kind == "parquet":
        pq.write_table(table, tmp_path / "0.parquet")
        assert told in refused(parquet(tmp_path))
        return
    with pa.OSFile(str(tmp_path / "0.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema):
        pass
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "0.arrow"}]}))
    assert refused(huggingface(tmp_path)) == f"{tmp_path} {told}"


THING = {"image_id": 0, "category_id": 7, "bbox": [1, 2, 3, 4], "segmentation": [[1, 1, 5, 1, 5, 5]]}


def annotated(folder, **changes):
    (folder / "0.jpg").write_bytes(encoded(photo()))
    image = {"id": 0, "file_name": "0.jpg", "height": 40, "width": 60}
    tree = {"images": [image], "annotations": [THING], "categories": [{"id": 7}], **changes}
    (folder / "coco.json").write_text(json.dumps(tree))
    return coco(folder, folder / "coco.json", task="segmentation" if "task" in changes else "detection")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"annotations": [{**THING, "bbox": [1, 2, 3]}]}, "annotations[0] has a `bbox` of another form: [1, 2, 3]"),
        ({"annotations": [{**THING, "bbox": [1, 2, "3", 4]}]}, "annotations[0] has a `bbox` of another form"),
        ({"annotations": [{**THING, "bbox": [1, 2, 3, float("nan")]}]}, "annotations[0] has a `bbox` of another form"),
        ({"annotations": [{**THING, "category_id": []}]}, "annotations[0] has a `category_id` of another form: []"),
        ({"annotations": [7]}, "annotations[0] is no JSON object"),
        ({"annotations": 7}, "is not in COCO's form: `annotations` is no list"),
        ({"categories": [{"id": 7}, {"id": "a"}]}, "some ids are numbers, and others text"),
        (
            {"task": 1, "images": [{"id": 0, "file_name": "0.jpg", "height": 10**9, "width": 9}]},
            "images[0] has a `height`",
        ),
    ],
)
def test_annotations_of_another_form(tmp_path, changes, told):
    assert told in refused(annotated(tmp_path, **changes))


@pytest.mark.parametrize("far", [1e308, -(2**31), float("nan")])
def test_an_outline_that_leaves_the_image_by_far_is_left_out(tmp_path, far):
    """OpenCV would draw its lines for hours."""
    thing = {**THING, "segmentation": [[1, 1, 9, far, 9, 9, 1, 9]]}
    [sample] = open_manifest(annotated(tmp_path, task=1, annotations=[thing])).read_many([0])
    assert "an outline that leaves the image by more than" in str(sample)


def test_a_table_that_can_be_listed_and_not_read(tmp_path):
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"image": [encoded(photo())] * 4}), tmp_path / "a.parquet", compression="zstd")
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[8:200] = bytes(192)
    (tmp_path / "a.parquet").write_bytes(data)
    assert refused(parquet(tmp_path)).startswith(f"cannot read {tmp_path}/a.parquet: ")


def test_lists_in_a_list_of_files(tmp_path):
    (tmp_path / "0.jpg").write_bytes(encoded(photo()))
    rows = [{"path": "0.jpg", "boxes": [[1, 2], [3, 4]]}, {"path": "0.jpg", "boxes": [[1, 2], [3]]}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    [whole, uneven] = open_manifest(image_list(tmp_path / "a.jsonl")).read_many([0, 1])
    assert whole["boxes"].tolist() == [[1, 2], [3, 4]]
    assert str(uneven) == "a list of lists of different lengths is no array"


def test_a_list_of_files_whose_first_line_is_no_text(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"pa\x9cth,label\nx.jpg,1\n")
    assert refused(image_list(tmp_path / "a.csv")).startswith(f"cannot read {tmp_path}/a.csv: not UTF-8")


@pytest.mark.parametrize("path", ["x/{0..99999999999}.tar", "{0..999}" * 9, "{a,b}" * 40, "{a}" * 5_000])
def test_braces_that_stand_for_more_paths_than_there_are(path, monkeypatch):
    monkeypatch.setattr("raytrain.data.sources.files.MOST_PATHS", 1_000)
    with pytest.raises(DataError, match="its braces stand for more than 1,000 paths"):
        expand_braces(path)


@pytest.mark.parametrize("path", ["a\0b", "\udcff"])
def test_characters_that_no_path_has(path):
    with pytest.raises(DataError, match="^cannot list "):
        list_files(path)


def test_a_kept_manifest_that_was_changed_is_made_anew(tmp_path):
    import pyarrow.parquet as pq

    from raytrain.data.sources.cache import kept_in

    pq.write_table(pa.table({"label": ["a", "b"], "x": [1, 2]}), tmp_path / "a.parquet")
    with kept_in(tmp_path / "kept"):
        made = open_manifest(parquet(tmp_path / "a.parquet"))
        [kept] = (tmp_path / "kept").iterdir()
        whole = kept.read_bytes()
        for place in (*range(0, len(whole), 97), len(whole) - 1):
            kept.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            found = open_manifest(parquet(tmp_path / "a.parquet"))
            assert (found.fingerprint, found.schema, found.known) == (made.fingerprint, made.schema, made.known)
            assert kept.read_bytes() == whole, "written again"
