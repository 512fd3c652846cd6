"""The block: one row of an Arrow table that holds a ready batch, or several small ones.

The memory of a batch's samples is referenced piece by piece and lies in one stretch in the object store, so that the
copy into it is the only one between the last stage and the device; reading gives a view. The header says which batches
they are, what they cost and what could not be decoded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from raytrain.record.status import Failure

PIECE_BYTES = 128 << 10  # samples from here on are worth a piece each
ALIGNED = 64  # bytes: how Ray lays out buffers; pieces of whole multiples lie side by side
NO_SAMPLE = np.empty((0, 0, 0), np.uint8)  # in the place of a sample, of a batch whose samples' shape nobody knows


@dataclass(frozen=True)
class Header:
    """About one batch.

    Attributes:
        segment, batch: its place in the stream plan.
        stage_wall_s: seconds that a worker spent in each stage, over the whole batch; `read` comes first.
        stage_cpu_s: likewise, seconds of a CPU (see stage_clock.StageClock).
        failures: the samples that were left out.
        left_out: keys of those of them that are not in an earlier batch of the epoch.
        repeated: of the batch's samples, the last so many that the epoch has had already.
        read_bytes: encoded bytes read from storage.
        node: Ray node id of the worker, hexadecimal.
        torch_imported: whether the worker has imported torch.
    """

    segment: int
    batch: int
    stage_wall_s: dict[str, float]
    stage_cpu_s: dict[str, float]
    failures: list[Failure] = field(default_factory=list)
    left_out: list[int] = field(default_factory=list)
    repeated: int = 0
    read_bytes: int = 0
    node: str = ""
    torch_imported: bool = False


@dataclass(frozen=True)
class Prepared:
    """A batch as a worker made it.

    Attributes:
        pieces: contiguous memory, in order: the whole batch, or one sample each.
        dtype, shape: of a sample.
        axes: of a sample, from the slowest in memory to the fastest.
        label, key: (samples,) int64; see StreamPlan.
    """

    pieces: list[np.ndarray]
    dtype: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    label: np.ndarray
    key: np.ndarray
    header: Header

    @classmethod
    def of(
        cls,
        samples: Sequence[np.ndarray],
        like: np.ndarray,
        label: np.ndarray,
        keys: np.ndarray,
        header: Header,
        *,
        together: bool = False,
    ) -> Prepared:
        """Large samples stay where they are, unless they shall be put `together`; small ones always are.

        `samples` have the shape and dtype of `like`, in any order of their axes in memory; there may be none. They
        travel in the machine's own byte order, which is the only one that torch takes.
        """
        axes = tuple(int(axis) for axis in np.argsort([-abs(stride) for stride in like.strides], kind="stable"))
        dtype = like.dtype.newbyteorder("=")
        pieces = [np.ascontiguousarray(sample.transpose(axes), dtype) for sample in samples]
        apart = len(pieces) == 1 or (pieces and pieces[0].nbytes >= PIECE_BYTES and pieces[0].nbytes % ALIGNED == 0)
        if pieces and (together or not apart):
            pieces = [np.stack(pieces)]
        return cls(pieces, dtype.str, like.shape, axes, label, keys, header)


@dataclass(frozen=True)
class Batch:
    """A batch as a rank reads it: `image` (batch, height, width, channels), `label` and `key` (batch,) int64."""

    image: np.ndarray
    label: np.ndarray
    key: np.ndarray
    header: Header


def to_table(batches: Sequence[Prepared]) -> pa.Table:
    """One row, which refers to the pieces' memory."""
    headers = []
    for batch in batches:
        about = {"dtype": batch.dtype, "shape": batch.shape, "axes": batch.axes, "pieces": len(batch.pieces)}
        headers.append({**asdict(batch.header), **about, "num_samples": len(batch.key)})
    numbers = [part for batch in batches for part in (batch.label, batch.key)]
    columns = {"header": pa.array([json.dumps(headers)]), "numbers": _cell(np.concatenate(numbers, dtype=np.int64))}
    for number, piece in enumerate(piece for batch in batches for piece in batch.pieces):
        buffer = pa.py_buffer(piece.reshape(-1))
        columns[str(number)] = pa.FixedSizeBinaryArray.from_buffers(pa.binary(piece.nbytes), 1, [None, buffer])
    return pa.table(columns)


def batches_of(table: pa.Table) -> list[Batch]:
    """Views of the block's memory, read-only; the row may be a slice of a longer table."""
    headers: list[dict[str, Any]] = json.loads(table.column("header")[0].as_py())
    numbers = np.frombuffer(_value(table.column("numbers")), dtype=np.int64)
    pieces = iter(range(2, table.num_columns))
    batches = []
    for header in headers:
        size, dtype = header.pop("num_samples"), np.dtype(header.pop("dtype"))
        shape, axes = header.pop("shape"), header.pop("axes")
        memory = _stretch(table, [next(pieces) for _ in range(header.pop("pieces"))])
        image = memory.view(dtype).reshape((size, *(shape[axis] for axis in axes)))
        image = image.transpose(0, *(1 + axes.index(axis) for axis in range(len(axes))))
        header["failures"] = [Failure(**failure) for failure in header["failures"]]
        batches.append(Batch(image, numbers[:size], numbers[size : 2 * size], Header(**header)))
        numbers = numbers[2 * size :]
    return batches


def _cell(array: np.ndarray) -> pa.Array:
    offsets = pa.py_buffer(np.array([0, array.nbytes], dtype=np.int64))
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(array)])


def _value(column: pa.ChunkedArray) -> pa.Buffer:
    """The memory of a column's one value, in whichever chunk and wherever in it; `as_buffer` of the scalar copies."""
    chunk = next(each for each in column.chunks if len(each))
    buffers, start = chunk.buffers(), chunk.offset
    if pa.types.is_large_binary(chunk.type):
        first, stop = np.frombuffer(buffers[1], dtype=np.int64)[start : start + 2].tolist()
        return buffers[2].slice(first, stop - first)
    width = chunk.type.byte_width
    return buffers[1].slice(start * width, width)


def _stretch(table: pa.Table, pieces: list[int]) -> np.ndarray:
    """The pieces' memory as one uint8 array: a view where they lie side by side, as they do in the object store."""
    buffers = [_value(table.column(number)) for number in pieces]
    if not buffers:
        return np.empty(0, dtype=np.uint8)
    ends = [buffer.address + buffer.size for buffer in buffers[:-1]]
    if ends != [buffer.address for buffer in buffers[1:]]:
        return np.concatenate([np.frombuffer(buffer, dtype=np.uint8) for buffer in buffers])
    whole = pa.foreign_buffer(buffers[0].address, sum(buffer.size for buffer in buffers), base=buffers)
    return np.frombuffer(whole, dtype=np.uint8)
