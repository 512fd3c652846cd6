"""The block: one row of an Arrow table that holds a ready batch, or several small ones.

The memory of a batch's samples is referenced piece by piece and lies in one stretch in the object store, so that the
copy into it is the only one between the last stage and the device; reading gives a view. The header says which batches
they are, what their fields are, what they cost and what could not be prepared.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from raytrain.data.samples.collate import ANY_TEXT, Column, Form
from raytrain.data.samples.fields import np_dtype
from raytrain.record.status import Failure

PACKED_BYTES = 4 << 10  # a field's part of a batch below this is put beside others
PACKED_ALIGNED = 16  # bytes, as long as the longest number
UNCUT = -1  # in place of a cut: as many stages on the CPU as can be


@dataclass(frozen=True)
class Header:
    """About one batch.

    Attributes:
        segment, batch: its place in the stream plan.
        stage_wall_s: seconds that a worker spent in each stage, over the whole batch; `read` comes first.
        stage_cpu_s: likewise, seconds of a CPU (see stage_clock.StageClock).
        failures: the samples that were left out because something went wrong.
        left_out: keys of all that were left out, but for those that are in an earlier batch of the epoch.
        filtered: how many of those a stage did not want.
        repeated: of the batch's samples, the last so many that the epoch has had already.
        read_bytes: encoded bytes read from storage.
        node: Ray node id of the worker, hexadecimal.
        torch_imported: whether the worker has imported torch.
        cut: how many of the split's stages the worker ran; UNCUT as usual.
    """

    segment: int
    batch: int
    stage_wall_s: dict[str, float]
    stage_cpu_s: dict[str, float]
    failures: list[Failure] = field(default_factory=list)
    left_out: list[int] = field(default_factory=list)
    filtered: int = 0
    repeated: int = 0
    read_bytes: int = 0
    node: str = ""
    torch_imported: bool = False
    cut: int = UNCUT


@dataclass(frozen=True)
class Prepared:
    """A batch as a worker made it.

    Attributes:
        columns: by field; without samples they say what others look like, and there are none where nobody knows.
        key: (samples,) int64; see StreamPlan.
        part: (samples,) int64, which of the samples that a stage has made of one; None where none has.
    """

    columns: Mapping[str, Column]
    key: np.ndarray
    header: Header
    part: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        return sum(column.nbytes for column in self.columns.values())


@dataclass(frozen=True)
class RaggedArray:
    """Arrays of different lengths: `values` behind one another, (total, ...), and `lengths` by sample, int64."""

    values: np.ndarray
    lengths: np.ndarray


Value = np.ndarray | RaggedArray | list[str] | list[bytes]


@dataclass(frozen=True)
class Batch:
    """A batch as a rank reads it.

    Attributes:
        fields: dense ones as one array (samples, ...).
        forms: of the fields; a list that is empty does not tell.
        key, part: see Prepared.
        nbytes: of the fields.
    """

    fields: dict[str, Value]
    forms: dict[str, Form]
    key: np.ndarray
    header: Header
    part: np.ndarray | None = None
    nbytes: int = 0


# --- writing ------------------------------------------------------------------------------------------------------


def to_table(batches: Sequence[Prepared]) -> pa.Table:
    """One row, which refers to the pieces' memory."""
    headers, packed, pieces = [], _Packed(), []
    for batch in batches:
        fields = []
        for name, column in batch.columns.items():
            apart = column.nbytes >= PACKED_BYTES
            about = [name, column.form, column.dtype, column.shape, column.axes]
            fields.append([*about, len(column.pieces) if apart else -1, column.nbytes])
            if apart:
                pieces += column.pieces
            else:
                packed.put(column.pieces)
            if column.lengths is not None:
                packed.put([column.lengths])
        packed.put([batch.key])
        if batch.part is not None:
            packed.put([batch.part])
        counts = {"num_samples": len(batch.key), "in_parts": batch.part is not None}
        headers.append({**asdict(batch.header), "fields": fields, **counts})
    columns = {"header": pa.array([json.dumps(headers)]), "packed": packed.cell()}
    for number, piece in enumerate(pieces):
        buffer = pa.py_buffer(piece.reshape(-1).view(np.uint8))
        columns[str(number)] = pa.FixedSizeBinaryArray.from_buffers(pa.binary(piece.nbytes), 1, [None, buffer])
    return pa.table(columns)


class _Packed:
    """Small arrays behind one another, each at a multiple of PACKED_ALIGNED."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def put(self, pieces: Sequence[np.ndarray]) -> None:
        """The pieces of one array."""
        data = b"".join(piece.tobytes() for piece in pieces)
        self._parts += [data, bytes(-len(data) % PACKED_ALIGNED)]

    def cell(self) -> pa.Array:
        whole = b"".join(self._parts)
        offsets = pa.py_buffer(np.array([0, len(whole)], dtype=np.int64))
        return pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(whole)])


# --- reading ------------------------------------------------------------------------------------------------------


def batches_of(table: pa.Table) -> list[Batch]:
    """Views of the block's memory, read-only; the row may be a slice of a longer table."""
    headers: list[dict[str, Any]] = json.loads(table.column("header")[0].as_py())
    memory = _Memory(table)
    return [_batch(header, memory) for header in headers]


def _batch(header: dict[str, Any], memory: _Memory) -> Batch:
    size, in_parts, fields = header.pop("num_samples"), header.pop("in_parts"), header.pop("fields")
    found: dict[str, Value] = {}
    forms: dict[str, Form] = {}
    for name, form, dtype, shape, axes, pieces, nbytes in fields:
        data = memory.packed(nbytes) if pieces < 0 else memory.pieces(pieces)
        lengths = None if form == "dense" else memory.numbers(size)
        forms[name] = form
        found[name] = _value(form, data, np_dtype(dtype), size, shape, axes, lengths)
    key = memory.numbers(size)
    part = memory.numbers(size) if in_parts else None
    header["failures"] = [Failure(**failure) for failure in header["failures"]]
    return Batch(found, forms, key, Header(**header), part, sum(each[-1] for each in fields))


def _value(
    form: Form,
    data: np.ndarray,
    dtype: np.dtype,
    size: int,
    shape: list[int],
    axes: list[int],
    lengths: np.ndarray | None,
) -> Value:
    if lengths is None:
        stored = data.view(dtype).reshape((size, *(shape[axis] for axis in axes)))
        return stored.transpose(0, *(1 + axes.index(axis) for axis in range(len(axes))))
    if form == "ragged":
        return RaggedArray(data.view(dtype).reshape((int(lengths.sum()), *shape)), lengths)
    whole, ends = data.tobytes(), np.cumsum(lengths).tolist()
    each = [whole[end - length : end] for end, length in zip(ends, lengths.tolist(), strict=True)]
    return [one.decode(errors=ANY_TEXT) for one in each] if form == "text" else each


class _Memory:
    """The memory of a block, read from its start."""

    def __init__(self, table: pa.Table):
        self._table = table
        self._packed = np.frombuffer(_buffer(table.column("packed")), dtype=np.uint8)
        self._columns: Iterator[int] = iter(range(2, table.num_columns))
        self._at = 0

    def packed(self, nbytes: int) -> np.ndarray:
        """uint8 (nbytes,)."""
        start = self._at
        self._at += nbytes + -nbytes % PACKED_ALIGNED
        return self._packed[start : start + nbytes]

    def numbers(self, count: int) -> np.ndarray:
        return self.packed(8 * count).view(np.int64)

    def pieces(self, count: int) -> np.ndarray:
        """uint8: a view where they lie side by side, as they do in the object store."""
        buffers = [_buffer(self._table.column(next(self._columns))) for _ in range(count)]
        ends = [buffer.address + buffer.size for buffer in buffers[:-1]]
        if ends != [buffer.address for buffer in buffers[1:]]:
            return np.concatenate([np.frombuffer(buffer, dtype=np.uint8) for buffer in buffers])
        whole = pa.foreign_buffer(buffers[0].address, sum(buffer.size for buffer in buffers), base=buffers)
        return np.frombuffer(whole, dtype=np.uint8)


def _buffer(column: pa.ChunkedArray) -> pa.Buffer:
    """The memory of a column's one value, in whichever chunk and wherever in it; `as_buffer` of the scalar copies."""
    chunk = next(each for each in column.chunks if len(each))
    buffers, start = chunk.buffers(), chunk.offset
    if pa.types.is_large_binary(chunk.type):
        first, stop = np.frombuffer(buffers[1], dtype=np.int64)[start : start + 2].tolist()
        return buffers[2].slice(first, stop - first)
    width = chunk.type.byte_width
    return buffers[1].slice(start * width, width)
