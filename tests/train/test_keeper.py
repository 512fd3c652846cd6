"""The keeper of checkpoints, without Ray."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from raytrain.train.checkpoints import checkpoint, shelf
from raytrain.train.checkpoints.keeper import Keeper

FACTS = shelf.Facts(0, 3, 3, 12, 0, "f", 0, 1)


def packed(value=1.0, **changes):
    """What `Keeper.save` takes."""
    files = {shelf.STATE: checkpoint.pack({}), shelf.object_file(0): checkpoint.pack({"w": torch.full((2,), value)})}
    digests = {name: shelf.digest(data) for name, data in files.items()}
    return shelf.describe(replace(FACTS, **changes), digests), list(files), *files.values()


def kept(folder) -> list[float]:
    """The weights of every checkpoint below, in the order of writing."""
    return [checkpoint.load_object(path, 0)["w"][0].item() for path, _ in shelf.whole(folder)]


def test_what_is_kept_is_what_was_packed(tmp_path):
    keeper = Keeper(str(tmp_path), "attempt", keep=2)
    assert keeper.latest() is None
    assert keeper.save(*packed(4.0)) is None
    found = shelf.latest(tmp_path)
    assert str(found) == keeper.latest()
    facts, _ = checkpoint.load(found)
    assert facts.steps == 3
    assert checkpoint.load_object(found, 0)["w"].tolist() == [4.0, 4.0]
    assert sorted(path.name for path in found.iterdir()) == ["checkpoint.json", "object_0.pt", "state.pt"]


def test_only_the_last_few_stay_and_the_newest_counts(tmp_path):
    keeper = Keeper(str(tmp_path), "attempt", keep=2)
    for value in (1.0, 2.0, 3.0):
        keeper.save(*packed(value))
    assert kept(tmp_path) == [2.0, 3.0]
    assert checkpoint.load_object(Path(keeper.latest()), 0)["w"][0] == 3.0
    assert Keeper(str(tmp_path), "attempt", keep=2).latest() == keeper.latest(), (
        "also after the actor was started again"
    )


def test_the_last_few_are_those_of_all_attempts(tmp_path):
    for number in range(6):
        keeper = Keeper(str(tmp_path), f"attempt{number}", keep=2)
        assert keeper.latest() is None, "of this attempt"
        for value in (0.0, 0.5):
            keeper.save(*packed(number + value))
        assert kept(tmp_path) == [number, number + 0.5]
    keeper = Keeper(str(tmp_path), "last", keep=3)
    keeper.save(*packed(9.0))
    assert kept(tmp_path) == [5.0, 5.5, 9.0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attempt5", "last"], "and no empty folder"


def test_what_is_not_the_keepers_own_stays(tmp_path):
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "model.pt").write_text("mine")
    copy = tmp_path / "old" / "checkpoint_5.bak"
    copy.mkdir(parents=True)
    keeper = Keeper(str(tmp_path), "a", keep=1)
    for value in (1.0, 2.0):
        assert keeper.save(*packed(value)) is None
    assert kept(tmp_path) == [2.0]
    assert (tmp_path / "exported" / "model.pt").exists() and copy.is_dir()


def test_scores_of_another_metric_are_not_compared(tmp_path):
    keeper = Keeper(str(tmp_path), "a", keep=1)
    for value, metric, score in ((1.0, "max a", 0.5), (2.0, "min b", -0.4), (3.0, "min b", -0.1), (4.0, "min b", -0.2)):
        keeper.save(*packed(value, metric=metric, score=score))
    assert kept(tmp_path) == [3.0, 4.0]


def test_the_best_stays_beside_them(tmp_path):
    keeper = Keeper(str(tmp_path), "a", keep=1)
    for value, score in ((1.0, 0.2), (2.0, 0.8), (3.0, None), (4.0, 0.8), (5.0, 0.3)):
        keeper.save(*packed(value, score=score))
    assert kept(tmp_path) == [2.0, 5.0]
    other = Keeper(str(tmp_path), "b", keep=1)
    other.save(*packed(6.0, score=0.9))
    assert kept(tmp_path) == [6.0]


def test_a_clock_that_was_set_back_does_not_make_the_new_one_the_oldest(tmp_path, monkeypatch):
    Keeper(str(tmp_path), "a", keep=1).save(*packed(1.0))
    monkeypatch.setattr("time.time_ns", lambda: 5)
    Keeper(str(tmp_path), "b", keep=1).save(*packed(2.0))
    assert kept(tmp_path) == [2.0]


def test_everything_is_on_disk_before_an_older_one_goes(tmp_path, monkeypatch):
    """Files, their folder, and the folder that they were moved in: each synchronised, in this order."""
    keeper = Keeper(str(tmp_path), "a", keep=1)
    keeper.save(*packed(1.0))
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
    assert keeper.save(*packed(2.0)) is None
    assert order == ["state.pt", "object_0.pt", "checkpoint.json", "part_", "rename", "a", tmp_path.name]
    assert not older.exists()


def test_what_cannot_be_written_is_said_and_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    problem = Keeper(str(tmp_path / "file"), "a", keep=1).save(*packed())
    assert problem.startswith("cannot write a checkpoint into")
    full = Keeper(str(tmp_path), "a", keep=1)
    full.save(*packed(1.0))
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        assert full.save(*packed(2.0)).endswith("No space left on device")
    assert kept(tmp_path) == [1.0], "and the one before stays"
    assert len(list((tmp_path / "a").iterdir())) == 1


def test_a_damaged_one_neither_counts_nor_stays(tmp_path):
    keeper = Keeper(str(tmp_path), "a", keep=2)
    keeper.save(*packed(1.0))
    damaged = tmp_path / "a" / "checkpoint_7"
    damaged.mkdir()
    (damaged / "checkpoint.json").write_text("{")
    keeper.save(*packed(2.0))
    assert kept(tmp_path) == [1.0, 2.0]
    assert not damaged.exists()
