"""The block: one ready batch as one row of an Arrow table.

A tensor is a binary cell over the array's own memory, so that the only copy is the one into the object store, and
reading gives a view of it. The header says which batch it is, what it cost and what could not be decoded.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class Failure:
    """A sample that could not be prepared."""

    id: int
    where: str
    reason: str


@dataclass(frozen=True)
class Header:
    """About one batch.

    Attributes:
        segment, batch: its place in the stream plan.
        stage_s: seconds of CPU-worker time by stage, over the whole batch; `read` comes first.
        failures: the samples that were left out.
        read_bytes: encoded bytes read from storage.
        node: Ray node id of the worker, hexadecimal.
        torch_imported: whether the worker has imported torch.
    """

    segment: int
    batch: int
    stage_s: dict[str, float]
    failures: list[Failure] = field(default_factory=list)
    read_bytes: int = 0
    node: str = ""
    torch_imported: bool = False


@dataclass(frozen=True)
class Batch:
    """`image` (batch, height, width, channels), `label` and `id` (batch,) int64."""

    image: np.ndarray
    label: np.ndarray
    id: np.ndarray
    header: Header


def encode(batch: Batch) -> pa.Table:
    """One row; the arrays' memory is referenced, not copied."""
    image = np.ascontiguousarray(batch.image)
    header = {**asdict(batch.header), "dtype": image.dtype.str, "shape": image.shape}
    return pa.table(
        {
            "header": [json.dumps(header)],
            "image": _cell(image),
            "label": _cell(np.ascontiguousarray(batch.label, dtype=np.int64)),
            "id": _cell(np.ascontiguousarray(batch.id, dtype=np.int64)),
        }
    )


def decode(table: pa.Table) -> Batch:
    """Views of the block's memory, read-only."""
    header: dict[str, Any] = json.loads(table.column("header")[0].as_py())
    dtype, shape = np.dtype(header.pop("dtype")), header.pop("shape")
    header["failures"] = [Failure(**failure) for failure in header["failures"]]
    return Batch(
        image=_view(table, "image", dtype).reshape(shape),
        label=_view(table, "label", np.dtype(np.int64)),
        id=_view(table, "id", np.dtype(np.int64)),
        header=Header(**header),
    )


def _cell(array: np.ndarray) -> pa.Array:
    offsets = pa.py_buffer(np.array([0, array.nbytes], dtype=np.int64))
    # a reshape makes a zero-size array acceptable to py_buffer too
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(array.reshape(-1))])


def _view(table: pa.Table, name: str, dtype: np.dtype) -> np.ndarray:
    cell = table.column(name).chunk(0)  # not `cell[0].as_buffer()`, which copies
    _, offsets, data = cell.buffers()
    start, stop = np.frombuffer(offsets, dtype=np.int64)[cell.offset : cell.offset + 2]
    return np.frombuffer(data, dtype=np.uint8)[start:stop].view(dtype)
