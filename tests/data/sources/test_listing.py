"""Paths as a shell has them, and how long samples are."""

from __future__ import annotations

import glob
import json

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from formats import write_tar

from raytrain import Pipeline
from raytrain.data import from_torch, huggingface
from raytrain.data.sources import files, lengths, readers
from raytrain.data.sources.files import Listing, expand_braces, list_files
from raytrain.data.sources.kinds.parquet import parquet
from raytrain.data.sources.kinds.synthetic import synthetic
from raytrain.data.sources.kinds.webdataset import webdataset
from raytrain.data.sources.open import open_manifest
from raytrain.errors import DataError

NAMES = ["a/0.csv", "a/1.csv", "a/2.txt", "b/0.csv", "b/deep/3.csv", "c/00.csv", "c/01.csv", "c/[1].csv", "{x}.csv"]


@pytest.fixture
def folder(tmp_path):
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "a" / ".hidden.csv").write_text("")
    return tmp_path


def listed(folder, *paths):
    listing = list_files(tuple(f"{folder}/{path}" for path in paths))
    return [listing.path(name)[len(str(folder)) + 1 :] for name in listing.names]


@pytest.mark.parametrize(
    "pattern", ["a/*.csv", "?/0.csv", "[ab]/*.csv", "**/*.csv", "*/deep/*", "b/**/3.csv", "c/0?.csv"]
)
def test_patterns_are_pythons_glob(folder, pattern):
    found = glob.glob(f"{folder}/{pattern}", recursive=True)
    assert listed(folder, pattern) == sorted(each[len(str(folder)) + 1 :] for each in found)


def test_a_folder_that_matches_is_taken_with_what_is_below(folder):
    assert listed(folder, "[b]") == ["b/0.csv", "b/deep/3.csv"]


def test_braces_and_lists_keep_their_order(folder):
    assert listed(folder, "{b,a}/0.csv") == ["b/0.csv", "a/0.csv"]
    assert listed(folder, "c/{01..00}.csv", "a/*.csv", "a/1.csv") == ["c/01.csv", "c/00.csv", "a/0.csv", "a/1.csv"]
    assert expand_braces("{a,b}{1..3}") == ["a1", "a2", "a3", "b1", "b2", "b3"]
    assert expand_braces("{008..011}") == ["008", "009", "010", "011"]


def test_a_name_that_is_there_is_no_pattern(folder):
    assert listed(folder, "c/[1].csv") == ["c/[1].csv"]
    assert listed(folder, "{x}.csv") == ["{x}.csv"]


def test_relative_patterns_start_here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for path in ("a/*.csv", "./a/*.csv", "*/[01].csv"):
        assert [name.rpartition("/")[2] for name in list_files(path).names][:2] == ["0.csv", "1.csv"]


def test_what_is_not_there_is_told(folder, monkeypatch):
    with pytest.raises(DataError, match=r"nothing matches .*/a/\*.png; check the path in the job file"):
        list_files(f"{folder}/a/*.png")
    with pytest.raises(DataError, match="d/0.csv does not exist; check the path"):
        list_files(f"{folder}/{{a,d}}/0.csv")
    real = files.below
    elsewhere = pyarrow.fs.SubTreeFileSystem("/", pyarrow.fs.LocalFileSystem())
    monkeypatch.setattr(files, "below", lambda p: Listing(elsewhere, "", [p], p) if p.endswith("1.csv") else real(p))
    with pytest.raises(DataError, match="lie in different file systems; a source has one"):
        list_files((f"{folder}/a/0.csv", f"{folder}/a/1.csv"))


# --- lengths --------------------------------------------------------------------------------------------------------


def test_lengths_of_fields(tmp_path, monkeypatch):
    table = {"x": [[1, 2], [], [3]], "text": ["zwölf", "", "a"], "n": [5, 6, 7], "part": [0.5, 1.5, 2.5]}
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    manifest = open_manifest(parquet(tmp_path / "x.parquet", weights=None))
    for name, expected in {"x": [2, 0, 1], "text": [5, 0, 1], "n": [5, 6, 7]}.items():
        found = lengths.lengths_of(manifest, name)
        assert (found.tolist(), found.dtype) == (expected, np.int64), name
    with pytest.raises(
        DataError, match="buckets: there is no field `txt`; did you mean 'text'.; there are `x`, `text`"
    ):
        lengths.lengths_of(manifest, "txt")
    manifest = open_manifest(from_torch([{"x": [1, 2]}, {"x": [3]}, {"x": []}]))
    assert lengths.lengths_of(manifest, "x").tolist() == [2, 1, 0]
    monkeypatch.setattr(lengths, "MOST_READ", 2)
    with pytest.raises(
        DataError, match="the lengths of `x` are not known beforehand, and 3 samples are too many to be"
    ):
        lengths.lengths_of(manifest, "x")


def write_documents(folder, count=23_000):
    """Three files of several row groups each; by column the lengths."""
    rng = np.random.default_rng(0)
    number = rng.integers(0, 9, count)
    tokens = pa.array([range(n) for n in number.tolist()], pa.list_(pa.int32()))
    blank = np.arange(count) % 100 == 7
    columns = {
        "tokens": tokens,
        "long": tokens.cast(pa.large_list(pa.int32())),
        "nested": pa.array([[[1, 2]] * n for n in number.tolist()]),
        "text": pa.array([None if no else "ä" * n for n, no in zip(number.tolist(), blank, strict=True)]),
        "word": pa.array(["ab" * n for n in number.tolist()]).dictionary_encode(),
        "image": pa.array([b"\xff" * 3 * n for n in number.tolist()]),
        "file": pa.array([{"bytes": b"\xff" * n, "path": "x"} for n in number.tolist()]),
        "pair": pa.array([[1, 2]] * count, pa.list_(pa.int8(), 2)),
        "flat": pa.array([[0] * 6] * count),
        "number": pa.array(number),
        "part": pa.array(number / 2),
    }
    table = pa.table(columns)
    for file, (start, stop) in enumerate(((0, 9_000), (9_000, 9_100), (9_100, count))):
        pq.write_table(table.slice(start, stop - start), folder / f"{file}.parquet", row_group_size=700)
    same = dict.fromkeys(("tokens", "long", "nested", "number", "file"), number)
    other = {"text": np.where(blank, 0, number), "word": 2 * number, "image": 3 * number}
    return same | other | {"pair": np.full(count, 2), "flat": np.full(count, 3)}


def test_lengths_of_a_parquet_column_are_read_of_any_number_of_rows(tmp_path):
    known = write_documents(tmp_path)
    manifest = open_manifest(parquet(tmp_path, shapes={"flat": (3, 2)}))
    assert manifest.num_samples > lengths.MOST_READ
    for name, expected in known.items():
        found = lengths.lengths_of(manifest, name)
        assert np.array_equal(found, expected) and found.dtype == np.int64, name
    ids = np.random.default_rng(1).integers(0, manifest.num_samples, 5_000)
    assert np.array_equal(lengths.lengths_of(manifest.of(ids), "tokens"), known["tokens"][ids]), (
        "some of them, any order"
    )
    renamed = open_manifest(parquet(tmp_path, columns={"x": "text"}, limit=12_000))
    assert np.array_equal(lengths.lengths_of(renamed, "x"), known["text"][:12_000])
    with pytest.raises(DataError, match="buckets: field `part` is float64, which has no length"):
        lengths.lengths_of(manifest, "part")
    opened = Pipeline(parquet(tmp_path, columns={"tokens": "tokens"}), batch_size=8, buckets={"by": "tokens"}).open(0)
    assert np.array_equal(opened.buckets.lengths, known["tokens"])


def write_dataset(folder, rows, files):
    """As `save_to_disk` does, with `datasets`' rows over several files."""
    table, names = pa.table(rows), [f"data-{number}.arrow" for number in range(files)]
    size = -(-len(table) // files)
    for number, name in enumerate(names):
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table.slice(number * size, size), max_chunksize=4)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_lengths_of_a_hugging_face_column_are_read_of_any_number_of_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(lengths, "MOST_READ", 0)
    rows = {"tokens": [[1] * (n % 5) for n in range(40)], "text": ["ö" * (n % 3) for n in range(40)]}
    manifest = open_manifest(huggingface(write_dataset(tmp_path, rows, 3)))
    assert lengths.lengths_of(manifest, "tokens").tolist() == [n % 5 for n in range(40)]
    assert lengths.lengths_of(manifest.of(np.array([39, 2, 20])), "text").tolist() == [0, 2, 2]


def test_for_lengths_no_other_column_is_read_and_nothing_is_kept(tmp_path, monkeypatch):
    """Every byte of the other columns is broken."""
    known = write_documents(tmp_path, 3_000)
    manifest = open_manifest(parquet(tmp_path, columns={"tokens": "tokens", "number": "number"}))
    for path in tmp_path.glob("*.parquet"):
        data = bytearray(path.read_bytes())
        about = pq.read_metadata(path)
        for group in range(about.num_row_groups):
            for column in map(about.row_group(group).column, range(about.num_columns)):
                if not column.path_in_schema.startswith("tokens"):
                    start = column.dictionary_page_offset or column.data_page_offset
                    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
        path.write_bytes(data)
    monkeypatch.setattr(readers, "LENGTHS_BATCH_BYTES", 1 << 12)
    before, seen, real = pa.total_allocated_bytes(), [], readers.lengths_of
    monkeypatch.setattr(readers, "lengths_of", lambda values: seen.append(len(values)) or real(values))
    assert np.array_equal(lengths.lengths_of(manifest, "tokens"), known["tokens"])
    assert pa.total_allocated_bytes() == before
    assert max(seen) < 200, "in batches; a row group has 700"
    with pytest.raises(DataError, match="cannot read .*0.parquet: "):
        lengths.lengths_of(manifest, "number")


def test_lengths_that_are_known_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(lengths, "MOST_READ", 0)
    write_tar(tmp_path / "0.tar", {"a.bin": b"xyz", "b.bin": b"", "c.bin": b"12345"})
    assert lengths.lengths_of(open_manifest(webdataset(tmp_path)), "bin").tolist() == [3, 0, 5]
    assert lengths.lengths_of(open_manifest(synthetic(3, num_classes=2)), "label").tolist() == [0, 1, 0]
    pq.write_table(pa.table({"weight": [0.5, 1.0], "x": [1, 2]}), tmp_path / "x.parquet")
    weighted = open_manifest(parquet(tmp_path / "x.parquet", weights="weight"))
    with pytest.raises(DataError, match="buckets: field `weight` is float64, which has no length"):
        lengths.lengths_of(weighted, "weight")
