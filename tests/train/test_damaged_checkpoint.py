"""A checkpoint of another form: passed over or refused in one line, whatever torch raises of it."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from raytrain.errors import CheckpointError
from raytrain.train.checkpoints import checkpoint, shelf
from raytrain.train.learning.state import read_state

FACTS = shelf.Facts(0, 3, 3, 12, 0, "f", 0, 1, metric="max accuracy", score=0.5)
LINEAR = torch.nn.Linear(2, 2)
STATE = {"consumed": torch.zeros(4, dtype=torch.bool), "modules": [0], "rng": [checkpoint.rng_state()]}


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "a" / "checkpoint_1"
    place.mkdir(parents=True)
    checkpoint.save(place, FACTS, STATE, [LINEAR.state_dict()])
    return place


@pytest.mark.parametrize(
    "change",
    [
        {"steps": ""},
        {"steps": -1},
        {"steps": None},
        {"epoch": 1.5},
        {"score": "best"},
        {"sha256": None},
        {"sha256": []},
        {"sha256": {}},
        {"sha256": {"state.pt": "0", "../../secret": "0"}},
        {"sha256": {"state.pt": "0", "object_7.pt": "0"}},
        {"sha256": {"object_0.pt": "0"}},
        {"history": 3},
        {"more": 1},
    ],
)
def test_facts_of_another_form_are_passed_over(folder, change):
    """One of them that could be compared with no other would be in the way of every resume."""
    assert shelf.latest(folder.parent.parent) == folder
    other = folder.with_name("checkpoint_2")
    other.mkdir()
    (other / "checkpoint.json").write_text(json.dumps({**asdict(shelf.read_facts(folder)), **change}))
    with pytest.raises(CheckpointError) as caught:
        shelf.read_facts(other)
    assert str(other) in str(caught.value)
    if isinstance(change.get("sha256"), dict):
        assert str(caught.value) == f"{other} names other files than a checkpoint has"
    assert shelf.latest(folder.parent.parent) == folder == shelf.best(folder.parent.parent)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "3", "{}", "", "\ud800"])
def test_facts_that_are_none(folder, text):
    (folder / "checkpoint.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(CheckpointError, match="is not a raytrain checkpoint, or was cut off while it was written"):
        shelf.read_facts(folder)


@pytest.mark.parametrize(
    "damage", [lambda d: d[:100], lambda d: b"", lambda d: d[: len(d) // 2], lambda d: b"\x80\x02" + d]
)
def test_files_that_torch_cannot_load(folder, damage, tmp_path):
    for name, load in (("state.pt", checkpoint.load_state), ("object_0.pt", lambda f: checkpoint.load_object(f, 0))):
        data = damage((folder / name).read_bytes())
        (folder / name).write_bytes(data)
        with pytest.raises(CheckpointError, match=f"{folder}/{name} (is damaged|holds more than)"):
            load(folder)
        facts = shelf.Facts(**{**asdict(FACTS), "sha256": {name: shelf.digest(np.frombuffer(data, np.uint8))}})
        with pytest.raises(CheckpointError):
            checkpoint.unpack(facts, name, np.frombuffer(data, np.uint8))
        with pytest.raises(CheckpointError, match="^w.pt "):
            read_state(data, "w.pt")


@pytest.mark.parametrize(
    "state",
    [
        3,
        [],
        {"modules": 3},
        {"modules": ["../x"]},
        {"consumed": 3},
        {"consumed": torch.zeros(2, 2)},
        {"consumed": None},
        {"owed": 3},
        {"rng": {}},
    ],
)
def test_a_state_of_another_form(folder, state):
    (folder / "state.pt").write_bytes(checkpoint.pack(state).tobytes())
    with pytest.raises(CheckpointError, match=r"state\.pt is not the state of a raytrain checkpoint"):
        checkpoint.load_state(folder)


@pytest.mark.parametrize(
    "state", [{}, {"torch": 3}, {"torch": torch.get_rng_state(), "python": 3}, {"torch": torch.zeros(3)}]
)
def test_random_numbers_of_another_form(state):
    with pytest.raises(CheckpointError, match="the checkpoint's random numbers are of another form"):
        checkpoint.set_rng_state(state)


@pytest.mark.parametrize("state", [3, {"weight": 3}, {"param_groups": 3, "state": {}}, {}, None])
def test_the_state_of_an_object_of_another_form(state):
    for thing in (torch.nn.Linear(2, 2), torch.optim.AdamW(torch.nn.Linear(2, 2).parameters())):
        with pytest.raises(CheckpointError, match="the checkpoint does not fit this (Linear|AdamW): "):
            checkpoint.restore([thing], [lambda: state], 0, 1)


def test_a_safetensors_file_that_is_none():
    for data in (b"", b"\xff" * 8, (1 << 60).to_bytes(8, "little") + b"{}", b"\2\0\0\0\0\0\0\0[]"):
        with pytest.raises(CheckpointError, match=r"^cannot read w\.safetensors: "):
            read_state(data, "w.safetensors")
