"""The manifest: one row a sample, whose number is the sample's id, and a reader that turns a row into its fields.

Imported by every preprocessing worker, so it imports NumPy and pyarrow and nothing else.
"""

from __future__ import annotations

import errno
import hashlib
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.fs

from raytrain.data.order import Groups
from raytrain.data.samples.fields import Sample, Schema
from raytrain.data.sources.arrow import cell
from raytrain.data.sources.readers import reading_pool
from raytrain.errors import DataError, RaytrainError, one_line
from raytrain.record.guarantee import EXACTLY_ONCE

WAITS_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # before another try to read a sample
PASSING = (errno.EAGAIN, errno.EIO, errno.EINTR, errno.ETIMEDOUT, errno.ESTALE, errno.ECONNRESET, errno.EMFILE)


class Reader(Protocol):
    """Turns a row of the manifest into the fields that do not stand in it.

    Attributes:
        remote: its file system is elsewhere, and several threads may read at once.
    """

    @property
    def remote(self) -> bool: ...

    def read(self, rows: pa.Table, index: int) -> Sample | Exception:
        """Or why this one sample is to be left out."""
        ...

    def describe(self, rows: pa.Table, index: int) -> str: ...


@dataclass(frozen=True)
class Manifest:
    """What the samples of one split are.

    Attributes:
        rows: one row a sample: what `reader` needs, and the fields that are known beforehand.
        reader: how a row becomes the other fields.
        schema: of a sample.
        known: names of the columns of `rows` that are fields.
        groups: of samples that are stored together, None when each can be read alone. A shuffle stays within a few at
            a time.
        guarantee: what holds of the samples of an epoch, for the record.
    """

    rows: pa.Table
    reader: Reader
    schema: Schema
    known: tuple[str, ...] = ()
    groups: Groups | None = None
    guarantee: str = EXACTLY_ONCE

    def __getstate__(self) -> dict[str, Any]:
        """Without what has been worked out."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @property
    def num_samples(self) -> int:
        return int(self.rows.num_rows)

    @cached_property
    def _known(self) -> dict[str, np.ndarray | pa.ChunkedArray]:
        """By field; numbers as NumPy has them, of which one is quick to get."""
        return {name: _column(self.rows.column(name)) for name in self.known}

    def values(self, name: str) -> np.ndarray | None:
        """A number a sample, by id; None where they are not known beforehand."""
        found = self._known.get(name)
        return found if isinstance(found, np.ndarray) else None

    @cached_property
    def fingerprint(self) -> str:
        """A hash of what the rows say: a ledger is only valid for the manifest that it was written for."""
        digest = hashlib.sha256(str(self.num_samples).encode())
        for name in sorted(self.rows.column_names):
            digest.update(name.encode())
            for chunk in self.rows.column(name).chunks:
                whole = pa.concat_arrays([chunk]) if chunk.offset else chunk  # a slice has the memory of the rest too
                for buffer in whole.buffers():
                    if buffer is not None:
                        digest.update(buffer)
        return digest.hexdigest()[:16]

    def describe(self, index: int) -> str:
        """A file name, or the place in a shard, for messages and the record."""
        return self.reader.describe(self.rows, int(index))

    def of(self, ids: np.ndarray) -> Manifest:
        """With these samples alone, in this order."""
        if self.groups is None:
            return replace(self, rows=self.rows.take(pa.array(ids)))
        groups = np.searchsorted(self.groups.starts, ids, side="right")
        starts = np.flatnonzero(np.diff(groups, prepend=-1))
        return replace(self, rows=self.rows.take(pa.array(ids)), groups=replace(self.groups, starts=starts))

    def read_many(
        self,
        ids: Sequence[int] | np.ndarray,
        rng_of: Callable[[int], np.random.Generator] | None = None,
        begins: Callable[[int], None] = lambda index: None,
    ) -> list[Sample | Exception]:
        """The samples of `ids`, in order; a remote file system is read in parallel.

        Args:
            rng_of: the random numbers of a sample by its place, which a reader that draws is seeded from.
            begins: called with the id of each before it is read, or waited for.

        Returns:
            In place of a sample that cannot be read why that is so, after some tries where that may pass.
        """
        if self.groups is not None:  # by stored run, so that each is read once
            order = np.argsort(ids, kind="stable")
            by_place = {}
            for place in order.tolist():
                begins(ids[place])
                by_place[place] = self._read(ids[place])
            samples = [by_place[place] for place in range(len(ids))]
        elif self.reader.remote:
            samples, coming = [], reading_pool().map(self._read, ids)
            for index in ids:
                begins(index)
                samples.append(next(coming))
        else:
            samples = []
            seed = getattr(self.reader, "seed_with", None)
            for place, index in enumerate(ids):
                if seed is not None and rng_of is not None:
                    seed(rng_of(place))
                begins(index)
                samples.append(self._read(index))
        for name, column in self._known.items():
            values = column[ids] if isinstance(column, np.ndarray) else [_cell(column, int(index)) for index in ids]
            for place, value in enumerate(values):
                sample = samples[place]
                if isinstance(value, Exception):
                    samples[place] = value
                elif not isinstance(sample, Exception):
                    sample[name] = value
        return samples

    def _read(self, index: Any) -> Sample | Exception:
        waits = iter(WAITS_S)
        while True:
            try:
                return self.reader.read(self.rows, int(index))
            except (OSError, pa.ArrowInvalid) as error:
                reason = getattr(error, "strerror", None) or one_line(error)
                if isinstance(error, pa.ArrowInvalid) or not self._may_pass(error):
                    return DataError(f"cannot read it: {reason}")
                if (wait_s := next(waits, None)) is None:
                    return DataError(f"cannot read it, after {len(WAITS_S) + 1} tries in {sum(WAITS_S):g} s: {reason}")
                time.sleep(wait_s * random.uniform(0.8, 1.2))  # not all workers at once
            except RaytrainError:
                raise
            except Exception as error:  # noqa: BLE001 - what is there is not what it should be, in whatever way
                return error.with_traceback(None)

    def _may_pass(self, error: OSError) -> bool:
        """Without a number it is a storage service's, or of a local file what it holds is damaged."""
        if error.errno is not None:
            return error.errno in PASSING
        return not isinstance(getattr(self.reader, "filesystem", None), pyarrow.fs.LocalFileSystem)


def _cell(column: pa.ChunkedArray, index: int) -> Any:
    """Or why it is no value of a field."""
    try:
        return cell(column[index])
    except ValueError as error:
        return error


def _column(column: pa.ChunkedArray) -> np.ndarray | pa.ChunkedArray:
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_boolean(column.type):
        return np.asarray(column.combine_chunks().to_numpy(zero_copy_only=False))
    return column
