"""A checkpoint: model, optimizer, scheduler, random numbers, and the ledger of consumed sample ids.

Two files: `state.pt`, tensors and plain values that load without executing code, and `checkpoint.json`, which says
what it is and carries the digest that a whole `state.pt` must have.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raytrain.errors import CheckpointError

VERSION = 1


@dataclass(frozen=True)
class Facts:
    """What `checkpoint.json` says.

    Attributes:
        epoch: the epoch that a resumed run goes on with, 0-based.
        steps: batches a rank so far, over the whole run.
        updates: optimizer steps, likewise.
        samples: of all ranks, over the whole run.
        consumed_in_epoch: ids in the ledger.
        fingerprint: of the training manifest that the ids number.
        seed: of the order of the epochs.
        history: one entry an epoch so far.
    """

    epoch: int
    steps: int
    updates: int
    samples: int
    consumed_in_epoch: int
    fingerprint: str
    seed: int
    world_size: int
    history: list[dict[str, Any]] = field(default_factory=list)
    version: int = VERSION
    sha256: str = ""


def pack(facts: Facts, state: dict[str, Any]) -> tuple[str, np.ndarray]:
    """The contents of the two files: text, and bytes as an array of uint8."""
    file = io.BytesIO()
    torch.save(state, file)
    data = np.frombuffer(file.getbuffer(), np.uint8)
    digest = hashlib.sha256(data).hexdigest()
    return json.dumps({**asdict(facts), "sha256": digest}, indent=1), data


def unpack(text: str, data: np.ndarray) -> tuple[Facts, dict[str, Any]]:
    """What `pack` was given.

    Raises:
        CheckpointError: it was damaged since.
    """
    facts = Facts(**json.loads(text))
    if hashlib.sha256(data).hexdigest() != facts.sha256:
        raise CheckpointError("the checkpoint was damaged between the host that keeps it and this one")
    return facts, _load_safely(io.BytesIO(data), "cpu")


def save(folder: Path, facts: Facts, state: dict[str, Any]) -> None:
    """Write a checkpoint into an existing empty folder."""
    text, data = pack(facts, state)
    (folder / "state.pt").write_bytes(data)
    (folder / "checkpoint.json").write_text(text)


def load(folder: Path, map_location: Any = "cpu") -> tuple[Facts, dict[str, Any]]:
    """Read a checkpoint back.

    Raises:
        CheckpointError: it is not one, is cut off or damaged, or was written by another version.
    """
    facts = read_facts(folder)
    _check_digest(folder, facts)
    return facts, _load_safely(folder / "state.pt", map_location)


def _check_digest(folder: Path, facts: Facts) -> None:
    path = folder / "state.pt"
    try:
        with path.open("rb") as file:
            whole = hashlib.file_digest(file, "sha256").hexdigest() == facts.sha256
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    if not whole:
        raise CheckpointError(f"{path} is cut off or damaged")


def _load_safely(source: Any, map_location: Any) -> dict[str, Any]:
    try:
        return torch.load(source, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        first = str(error).splitlines()[0]
        raise CheckpointError(f"{source} holds more than tensors and plain values: {first}") from None


def check_objects(objects: Sequence[Any]) -> None:
    """Refuse, at the first checkpoint rather than at the resume, state that would not load without executing code.

    Raises:
        CheckpointError: naming the object.
    """
    for thing in objects:
        file = io.BytesIO()
        torch.save(thing.state_dict(), file)
        file.seek(0)
        try:
            torch.load(file, weights_only=True)
        except pickle.UnpicklingError:
            raise CheckpointError(
                f"the state of {type(thing).__name__} holds more than tensors and plain values, and could not be "
                "loaded again without executing code; make its state_dict return tensors, numbers, text and lists"
            ) from None


def read_facts(folder: Path) -> Facts:
    """The small file alone.

    Raises:
        CheckpointError: not there, not ours, or of another version.
    """
    path = folder / "checkpoint.json"
    try:
        facts = Facts(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise CheckpointError(f"{folder} is not a raytrain checkpoint, or was cut off while it was written") from None
    if facts.version != VERSION:
        raise CheckpointError(f"{folder} has checkpoint version {facts.version}; this raytrain reads {VERSION}")
    return facts


def latest(folder: Path) -> Path | None:
    """The furthest whole checkpoint below `folder`, or None. Damaged ones are passed over."""
    found = []
    for path in folder.glob("*/checkpoint_*/checkpoint.json"):
        try:
            facts = read_facts(path.parent)
        except CheckpointError:
            continue
        found.append((facts.steps, facts.epoch, path.stat().st_mtime, path.parent))
    for *_, candidate in sorted(found, reverse=True):
        try:
            _check_digest(candidate, read_facts(candidate))
        except CheckpointError:
            continue
        return candidate
    return None


def write_model(folder: Path, path: Path) -> None:
    """The model of a checkpoint alone, as `torch.load(path, weights_only=True)` and `load_state_dict` take it.

    Of a loop that prepared several modules it is the list of their states, in that order.

    Raises:
        CheckpointError: the checkpoint is cut off or damaged.
    """
    _, state = load(folder)
    states = [state["objects"][index] for index in state["modules"]]
    torch.save(states[0] if len(states) == 1 else states, path)


def rng_state() -> dict[str, Any]:
    """The state of every random generator of this process that a training loop may draw from."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state = {
        "torch": torch.get_rng_state(),
        "python": [version, list(numbers), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what `rng_state` returned."""
    torch.set_rng_state(state["torch"].cpu())
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
