"""Paths as a shell has them, and how long samples are."""

from __future__ import annotations

import glob

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from formats import write_tar

from raytrain.data.sources import files, lengths
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
    monkeypatch.setattr(lengths, "MOST_READ", 2)
    with pytest.raises(
        DataError, match="the lengths of `x` are not known beforehand, and 3 samples are too many to be"
    ):
        lengths.lengths_of(manifest, "x")


def test_lengths_that_are_known_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(lengths, "MOST_READ", 0)
    write_tar(tmp_path / "0.tar", {"a.bin": b"xyz", "b.bin": b"", "c.bin": b"12345"})
    assert lengths.lengths_of(open_manifest(webdataset(tmp_path)), "bin").tolist() == [3, 0, 5]
    assert lengths.lengths_of(open_manifest(synthetic(3, num_classes=2)), "label").tolist() == [0, 1, 0]
    pq.write_table(pa.table({"weight": [0.5, 1.0], "x": [1, 2]}), tmp_path / "x.parquet")
    weighted = open_manifest(parquet(tmp_path / "x.parquet", weights="weight"))
    with pytest.raises(DataError, match="buckets: field `weight` is float64, which has no length"):
        lengths.lengths_of(weighted, "weight")
