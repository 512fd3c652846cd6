"""The keeper of checkpoints, without Ray."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from keeping import keeper_of, save

from raytrain.errors import CheckpointError
from raytrain.train.checkpoints import checkpoint, shelf
from raytrain.train.checkpoints.keeper import make_folder

FACTS = shelf.Facts(0, 3, 3, 12, 0, "f", 0, 1)


def packed(value=1.0, **changes):
    """What `save` takes."""
    files = {shelf.STATE: checkpoint.pack({}), shelf.object_file(0): checkpoint.pack({"w": torch.full((2,), value)})}
    digests = {name: shelf.digest(data) for name, data in files.items()}
    return shelf.describe(replace(FACTS, **changes), digests), files


def kept(folder) -> list[float]:
    """The weights of every checkpoint below, in the order of writing."""
    return [checkpoint.load_object(path, 0)["w"][0].item() for path, _ in shelf.whole(folder)]


def test_what_is_kept_is_what_was_packed(tmp_path):
    keeper = keeper_of(tmp_path, "attempt", keep=2)
    assert keeper.latest() is None
    assert save(keeper, *packed(4.0)) is None
    found = shelf.latest(tmp_path)
    assert str(found) == keeper.latest()
    facts, _ = checkpoint.load(found)
    assert facts.steps == 3
    assert checkpoint.load_object(found, 0)["w"].tolist() == [4.0, 4.0]
    assert sorted(path.name for path in found.iterdir()) == ["checkpoint.json", "object_0.pt", "state.pt"]


def test_only_the_last_few_stay_and_the_newest_counts(tmp_path):
    keeper = keeper_of(tmp_path, "attempt", keep=2)
    for value in (1.0, 2.0, 3.0):
        save(keeper, *packed(value))
    assert kept(tmp_path) == [2.0, 3.0]
    assert checkpoint.load_object(Path(keeper.latest()), 0)["w"][0] == 3.0
    assert keeper_of(tmp_path, "attempt", keep=2).latest() == keeper.latest(), "also after the actor was started again"


def test_the_last_few_are_those_of_all_attempts(tmp_path):
    for number in range(6):
        keeper = keeper_of(tmp_path, f"attempt{number}", keep=2)
        assert keeper.latest() is None, "of this attempt"
        for value in (0.0, 0.5):
            save(keeper, *packed(number + value))
        assert kept(tmp_path) == [number, number + 0.5]
    keeper = keeper_of(tmp_path, "last", keep=3)
    save(keeper, *packed(9.0))
    assert kept(tmp_path) == [5.0, 5.5, 9.0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attempt5", "last"], "and no empty folder"


def test_what_is_not_the_keepers_own_stays(tmp_path):
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "model.pt").write_text("mine")
    copy = tmp_path / "old" / "checkpoint_5.bak"
    copy.mkdir(parents=True)
    keeper = keeper_of(tmp_path, "a", keep=1)
    for value in (1.0, 2.0):
        assert save(keeper, *packed(value)) is None
    assert kept(tmp_path) == [2.0]
    assert (tmp_path / "exported" / "model.pt").exists() and copy.is_dir()


def test_scores_of_another_metric_are_not_compared(tmp_path):
    keeper = keeper_of(tmp_path, "a", keep=1)
    for value, metric, score in ((1.0, "max a", 0.5), (2.0, "min b", -0.4), (3.0, "min b", -0.1), (4.0, "min b", -0.2)):
        save(keeper, *packed(value, metric=metric, score=score))
    assert kept(tmp_path) == [3.0, 4.0]


def test_the_best_stays_beside_them(tmp_path):
    keeper = keeper_of(tmp_path, "a", keep=1)
    for value, score in ((1.0, 0.2), (2.0, 0.8), (3.0, None), (4.0, 0.8), (5.0, 0.3)):
        save(keeper, *packed(value, score=score))
    assert kept(tmp_path) == [2.0, 5.0]
    other = keeper_of(tmp_path, "b", keep=1)
    save(other, *packed(6.0, score=0.9))
    assert kept(tmp_path) == [6.0]


def test_a_clock_that_was_set_back_does_not_make_the_new_one_the_oldest(tmp_path, monkeypatch):
    save(keeper_of(tmp_path, "a", keep=1), *packed(1.0))
    monkeypatch.setattr("time.time_ns", lambda: 5)
    save(keeper_of(tmp_path, "b", keep=1), *packed(2.0))
    assert kept(tmp_path) == [2.0]


def test_everything_is_on_disk_before_an_older_one_goes(tmp_path, monkeypatch):
    """Files, their folder, and the folder that they were moved in: each synchronised, in this order."""
    keeper = keeper_of(tmp_path, "a", keep=1)
    save(keeper, *packed(1.0))
    (older,) = [path for path, _ in shelf.whole(tmp_path)]
    order = []
    sync, rename = os.fsync, Path.rename

    def synced(descriptor):
        order.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        assert older.is_dir()
        sync(descriptor)

    def renamed(self, target):
        assert self.name.startswith("part_"), "never under its final name before it is whole"
        order.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    assert save(keeper, *packed(2.0)) is None
    assert order == ["state.pt", "object_0.pt", "checkpoint.json", "part_draft", "rename", "a", tmp_path.name]
    assert not older.exists()


def test_what_cannot_be_written_is_said_and_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot make the folder .*/file/a: Not a directory"):
        make_folder(tmp_path / "file", "a")
    full = keeper_of(tmp_path, "a", keep=1)
    save(full, *packed(1.0))
    for call in ("os.fsync", "os.pwrite"):
        with pytest.MonkeyPatch.context() as changed:
            changed.setattr(call, lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            assert save(full, *packed(2.0)) == f"cannot write a checkpoint into {tmp_path}/a: No space left on device"
        assert kept(tmp_path) == [1.0], "and the one before stays"
        assert len(list((tmp_path / "a").iterdir())) == 1


def test_pieces_may_come_twice_and_none_may_be_missing(tmp_path):
    keeper = keeper_of(tmp_path, "a", keep=2)
    text, files = packed(3.0)
    sizes = {name: data.size for name, data in files.items()}
    assert keeper.begin("draft") is None
    for name, data in files.items():
        for at, until in ((0, 100), (100, 300), (100, 300), (300, data.size)):
            assert keeper.write("draft", name, at, data[at:until]) is None
        keeper = keeper_of(tmp_path, "a", keep=2)  # its process was killed in between
    assert keeper.finish("draft", text, sizes) is None
    assert kept(tmp_path) == [3.0]
    shelf.check_digests(shelf.latest(tmp_path), shelf.read_facts(shelf.latest(tmp_path)))

    for name, data in files.items():
        keeper.begin("other")
        for each, whole in files.items():
            keeper.write("other", each, 0, whole[:-1] if each == name else whole)
        assert keeper.finish("other", text, sizes).endswith(f"{name} has not come whole")
        assert keeper.write("other", name, 0, data).endswith("No such file or directory"), "and it is gone"
    assert len(list((tmp_path / "a").iterdir())) == 1


def test_what_was_left_half_written_goes_with_the_next(tmp_path):
    text, files = packed(1.0)
    for attempt in ("a", "b"):
        keeper = keeper_of(tmp_path, attempt, keep=9)
        save(keeper, text, files)
        keeper.begin("half")
        keeper.write("half", shelf.STATE, 0, files[shelf.STATE])
    save(keeper_of(tmp_path, "c", keep=9), text, files)
    assert [path.name for path in tmp_path.glob("*/part_*")] == [] and len(kept(tmp_path)) == 3


def test_nothing_is_made_where_the_store_was(tmp_path):
    """What was mounted there and comes back would hide it, and a folder that was moved away could not come back."""
    store = tmp_path / "store"
    keeper = keeper_of(store, "a", keep=1)
    assert save(keeper, *packed(1.0)) is None
    for gone in (store, store / "a"):
        gone.rename(tmp_path / "away")
        assert save(keeper, *packed(2.0)).endswith("No such file or directory")
        assert not gone.exists()
        (tmp_path / "away").rename(gone)
        assert kept(store) == [1.0]
    assert save(keeper, *packed(3.0)) is None and kept(store) == [3.0]


@pytest.mark.parametrize(
    ("keep", "scores", "damaged", "left"),
    [
        (1, [None], [], [0]),
        (1, [0.9, 0.1], [], [0, 1]),  # the best, and the last
        (2, [None, None], [], [1]),
        (2, [0.9, 0.1], [], [0, 1]),
        (3, [None, None, None], [], [1, 2]),
        (3, [None, None, None], [2], [1, 2]),  # the one before the last is whole
        (3, [None, None, None], [1], [1, 2]),
        (3, [None, None, None], [1, 2], [0, 1, 2]),
        (3, [None, None, None], [0, 1, 2], [0, 1, 2]),
    ],
)
def test_a_full_store_forgets_what_the_next_would_take_the_place_of(tmp_path, keep, scores, damaged, left):
    """And nothing that is newer than the last one that is sure to be whole: were that lost too, all would be."""
    keeper = keeper_of(tmp_path, "a", keep=9)
    for number, score in enumerate(scores):
        save(keeper, *packed(float(number), steps=number, score=score, metric=None if score is None else "max a"))
    for number, (path, _) in enumerate(shelf.whole(tmp_path)):
        if number in damaged:
            data = (path / shelf.STATE).read_bytes()
            (path / shelf.STATE).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr("os.fsync", lambda *_: (_ for _ in ()).throw(OSError(122, "Disk quota exceeded")))
        assert save(keeper_of(tmp_path, "a", keep), *packed(9.0, steps=9)) is not None
    assert kept(tmp_path) == left


def test_a_damaged_one_neither_counts_nor_stays(tmp_path):
    keeper = keeper_of(tmp_path, "a", keep=2)
    save(keeper, *packed(1.0))
    damaged = tmp_path / "a" / "checkpoint_7"
    damaged.mkdir()
    (damaged / "checkpoint.json").write_text("{")
    save(keeper, *packed(2.0))
    assert kept(tmp_path) == [1.0, 2.0]
    assert not damaged.exists()
