"""How long the samples are, for batches of like length."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from raytrain.data.samples.fields import Sample
from raytrain.data.sources import arrow
from raytrain.data.sources.manifest import Manifest
from raytrain.errors import DataError, nearest

MOST_READ = 10_000  # samples are read only to learn their lengths


def lengths_of(manifest: Manifest, by: str) -> np.ndarray:
    """Of field `by`, int64 by id: along its first axis, or in characters or bytes; of a number, the number.

    Raises:
        DataError: there is no such field, it has no length, or too many samples would have to be read for it.
    """
    if by not in manifest.schema:
        known = [*manifest.schema]
        raise DataError(f"buckets: there is no field `{by}`{nearest(by, known)}; there are {manifest.schema.names}")
    what = manifest.schema[by]
    if what.shape == () and what.dtype.startswith(("float", "bfloat", "complex", "bool")):
        raise DataError(f"buckets: field `{by}` is {what}, which has no length")
    if by in manifest.known:
        return _of_column(manifest.rows.column(by), by)
    if f"{by}.size" in manifest.rows.column_names:  # of a shard: encoded bytes
        return np.asarray(manifest.rows.column(f"{by}.size").to_numpy(), np.int64)
    own = getattr(manifest.reader, "lengths", None)
    if callable(own):
        found = own(manifest.rows, by)
        if found is not None:
            return np.asarray(found, np.int64)
    if manifest.num_samples > MOST_READ:
        raise DataError(
            f"buckets: the lengths of `{by}` are not known beforehand, and {manifest.num_samples:,} samples are too "
            f"many to be read for them (at most {MOST_READ:,}); give the data a field with the length, and name that"
        )
    samples = (manifest.read_many([index])[0] for index in range(manifest.num_samples))
    return np.array([_length(sample, by) for sample in samples], np.int64)


def _of_column(column: pa.ChunkedArray, by: str) -> np.ndarray:
    found = arrow.lengths_of(column)
    if found is None:
        raise DataError(f"buckets: field `{by}` is {column.type}, which has no length")
    return found


def _length(sample: Sample | Exception, by: str) -> int:
    value: Any = 0 if isinstance(sample, Exception) else sample.get(by, 0)
    return len(value) if isinstance(value, str | bytes) or np.ndim(value) else int(value)
