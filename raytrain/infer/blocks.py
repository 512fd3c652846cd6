"""Which samples go together: in shards, a file of predictions each, and in blocks, which a task prepares."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from raytrain.config.inference import Block as BlockSize


@dataclass(frozen=True)
class Shard:
    """Samples from id `start` to before `stop`, whose predictions are one file."""

    number: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Block:
    """Samples that are prepared by one task.

    Attributes:
        number: of all blocks of the run, in the order of their shards.
        ids: ascending.
    """

    number: int
    shard: int
    ids: Sequence[int] | np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def shards_of(num_samples: int, rows: int) -> tuple[Shard, ...]:
    """All samples, `rows` a shard; the last has the rest."""
    starts = range(0, num_samples, rows)
    return tuple(Shard(number, start, min(start + rows, num_samples)) for number, start in enumerate(starts))


def rows_of(size: BlockSize, sample_bytes: float, batch_size: int) -> int:
    """Samples a block: as many as fit, and whole batches of them where it holds more than one.

    Args:
        sample_bytes: of a ready sample.
    """
    most = max(min(size.rows, int(size.bytes / max(sample_bytes, 1))), 1)
    return most if most < batch_size else most // batch_size * batch_size


def blocks_of(shards: Iterable[Shard], rows: Sequence[int], classes: np.ndarray | None = None) -> tuple[Block, ...]:
    """The blocks of some shards: ids that follow each other or, where their size classes are known, ids of one class.

    Args:
        rows: samples a block, by size class; where these are not known, the fewest count.
        classes: by id, the number of its size class.
    """
    found: list[Block] = []
    for shard in shards:
        if classes is None:
            parts: list[tuple[int, Sequence[int] | np.ndarray]] = [(min(rows), range(shard.start, shard.stop))]
        else:
            own = classes[shard.start : shard.stop]
            parts = [(most, shard.start + np.flatnonzero(own == number)) for number, most in enumerate(rows)]
        for most, ids in parts:
            for first in range(0, len(ids), most):
                found.append(Block(len(found), shard.number, ids[first : first + most]))
    return tuple(found)
