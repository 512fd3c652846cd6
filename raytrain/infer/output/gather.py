"""What has come of the samples so far, until a shard is complete and can be written: one row or one error for each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from raytrain.errors import PredictionError, one_line
from raytrain.infer.blocks import Block, Shard
from raytrain.infer.desk import Piece, Work
from raytrain.record.status import Failure


@dataclass
class _OfWork:
    """
    Attributes:
        kept: `id` and the fields that are written beside the predictions.
        rows: predictions by size class.
        failures: by size class of those that were found where they arrived; those of the task under -1.
    """

    kept: pa.Table | None = None
    rows: dict[int, pa.Table] = field(default_factory=dict)
    failures: dict[int, list[Failure]] = field(default_factory=dict)


@dataclass(frozen=True)
class Gathered:
    """A shard to be written.

    Attributes:
        rows: by id.
    """

    shard: int
    rows: pa.Table
    failures: list[Failure]


class Gathering:
    """Whatever was done twice, because something died, counts once."""

    def __init__(self, blocks: Sequence[Block], shards: Sequence[Shard]):
        self._blocks = blocks
        self._shards = {shard.number: shard for shard in shards}
        self._of: dict[int, dict[Work, _OfWork]] = defaultdict(dict)  # by shard
        self._empty: pa.Table | None = None  # what rows look like

    def prepared(self, work: Work, kept: pa.Table, failures: list[Failure]) -> None:
        """By a task."""
        of = self._of_work(work)
        of.kept, of.failures[-1] = kept, failures

    def predicted(self, piece: Piece, rows: pa.Table | None, failures: list[Failure]) -> None:
        """By a stream; None where none of its samples could be decoded there."""
        of = self._of_work(piece.work)
        of.failures[piece.size] = failures
        if rows is not None:
            of.rows[piece.size] = rows

    def given_up(self, work: Work, failure: Failure) -> None:
        """A sample by itself."""
        self._of[self._blocks[work.block].shard][work] = _OfWork(failures={-1: [failure]})

    def forget(self, work: Work) -> None:
        """What was known of a block that is taken apart."""
        self._of[self._blocks[work.block].shard].pop(work, None)

    def complete(self, shard: int) -> Gathered:
        """All of it, and nothing of it is kept.

        Raises:
            PredictionError: columns of its blocks are of different types.
        """
        parts = [part for _, part in sorted(self._of.pop(shard).items())]
        failures = [each for part in parts for found in part.failures.values() for each in found]
        tables = [rows for part in parts for rows in part.rows.values()]
        if tables:
            self._empty = tables[0].slice(0, 0)
        elif self._empty is not None:
            tables = [self._empty]
        else:
            tables = [pa.table({"id": pa.array([], pa.int64())})]
        rows = _by_id(_joined(tables))
        kept = [part.kept for part in parts if part.kept is not None]
        if kept:
            rows = _beside(rows, _by_id(_joined(kept)))
        failures.sort(key=lambda each: each.id)
        self._check(shard, rows, failures)
        return Gathered(shard, rows, failures)

    def _of_work(self, work: Work) -> _OfWork:
        return self._of[self._blocks[work.block].shard].setdefault(work, _OfWork())

    def _check(self, shard: int, rows: pa.Table, failures: Sequence[Failure]) -> None:
        whole = self._shards[shard]
        ids = np.append(rows.column("id").to_numpy(), np.array([each.id for each in failures], np.int64))
        assert np.array_equal(np.sort(ids), np.arange(whole.start, whole.stop)), f"a row for each id of shard {shard}"


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise PredictionError(
            f"a column is of one type in some blocks and of another in others: {one_line(error, 200)}; leave it out of "
            "output.fields, or make it one type in the source"
        ) from None


def _by_id(table: pa.Table) -> pa.Table:
    return table.take(pa.array(np.argsort(table.column("id").to_numpy(), kind="stable")))


def _beside(rows: pa.Table, kept: pa.Table) -> pa.Table:
    """`id`, the fields of the same ids, and the predictions."""
    at = np.searchsorted(kept.column("id").to_numpy(), rows.column("id").to_numpy())
    own = kept.take(pa.array(at)).drop_columns(["id"])
    names = [*own.column_names, *rows.column_names[1:]]
    return pa.table([rows.column("id"), *own.columns, *rows.columns[1:]], names=["id", *names])
