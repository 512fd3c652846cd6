"""Arrays, a field each: `.npy` files, `.npz` files, or what a program has in memory."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs

from raytrain.config.data import ArraysSource
from raytrain.data.samples.fields import DTYPES, IMAGE, TEXT, Field, Kind, Sample, Schema
from raytrain.data.sources.files import Listing, Places, described, list_files, path_of
from raytrain.data.sources.labels import check_apart, classes_of, label_field, numbered
from raytrain.data.sources.manifest import Manifest
from raytrain.data.sources.registry import InProgram
from raytrain.errors import DataError, one_line


@dataclass(frozen=True)
class InMemory(InProgram):
    """Arrays of the program's own. Those that are memory-mapped files stay there, and workers open them anew."""

    arrays: Mapping[str, np.ndarray]
    masks: tuple[str, ...] = ()
    labels: tuple[str, ...] = ("label",)
    limit: int | None = None
    weights: str | None = None

    kind = "arrays"


def arrays(
    path: Places | Mapping[str, Any],
    *,
    masks: Sequence[str] = (),
    labels: Sequence[str] = ("label",),
    limit: int | None = None,
    weights: str | None = None,
) -> ArraysSource | InMemory:
    """Arrays with the samples along their first axis: an `.npz` file, a folder of `.npy` files, or a dict of arrays.

    Args:
        path: where they are, or the dict. A field is named as the array in the `.npz` file, or the `.npy` file, is.
            `image` is (samples, height, width, channels).
        masks: fields that are masks.
        labels: fields whose text names classes.
        limit, weights: see `raytrain.config.data.BuiltIn`.

    Raises:
        DataError: a value of a dict is no array.
    """
    asked = described(
        ArraysSource,
        "arrays",
        path="in memory" if isinstance(path, Mapping) else path_of(path),
        masks=tuple(masks),
        labels=tuple(labels),
        limit=limit,
        weights=weights,
    )
    if not isinstance(path, Mapping):
        return asked
    for name, value in path.items():
        if not isinstance(value, np.ndarray) or value.ndim == 0:
            raise DataError(f"arrays: `{name}` must be a NumPy array with the samples along its first axis")
    return InMemory(dict(path), asked.masks, asked.labels, asked.limit, asked.weights)


@dataclass(frozen=True)
class Stored:
    """An array in a file.

    Attributes:
        member: of an `.npz` file; None of an `.npy` file.
        memory: what is mapped, of a local `.npy` file or of a memory map of the program's: dtype, shape, offset, order.
    """

    path: str
    member: str | None = None
    memory: tuple[str, tuple[int, ...], int, str] | None = None


@dataclass(frozen=True)
class ArraysReader:
    """Rows of arrays: column `number`. Files are opened in the process that reads, once."""

    filesystem: pyarrow.fs.FileSystem
    arrays: Mapping[str, Stored | np.ndarray]
    told: str
    _opened: dict[str, np.ndarray] = field(default_factory=dict, compare=False)

    remote = False  # an array is read at once

    def read(self, rows: pa.Table, index: int) -> Sample:
        number = rows.column("number")[index].as_py()
        return {name: _value(self._array(name)[number]) for name in self.arrays}

    def describe(self, rows: pa.Table, index: int) -> str:
        return f"{self.told}[{rows.column('number')[index].as_py()}]"

    def _array(self, name: str) -> np.ndarray:
        if name not in self._opened:
            where = self.arrays[name]
            array = (where if isinstance(where, np.ndarray) else load(self.filesystem, where)).view()
            array.flags.writeable = False  # a stage that changed what it gets would do so for every epoch to come
            self._opened[name] = array
        return self._opened[name]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}}


def load(filesystem: pyarrow.fs.FileSystem, where: Stored) -> np.ndarray:
    """
    Raises:
        OSError: it cannot be read.
        ValueError: it is no array, or one of Python objects.
        Exception: of a damaged file NumPy raises anything.
    """
    if where.memory is not None:
        dtype, shape, offset, order = where.memory
        kind: Any = {"dtype": np.dtype(dtype), "shape": shape, "offset": offset, "order": order}
        mapped: np.ndarray = np.memmap(where.path, mode="r", **kind)
        return mapped
    with filesystem.open_input_stream(where.path) as stream:
        found: Any = np.load(BytesIO(stream.read()), allow_pickle=False)
    array: Any = found if where.member is None else found[where.member]
    if not isinstance(array, np.ndarray):
        raise ValueError("it is no array")
    return array


def _value(row: Any) -> Any:
    """Text as Python has it; a row of a memory map as a plain array."""
    return str(row) if isinstance(row, np.str_) else np.asarray(row)[()]


def open_arrays(source: ArraysSource | InMemory, like: Schema | None, seed: int) -> Manifest:
    filesystem: pyarrow.fs.FileSystem = pyarrow.fs.LocalFileSystem()
    told = "arrays"
    places: dict[str, Stored | np.ndarray] = {}
    if isinstance(source, InMemory):
        places = {name: _mapped(array) for name, array in source.arrays.items()}
    else:
        listing = list_files(source.path)
        filesystem, told = listing.filesystem, listing.told
        places = dict(_stored(listing))
        if not places:
            raise DataError(f"{told} holds no arrays (*.npz or *.npy)")
    reader = ArraysReader(filesystem, places, told)
    found = {name: _loaded(reader, name) for name in places}
    counts = {name: len(array) for name, array in found.items()}
    if len({*counts.values()}) > 1:
        each = ", ".join(f"`{name}` has {count:,}" for name, count in counts.items())
        raise DataError(f"{told}: the arrays must have as many samples each along their first axis; {each}")
    rows: dict[str, Any] = {"number": np.arange(next(iter(counts.values())), dtype=np.int64)}
    fields: dict[str, Field] = {}
    for name, array in found.items():
        if name in source.labels and array.ndim == 1 and array.dtype.kind in "iubU":
            check_apart([name], ["number"], told)
            column = pa.chunked_array([pa.array(_native(array))])
            rows[name], classes = numbered(column, classes_of(like, name), name, told)
            fields[name] = label_field(classes)
        else:
            fields[name] = _field(name, array, name in source.masks, told)
            if array.ndim == 1 and array.dtype.kind in "iuf" and name not in rows:  # what may be weights or lengths
                rows[name] = _native(array)
    known = tuple(name for name in rows if name != "number")
    rest = {name: where for name, where in places.items() if name not in known}
    return Manifest(pa.table(rows), ArraysReader(filesystem, rest, told), Schema(fields), known)


def _native(array: np.ndarray) -> np.ndarray:
    """In the machine's own byte order, which is the only one that Arrow takes."""
    return np.asarray(array, array.dtype.newbyteorder("="))


def _loaded(reader: ArraysReader, name: str) -> np.ndarray:
    try:
        array = reader._array(name)
    except Exception as error:  # noqa: BLE001 - see `load`
        raise DataError(f"cannot read the array `{name}` of {reader.told}: {one_line(error)}") from None
    if array.ndim == 0:
        raise DataError(f"{reader.told}: `{name}` is a single number; an array has the samples along its first axis")
    return array


def _field(name: str, array: np.ndarray, is_mask: bool, told: str) -> Field:
    if array.dtype.kind == "U":
        return Field(TEXT, ())
    if array.dtype.name not in DTYPES:
        raise DataError(f"{told}: `{name}` holds {array.dtype}; a field is one of {', '.join(DTYPES)}, or text")
    kind: Kind = "mask" if is_mask else "image" if name == IMAGE and array.ndim == 4 else ""
    return Field(array.dtype.name, array.shape[1:], kind)


def _stored(listing: Listing) -> Mapping[str, Stored]:
    found: dict[str, Stored] = {}
    for name in listing.names:
        path, stem = listing.path(name), PurePosixPath(name).stem
        try:
            if name.endswith(".npy"):
                found[stem] = Stored(path, memory=_map_of(path) if listing.is_local else None)
            elif name.endswith(".npz"):
                with listing.filesystem.open_input_file(path) as file, np.load(file, allow_pickle=False) as members:
                    found |= {member: Stored(path, member) for member in members.files}
        except Exception as error:  # noqa: BLE001 - see `load`
            raise DataError(f"cannot read {path}: {one_line(error)}") from None
    return found


def _map_of(path: str) -> tuple[str, tuple[int, ...], int, str]:
    mapped: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    order = "F" if mapped.flags.f_contiguous and not mapped.flags.c_contiguous else "C"
    return mapped.dtype.str, mapped.shape, int(mapped.offset), order


def _mapped(array: np.ndarray) -> Stored | np.ndarray:
    """A whole memory-mapped file travels by its name."""
    if type(array) is not np.memmap or array.filename is None or not array.flags.c_contiguous:
        return np.asarray(array)
    base: Any = array.base
    if isinstance(base, np.memmap):  # a part of one
        return np.asarray(array)
    return Stored(os.fspath(array.filename), memory=(array.dtype.str, array.shape, int(array.offset), "C"))
