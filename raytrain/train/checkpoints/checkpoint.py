"""A checkpoint: model, optimizer, scheduler, random numbers, and the ledger of consumed samples.

What is in its files, and how it gets into them and out again without executing code; `shelf` has how they lie on disk.
"""

from __future__ import annotations

import io
import pickle
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raytrain.errors import CheckpointError, one_line
from raytrain.train.checkpoints.host_copy import mapped
from raytrain.train.checkpoints.shelf import (
    FACTS,
    STATE,
    Facts,
    check_digests,
    describe,
    digest,
    object_file,
    read_facts,
)
from raytrain.train.learning.averaged import WEIGHTS
from raytrain.train.modules import is_distributed

LEDGER = ("consumed", "owed")


def write(state: Any, file: Any) -> None:
    """The contents of a file, to what has a `write`: piece by piece, and without a copy."""
    torch.save(state, file)


def pack(state: Any) -> np.ndarray:
    """The contents of a file, uint8."""
    file = io.BytesIO()
    write(state, file)
    return np.frombuffer(file.getbuffer(), np.uint8)


def unpack(facts: Facts, name: str, data: np.ndarray) -> Any:
    """What `pack` was given. The tensors are the only copy: nothing else of `data` is copied.

    Raises:
        CheckpointError: it was damaged since.
    """
    if digest(data) != facts.sha256.get(name):
        raise CheckpointError("the checkpoint was damaged between the host that keeps it and this one")
    return _load_safely(_View(data), name)


def check(name: str, state: Any) -> None:
    """Refuse, at the first checkpoint rather than at the resume, state that would not load without executing code.

    Raises:
        CheckpointError: naming the object.
    """
    try:
        hollow = mapped(state, lambda tensor: tensor.new_empty(0), lambda other: other)
        torch.load(_View(pack(hollow)), weights_only=True)
    except (pickle.PickleError, AttributeError, TypeError):
        raise CheckpointError(
            f"the state of {name} holds more than tensors and plain values, and could not be loaded again without "
            "executing code; make its state_dict return tensors, numbers, text and lists"
        ) from None


class _View(io.RawIOBase):
    """A file over memory that others own."""

    def __init__(self, data: np.ndarray):
        self._data, self._at = memoryview(data).cast("B"), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._data)}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        part = self._data[self._at : self._at + len(buffer)]
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)


def save(folder: Path, facts: Facts, state: dict[str, Any], objects: Sequence[Any] = ()) -> None:
    """Write a checkpoint into an existing empty folder; `objects` are state_dicts."""
    files = {STATE: pack(state)} | {object_file(number): pack(each) for number, each in enumerate(objects)}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / FACTS).write_text(describe(facts, {name: digest(data) for name, data in files.items()}))


def load(folder: Path) -> tuple[Facts, dict[str, Any]]:
    """Read a checkpoint back: what it says, and its state without the objects.

    Raises:
        CheckpointError: it is not one, is cut off or damaged, or was written by another version.
    """
    facts = read_facts(folder)
    check_digests(folder, facts)
    return facts, load_state(folder)


def load_state(folder: Path) -> dict[str, Any]:
    """The state of a checkpoint that was looked through already (`shelf.latest`).

    Raises:
        CheckpointError: it holds more than tensors and plain values.
    """
    return _checked_state(_load_safely(folder / STATE, str(folder / STATE)), str(folder / STATE))


def load_object(folder: Path, number: int) -> Any:
    """The state_dict of one of the prepared objects.

    Raises:
        CheckpointError: it holds more than tensors and plain values.
    """
    path = folder / object_file(number)
    return _load_safely(path, str(path))


def _load_safely(source: Any, name: str) -> Any:
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        first = str(error).splitlines()[0]
        raise CheckpointError(f"{name} holds more than tensors and plain values: {first}") from None
    except Exception as error:  # noqa: BLE001 - of a damaged file torch raises anything
        raise CheckpointError(f"{name} is damaged, or no file of torch.save: {one_line(error, 200)}") from None


def _checked_state(state: Any, name: str) -> dict[str, Any]:
    """
    Raises:
        CheckpointError: it is none of ours.
    """
    nothing = torch.zeros(0, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64)
    ours = {**dict(zip(LEDGER, nothing, strict=True)), "modules": [], "averaged": [], "rng": []}
    whole = {**ours, **state} if isinstance(state, dict) else {}
    ledger, rng, numbers = map(whole.get, LEDGER), whole.get("rng"), [whole.get("modules"), whole.get("averaged")]
    has_ledger = all(isinstance(each, torch.Tensor) and each.dim() == 1 for each in ledger)
    if (
        not has_ledger
        or not isinstance(rng, list)
        or not all(isinstance(n, list) and {*map(type, n)} <= {int} for n in numbers)
    ):
        raise CheckpointError(f"{name} is not the state of a raytrain checkpoint")
    return whole


def restore(objects: Sequence[Any], readers: list[Callable[[], Any]], rank: int, world_size: int) -> None:
    """Give every object its state: one after the other, so that no two copies of everything are ever held, and modules
    that have DDP on the first rank alone, from which the others get their parameters and buffers.

    Args:
        readers: one for each object, in order; emptied, so that what they hold on to can go.

    Raises:
        CheckpointError: there is another number of objects, or a state does not fit.
    """
    if len(readers) != len(objects):
        raise CheckpointError(f"the checkpoint holds {len(readers)} objects, the loop prepares {len(objects)}")
    for thing, read in zip(objects, readers, strict=True):
        if rank > 0 and isinstance(thing, torch.nn.Module) and is_distributed(thing, world_size):
            continue
        try:
            thing.load_state_dict(read())
        except CheckpointError:
            raise
        except Exception as error:  # noqa: BLE001 - of a state of another form an object raises anything
            name = type(thing).__name__
            raise CheckpointError(f"the checkpoint does not fit this {name}: {one_line(error, 300)}") from None
    readers.clear()


def model_states(folder: Path) -> list[dict[str, torch.Tensor]]:
    """Of the modules that a loop prepared, in that order; where an average of the weights was kept (`training.ema`), of
    that.

    Raises:
        CheckpointError: it holds more than tensors and plain values.
    """
    state = load_state(folder)
    averaged = [load_object(folder, number)[WEIGHTS] for number in state["averaged"]]
    return averaged or [load_object(folder, number) for number in state["modules"]]


def write_model(folder: Path, path: Path) -> None:
    """The model of a checkpoint that was looked through already (`shelf.latest`), as `torch.load(path,
    weights_only=True)` and `load_state_dict` take it; of several `model_states` their list.

    Raises:
        CheckpointError: it holds more than tensors and plain values.
    """
    states = model_states(folder)
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
    """Put back what `rng_state` returned.

    Raises:
        CheckpointError: it is something else.
    """
    try:
        torch.set_rng_state(state["torch"].cpu())
        version, numbers, gauss = state["python"]
        random.setstate((version, tuple(numbers), gauss))
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"].cpu())
    except Exception as error:  # noqa: BLE001 - each of the three raises its own
        raise CheckpointError(f"the checkpoint's random numbers are of another form: {one_line(error, 200)}") from None
