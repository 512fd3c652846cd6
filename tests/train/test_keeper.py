"""The keeper of checkpoints, without Ray."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raytrain.errors import CheckpointError
from raytrain.train import checkpoint
from raytrain.train.keeper import Keeper

FACTS = checkpoint.Facts(0, 3, 3, 12, 0, "f", 0, 1)


def packed(value=1.0):
    return checkpoint.pack(FACTS, {"objects": [{"w": torch.full((2,), value)}]})


def test_what_is_kept_is_what_was_packed(tmp_path):
    keeper = Keeper(str(tmp_path / "attempt"), keep=2)
    assert keeper.latest() is None
    assert keeper.save(*packed(4.0)) is None
    found = checkpoint.latest(tmp_path)
    assert str(found) == keeper.latest()
    facts, state = checkpoint.load(found)
    assert facts.steps == 3
    assert state["objects"][0]["w"].tolist() == [4.0, 4.0]


def test_only_the_last_few_stay_and_the_newest_counts(tmp_path):
    keeper = Keeper(str(tmp_path), keep=2)
    for value in (1.0, 2.0, 3.0):
        keeper.save(*packed(value))
    assert len(list(tmp_path.iterdir())) == 2
    assert checkpoint.load(type(tmp_path)(keeper.latest()))[1]["objects"][0]["w"][0] == 3.0
    assert Keeper(str(tmp_path), keep=2).latest() == keeper.latest(), "also after the actor was started again"


def test_what_cannot_be_written_is_said_and_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    problem = Keeper(str(tmp_path / "file"), keep=1).save(*packed())
    assert problem.startswith("cannot write a checkpoint into")
    full = Keeper(str(tmp_path / "a"), keep=1)
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        assert full.save(*packed()).endswith("No space left on device")
    assert list((tmp_path / "a").iterdir()) == []


def test_what_was_damaged_on_the_way_is_refused():
    text, data = packed()
    assert checkpoint.unpack(text, data)[0].steps == 3
    damaged = np.array(data)
    damaged[10] ^= 1
    with pytest.raises(CheckpointError, match="the checkpoint was damaged between the host"):
        checkpoint.unpack(text, damaged)
