"""Manifests that were made before: used while nothing has changed, and never otherwise."""

from __future__ import annotations

import gzip
import os
import threading
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from formats import write_tar

from raytrain import Pipeline
from raytrain.data import Field, held_out, parquet, webdataset
from raytrain.data.sources import cache
from raytrain.data.sources.cache import MOST_KEPT, kept_in
from raytrain.data.sources.kinds import parquet as of_parquet
from raytrain.data.sources.kinds import webdataset as of_webdataset
from raytrain.data.sources.open import open_manifest
from raytrain.errors import DataError


@pytest.fixture
def looks(monkeypatch):
    """What was looked into, and not found in the cache."""
    seen = []
    for module in (of_parquet, of_webdataset):
        monkeypatch.setattr(module, "_made", lambda *a, real=module._made: seen.append(a[0]) or real(*a))
    return seen


@pytest.fixture
def rows(tmp_path):
    """Two files, of two row groups each; the classes are text."""
    folder = tmp_path / "rows"
    folder.mkdir()
    for number in range(2):
        table = pa.table(
            {
                "label": [f"class {(number + each) % 3}" for each in range(5)],
                "weight": np.arange(5, dtype=np.float32) + number,
                "grid": [list(range(each, each + 4)) for each in range(5)],
                "text": ["é" * each for each in range(5)],
            }
        )
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=3)
    return folder


def shards(folder, packed=False):
    folder.mkdir()
    for number in range(2):
        members = {}
        for each in range(3):
            members |= {f"{each}.txt": f"{number} {each}".encode(), f"{each}.cls": f"class {each}".encode()}
        path = write_tar(folder / f"{number}.tar", members)
        if packed:
            path.with_suffix(".tar.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    return folder


def opened(source, folder, **options):
    with kept_in(folder):
        return open_manifest(source, **options)


def same(one, other):
    """All that a run knows of a manifest, and all that it reads by it."""
    assert one.fingerprint == other.fingerprint
    assert (dict(one.schema), one.known, one.guarantee) == (dict(other.schema), other.known, other.guarantee)
    assert one.rows.schema.equals(other.rows.schema, check_metadata=True)
    assert one.reader == other.reader
    assert (one.groups is None) == (other.groups is None)
    if one.groups is not None:
        assert one.groups.starts.tolist() == other.groups.starts.tolist()
        assert one.groups.window == other.groups.window
    ids = range(one.num_samples)
    for left, right in zip(one.read_many(ids), other.read_many(ids), strict=True):
        assert {name: np.asarray(value).tolist() for name, value in left.items()} == {
            name: np.asarray(value).tolist() for name, value in right.items()
        }
    assert [one.describe(each) for each in ids] == [other.describe(each) for each in ids]


SOURCES = {
    "parquet": lambda rows, path: parquet(rows, shapes={"grid": (2, 2)}),
    "parquet by weights": lambda rows, path: parquet(rows, weights="weight", limit=7),
    "parquet, two columns": lambda rows, path: parquet(rows, columns={"y": "label", "x": "text"}, labels=["y"]),
    "webdataset": lambda rows, path: webdataset(shards(path / "shards")),
    "webdataset, some": lambda rows, path: webdataset(shards(path / "shards"), fields={"words": "txt"}),
    "packed webdataset": lambda rows, path: webdataset(shards(path / "shards", packed=True)),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_manifest_is_made_once_and_stays_the_same(kind, rows, tmp_path, looks):
    """Its fingerprint too: by another one a checkpoint would be refused."""
    source = SOURCES[kind](rows, tmp_path)
    first = opened(source, tmp_path / "kept")
    second = opened(source, tmp_path / "kept")
    assert len(looks) == 1, "the second was not looked for"
    same(first, second)
    same(first, open_manifest(source))
    assert len(looks) == 2, "nobody asked for a cache"


def test_a_pipeline_keeps_the_manifests_of_both_splits(rows, tmp_path, looks):
    other = shards(tmp_path / "shards")
    pipeline = Pipeline(parquet(rows, columns={"x": "text"}), validation=webdataset(other, fields={"x": "txt"}))
    first, second = (pipeline.open(0, tmp_path / "kept") for _ in range(2))
    assert len(looks) == 2
    for one, two in ((first.train, second.train), (first.validation, second.validation)):
        same(one, two)
    split = Pipeline(parquet(rows), validation=held_out(0.3))
    one, two = (split.open(0, tmp_path / "kept") for _ in range(2))
    assert len(looks) == 3
    same(one.validation, two.validation)


def touch(path):
    info = path.stat()
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns + 1))


def grow(path):
    """Larger, at the same time of change."""
    info = path.stat()
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table, table]), path)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


CHANGES = {
    "one more": lambda folder: pq.write_table(pq.read_table(folder / "1.parquet"), folder / "2.parquet"),
    "one less": lambda folder: (folder / "0.parquet").unlink(),
    "another name": lambda folder: (folder / "0.parquet").rename(folder / "00.parquet"),
    "another time": lambda folder: touch(folder / "1.parquet"),
    "another size": lambda folder: grow(folder / "1.parquet"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_files_that_have_changed_are_looked_into_anew(change, rows, tmp_path, looks):
    source = parquet(rows)
    opened(source, tmp_path / "kept")
    CHANGES[change](rows)
    found = opened(source, tmp_path / "kept")
    assert len(looks) == 2
    same(found, open_manifest(source))


@pytest.mark.parametrize(
    "options",
    [
        {"labels": ("text",)},
        {"columns": {"label": "text"}},
        {"shapes": {"grid": (2, 2)}},
        {"masks": ("grid",)},
        {"weights": "weight"},
        {"limit": 3},
    ],
)
def test_another_option_of_the_source_is_another_manifest(options, rows, tmp_path, looks):
    opened(parquet(rows), tmp_path / "kept")
    found = opened(parquet(rows, **options), tmp_path / "kept")
    assert len(looks) == 2
    same(found, open_manifest(parquet(rows, **options)))


def test_classes_of_other_training_data_are_another_manifest(rows, tmp_path, looks):
    """`class 1` of validation is a different number beside each of them."""
    train = open_manifest(parquet(rows))
    more = train.schema.but(label=Field("int64", (), classes=("a", *train.schema["label"].classes)))
    each = [opened(parquet(rows), tmp_path / "kept", like=like) for like in (None, train.schema, more)]
    labels = [manifest.values("label") for manifest in each]
    assert labels[1].tolist() == labels[0].tolist() == (labels[2] - 1).tolist()


BROKEN = {
    "empty": lambda data: b"",
    "cut off": lambda data: data[: len(data) // 2],
    "cut off at the end": lambda data: data[:-1],
    "something else": lambda data: b"something else" * 99,
    "without a word": lambda data: written(pa.table({"x": [1]})),
    "of something else": lambda data: written(pa.table({"x": [1]}).replace_schema_metadata({"about": "[1, 2]"})),
    "of no reader": lambda data: written(pa.table({"x": [1]}).replace_schema_metadata({"about": '{"reader": [1, 2]}'})),
}


def written(table):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("how", BROKEN)
def test_a_file_that_is_broken_is_made_anew(how, rows, tmp_path, looks):
    first = opened(parquet(rows), tmp_path / "kept")
    [path] = (tmp_path / "kept").iterdir()
    whole = path.read_bytes()
    path.write_bytes(BROKEN[how](whole))
    same(first, opened(parquet(rows), tmp_path / "kept"))
    assert len(looks) == 2
    assert path.read_bytes() == whole, "and is whole again"


@pytest.mark.parametrize("how", ["a file", "full"])
def test_where_nothing_can_be_kept_the_run_goes_on(how, rows, tmp_path, monkeypatch):
    folder = tmp_path / "kept"
    if how == "a file":
        folder.write_text("")
    else:

        @contextmanager
        def full(sink, schema):
            sink.write(b"half")
            raise OSError(28, "No space left on device")
            yield

        monkeypatch.setattr(cache.pa.ipc, "new_file", full)
    same(opened(parquet(rows), folder), open_manifest(parquet(rows)))
    assert how == "a file" or not [*folder.iterdir()], "half of a file takes what room there is"


def test_two_that_write_at_once_do_not_spoil_each_others_file(rows, tmp_path, monkeypatch):
    """Two runs on hosts that share the folder may even have one process id: one has written its file but for the
    end, when the other opens its own, and what the first then makes of it is whole."""
    folder, real = tmp_path / "kept", pa.ipc.new_file
    in_the_middle, go_on = ({name: threading.Event() for name in ("one", "other")} for _ in range(2))

    @contextmanager
    def stopped(sink, schema):
        with real(sink, schema) as writer:
            if (name := threading.current_thread().name) == "other":
                in_the_middle[name].set()
                assert go_on[name].wait(60)
            yield writer
            if name == "one":
                in_the_middle[name].set()
                assert go_on[name].wait(60)

    monkeypatch.setattr(cache.pa.ipc, "new_file", stopped)
    found = []
    threads = {
        name: threading.Thread(target=lambda: found.append(opened(parquet(rows), folder)), name=name) for name in go_on
    }
    for name, thread in threads.items():
        thread.start()
        assert in_the_middle[name].wait(60)
    expected = open_manifest(parquet(rows))
    monkeypatch.setattr(of_parquet, "_made", None)  # from now on it is there
    for name, thread in threads.items():
        go_on[name].set()
        thread.join(60)
        same(opened(parquet(rows), folder), expected)
    assert [path.suffix for path in folder.iterdir()] == [".arrow"]
    for each in found:
        same(each, expected)


def test_the_latest_are_kept(rows, tmp_path, looks):
    for number in range(MOST_KEPT + 3):
        opened(parquet(rows, limit=number + 1), tmp_path / "kept")
        for age, path in enumerate(sorted((tmp_path / "kept").iterdir(), key=lambda each: -each.stat().st_mtime_ns)):
            os.utime(path, (1000 - age, 1000 - age))
    assert len([*(tmp_path / "kept").iterdir()]) == MOST_KEPT
    looks.clear()
    opened(parquet(rows, limit=MOST_KEPT + 3), tmp_path / "kept")
    assert looks == []
    opened(parquet(rows, limit=1), tmp_path / "kept")
    assert len(looks) == 1


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_a_name_that_is_no_text_hinders_only_where_it_is_data(kind, rows, tmp_path, looks):
    """pyarrow cannot open it; what some program has left beside the data does not matter."""
    source = parquet(rows) if kind == "parquet" else webdataset(shards(rows / "shards"))
    (rows / os.fsdecode(b"\xff.log")).touch()
    for _ in range(2):
        same(opened(source, tmp_path / "kept"), open_manifest(source))
    (rows / "shards").mkdir(exist_ok=True)
    (rows / "shards" / os.fsdecode(b"\xff." + kind.encode())).touch()
    with pytest.raises(
        DataError, match=rf"cannot read '.*/rows/shards/\\udcff.{kind}': its name is no UTF-8; rename it"
    ):
        opened(source, tmp_path / "kept")


def test_what_lies_beside_the_data_changes_nothing(rows, tmp_path, looks):
    opened(parquet(rows), tmp_path / "kept")
    (rows / "_SUCCESS").touch()
    opened(parquet(rows), tmp_path / "kept")
    assert len(looks) == 1
