"""The manifest: one row a sample, whose number is the sample's id, and a reader that turns a row into an array.

Imported by every preprocessing worker, so it imports NumPy and pyarrow and nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.fs

from raytrain.data.sources.readers import reading_pool
from raytrain.errors import DataError, one_line


class Reader(Protocol):
    """Turns a row of the manifest into an array: encoded bytes (uint8, one dimension) or the sample itself."""

    @property
    def remote(self) -> bool: ...

    def read(self, rows: pa.Table, index: int) -> np.ndarray | Exception:
        """Or why this one sample is to be left out."""
        ...

    def describe(self, rows: pa.Table, index: int) -> str: ...


@dataclass(frozen=True)
class Manifest:
    """What the samples of one split are.

    Attributes:
        rows: one row a sample; the column `label` (int64) and what `reader` needs.
        reader: how a row becomes an array.
        classes: class names by label, when the source names them.
        group_starts: int64, first id of every run of samples that are stored together (Parquet row groups), or None
            when each can be read alone. A shuffle then stays within a few runs at a time.
        encoded: the samples are known to be bytes of image files, which a stage must decode.
    """

    rows: pa.Table
    reader: Reader
    classes: tuple[str, ...] = ()
    group_starts: np.ndarray | None = None
    encoded: bool = False

    @property
    def num_samples(self) -> int:
        return int(self.rows.num_rows)

    @cached_property
    def labels(self) -> np.ndarray:
        """int64, by id."""
        return np.asarray(self.rows.column("label").combine_chunks().to_numpy(zero_copy_only=False))

    @property
    def num_classes(self) -> int:
        return len(self.classes) or (int(self.labels.max()) + 1 if self.num_samples else 0)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the ids and labels: a ledger is only valid for the manifest that it was written for."""
        digest = hashlib.sha256(self.labels.tobytes())
        for name in ("key", "offset", "row"):
            if name in self.rows.column_names:
                for chunk in self.rows.column(name).chunks:
                    for buffer in chunk.buffers():
                        if buffer is not None:
                            digest.update(buffer)
        return digest.hexdigest()[:16]

    def describe(self, index: int) -> str:
        """A file name, or the place in a shard, for messages and the record."""
        return self.reader.describe(self.rows, int(index))

    def read_many(self, ids: Sequence[int]) -> list[np.ndarray | Exception]:
        """The samples of `ids`, in order; a remote file system is read in parallel.

        Raises:
            DataError: a file cannot be read at all (which is not the same as a corrupt image).
        """
        if self.group_starts is not None:  # by stored run, so that each is read once
            order = np.argsort(ids, kind="stable")
            samples = {int(place): self._read(ids[place]) for place in order}
            return [samples[place] for place in range(len(ids))]
        if not self.reader.remote:
            return [self._read(index) for index in ids]
        return list(reading_pool().map(self._read, ids))

    def _read(self, index: int) -> np.ndarray | Exception:
        try:
            return self.reader.read(self.rows, int(index))
        except (OSError, pa.ArrowInvalid) as error:
            reason = getattr(error, "strerror", None) or one_line(error)
            raise DataError(f"cannot read {self.describe(index)}: {reason}") from None
