"""What a training context is given by the others: a stream, a checkpoint to go on from, a place for new ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from raytrain.record.status import RankProgress
from raytrain.train.checkpoints.shelf import Facts

COUNTS = ("dropped", "repeated", "carried", "filtered", "stand_ins", "skipped_steps", "skipped_samples")


class Stream(Protocol):
    """What the training room needs of the data room (`raytrain.device.loader.RankIngest`)."""

    plan: Any
    meter: Any
    progress: RankProgress | None
    stopped: bool

    def segment_of(self, epoch: int, split: str) -> int | None: ...

    def num_batches(self, number: int) -> int: ...

    def segment(self, number: int) -> Iterator[Any]: ...


class StopTraining(BaseException):
    """Ends the loop from within when the run has been asked to stop; not an error, and not for users to catch."""


class Leaving(Exception):
    """On a rank, after the checkpoint: a host of the ranks is about to go, and all begin anew; no failure."""


@dataclass(frozen=True)
class Restored:
    """A checkpoint that the run goes on from.

    Attributes:
        state: random numbers and the ledger.
        objects: each reads the state_dict of one of the prepared objects; emptied once they have been restored.
    """

    facts: Facts
    state: dict[str, Any]
    objects: list[Callable[[], Any]] = field(default_factory=list)

    @property
    def ledger(self) -> tuple[np.ndarray, np.ndarray]:
        """What the epoch had consumed, a bit an id, and the ids that it was owed (see Ledger)."""
        return self.state["consumed"].numpy(), self.state["owed"].numpy()


class Keep(Protocol):
    """Writes checkpoints, beside the training (`raytrain.train.checkpoints.writer.Writer`). On the first rank alone
    are there any."""

    @property
    def busy(self) -> bool: ...

    def late(self, every_steps: int) -> None: ...

    def check(self) -> None: ...

    def __call__(self, facts: Facts, state: dict[str, Any], objects: list[Any]) -> None: ...


class Awaiting(NamedTuple):
    """What is kept of a batch until its gradients are applied; see DeviceBatch."""

    ids: np.ndarray
    parts: np.ndarray
    carried: np.ndarray
    repeated: int
    left_out: np.ndarray
    filtered: int

    @classmethod
    def of(cls, batch: Any) -> Awaiting:
        parts = batch.parts if len(batch.parts) else np.zeros_like(batch.ids)
        return cls(batch.ids, parts, batch.carried, batch.repeated, batch.left_out, batch.filtered)
