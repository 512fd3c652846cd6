"""Checkpoints as they lie on disk, without torch.

A folder of files that load without executing code: `object_0.pt` and so on, the `state_dict` of each object that the
loop prepared, in that order; `state.pt`, random numbers and the ledger; and `checkpoint.json`, which says what it is
and carries the digest that each of the others must have.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter

from raytrain.errors import CheckpointError

VERSION = 4
FACTS, STATE = "checkpoint.json", "state.pt"
CUT_OFF = "is not a raytrain checkpoint, or was cut off while it was written"
Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class Facts:
    """What `checkpoint.json` says.

    Attributes:
        epoch: the epoch that a resumed run goes on with, 0-based.
        steps: batches a rank so far, over the whole run.
        updates: optimizer steps, likewise.
        samples: of all ranks, over the whole run.
        consumed_in_epoch: samples of `epoch` in the ledger.
        fingerprint: of the training manifest that the ids number.
        seed: of the order of the epochs.
        history: one entry an epoch so far.
        counts: of samples and steps that went another way than usual, over the whole run (see TrainContext.counts).
        loss_sum, loss_samples: of all ranks in the unfinished epoch; their quotient is its mean loss so far.
        classes: names by number, of the training data.
        metric, score: what the best checkpoint is chosen by, more is better; None where nothing was measured.
        sha256: hexadecimal, by file name.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    epoch: Count
    steps: Count
    updates: Count
    samples: Count
    consumed_in_epoch: Count
    fingerprint: str
    seed: int
    world_size: Count
    history: list[dict[str, Any]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    loss_sum: float = 0.0
    loss_samples: int = 0
    classes: list[str] = field(default_factory=list)
    metric: str | None = None
    score: float | None = None
    version: int = VERSION
    sha256: dict[str, str] = field(default_factory=dict)


def object_file(number: int) -> str:
    """The name of the file of one of the prepared objects."""
    return f"object_{number}.pt"


def digest(data: np.ndarray) -> str:
    """What `Facts.sha256` holds of a file."""
    return hashlib.sha256(data).hexdigest()


def describe(facts: Facts, digests: Mapping[str, str]) -> str:
    """The contents of `checkpoint.json`."""
    return json.dumps(asdict(replace(facts, sha256=dict(digests))), indent=1)


def read_facts(folder: Path) -> Facts:
    """The small file alone.

    Raises:
        CheckpointError: not there, not ours, or of another version.
    """
    path = folder / FACTS
    try:
        return parse_facts(path.read_text(encoding="utf-8"), str(folder))
    except (OSError, UnicodeDecodeError):
        raise CheckpointError(f"{folder} {CUT_OFF}") from None


def parse_facts(text: str, told: str) -> Facts:
    """What `describe` wrote; `told` is where it came from.

    Raises:
        CheckpointError: not ours, or of another version.
    """
    try:
        tree = json.loads(text)
        version = tree["version"]
        facts = TypeAdapter(Facts).validate_python(tree) if version == VERSION else None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise CheckpointError(f"{told} {CUT_OFF}") from None
    if facts is None:
        raise CheckpointError(f"{told} has checkpoint version {version!r}; this raytrain reads {VERSION}")
    if {*facts.sha256} != {STATE, *map(object_file, range(len(facts.sha256) - 1))}:
        raise CheckpointError(f"{told} names other files than a checkpoint has")
    return facts


def whole(folder: Path) -> list[tuple[Path, Facts]]:
    """The checkpoints below a run's folder of them, in the order of writing; their files are not looked into."""
    found = []
    for path in folder.glob(f"*/checkpoint_*/{FACTS}"):
        if number_of(path.parent) < 0:
            continue
        try:
            found.append((path.parent, read_facts(path.parent)))
        except CheckpointError:
            continue
    return sorted(found, key=lambda each: number_of(each[0]))


def number_of(folder: Path) -> int:
    """By which checkpoints are in the order of writing; -1 for what is none of ours."""
    text = folder.name.removeprefix("checkpoint_")
    return int(text) if text.isdecimal() else -1


def by_score(found: list[tuple[Path, Facts]]) -> list[tuple[Path, Facts]]:
    """Those with a score of the metric that was measured last, the best at the end, the earliest of equals."""
    scored = [each for each in found if each[1].score is not None]
    alike = [each for each in scored if each[1].metric == scored[-1][1].metric]
    return sorted(alike, key=lambda each: (each[1].score, -number_of(each[0])))


def latest(folder: Path) -> Path | None:
    """The furthest whole checkpoint below `folder`, or None. Damaged ones are passed over."""
    candidates = sorted(whole(folder), key=lambda each: (each[1].steps, each[1].epoch, number_of(each[0])))
    return _last_undamaged(candidates)


def best(folder: Path) -> Path | None:
    """The whole checkpoint below `folder` with the best score, the earliest of equals; None where none has a score."""
    return _last_undamaged(by_score(whole(folder)))


def _last_undamaged(candidates: list[tuple[Path, Facts]]) -> Path | None:
    for path, facts in reversed(candidates):
        try:
            check_digests(path, facts)
        except CheckpointError:
            continue
        return path
    return None


_DIGESTS: dict[tuple[str, int, int, int], str] = {}  # of files as they were: by path, number, size and time


def _digest_of(path: Path) -> str:
    """A file is read once by a process, unless it has changed since."""
    about = path.stat()
    key = str(path), about.st_ino, about.st_size, about.st_mtime_ns
    if key not in _DIGESTS:
        with path.open("rb") as file:
            _DIGESTS[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _DIGESTS[key]


def check_digests(folder: Path, facts: Facts) -> None:
    """Read every file through that has not been read before.

    Raises:
        CheckpointError: one is gone, cut off or damaged.
    """
    for name, expected in facts.sha256.items():
        path = folder / name
        try:
            whole = _digest_of(path) == expected
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
        if not whole:
            raise CheckpointError(f"{path} is cut off or damaged")
