"""Readers: what turns a row of the manifest into the fields of a sample.

Imported by every preprocessing worker, so it imports NumPy and pyarrow and nothing else.
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from io import BytesIO
from statistics import NormalDist
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from raytrain.data.order import GROUPS_IN_A_WINDOW
from raytrain.data.samples.fields import BFLOAT16, BYTES, TEXT, Field, Sample, np_dtype
from raytrain.data.sources.arrow import cell, lengths_of
from raytrain.errors import DataError, one_line

REMOTE_READS_IN_FLIGHT = 16
ROW_GROUP_CACHE_BYTES = 256 << 20
FOOTERS_KEPT = 256
GROUPS_AT_ONCE = 16  # row groups of a file that one thread learns the lengths of
LENGTHS_BATCH_BYTES, LENGTHS_BATCH_ROWS = 8 << 20, 8192  # that it has in memory
LENGTHS_BUFFER_BYTES = 1 << 20
UNPACKED_BYTES = 1 << 30  # of packed shards that a worker keeps
PACKED = (".tar.gz", ".tgz")


_POOL: list[ThreadPoolExecutor] = []


def reading_pool() -> ThreadPoolExecutor:
    if not _POOL:
        _POOL.append(ThreadPoolExecutor(REMOTE_READS_IN_FLIGHT, thread_name_prefix="raytrain-read"))
    return _POOL[0]


@dataclass(frozen=True)
class FileReader:
    """Files of a sample, below `root`.

    Attributes:
        columns: by field, that of the rows which has the path.
        forms: by field, how its bytes are read (see `parsed`); as they are where it is not named.
    """

    filesystem: pyarrow.fs.FileSystem
    root: str
    columns: Mapping[str, str]
    forms: Mapping[str, str] = field(default_factory=dict)

    @property
    def remote(self) -> bool:
        return not isinstance(self.filesystem, pyarrow.fs.LocalFileSystem)

    def read(self, rows: pa.Table, index: int) -> Sample:
        sample: Sample = {}
        for name, column in self.columns.items():
            data = self._bytes(self.path(rows.column(column)[index].as_py()))
            sample[name] = parsed(data, self.forms[name], name) if name in self.forms else data
        return sample

    def path(self, key: str) -> str:
        return key if key.startswith("/") else f"{self.root}/{key}"

    def _bytes(self, path: str) -> bytes:
        if not self.remote:
            with open(path, "rb", buffering=0) as file:
                return file.read()
        with self.filesystem.open_input_stream(path) as stream:
            return stream.read()  # type: ignore[no-any-return]

    def describe(self, rows: pa.Table, index: int) -> str:
        return self.path(rows.column(next(iter(self.columns.values())))[index].as_py())


@dataclass(frozen=True)
class ShardReader:
    """Byte ranges of a tar shard: columns `shard`, `key`, and of every field `<field>.offset` and `<field>.size`.

    Attributes:
        forms: by field, how its bytes are read (see `parsed`).
    """

    filesystem: pyarrow.fs.FileSystem
    shards: tuple[str, ...]
    forms: Mapping[str, str]
    _unpacked: OrderedDict[str, bytes] = field(default_factory=OrderedDict, compare=False)

    @property
    def remote(self) -> bool:
        packed = any(shard.endswith(PACKED) for shard in self.shards)  # read one after the other
        return not isinstance(self.filesystem, pyarrow.fs.LocalFileSystem) and not packed

    def read(self, rows: pa.Table, index: int) -> Sample:
        shard = self.shards[rows.column("shard")[index].as_py()]
        places = {
            name: (rows.column(f"{name}.offset")[index].as_py(), rows.column(f"{name}.size")[index].as_py())
            for name in self.forms
        }
        with self._open(shard) as file:
            data = {name: _range(file, *place) for name, place in places.items()}
        return {name: parsed(each, self.forms[name], name) for name, each in data.items()}

    def _open(self, shard: str) -> Any:
        if shard.endswith(PACKED):
            return BytesIO(self._unpack(shard))
        if isinstance(self.filesystem, pyarrow.fs.LocalFileSystem):
            return open(shard, "rb", buffering=0)
        return self.filesystem.open_input_file(shard)

    def _unpack(self, shard: str) -> bytes:
        if shard in self._unpacked:
            self._unpacked.move_to_end(shard)
            return self._unpacked[shard]
        with self.filesystem.open_input_stream(shard, compression="gzip") as stream:
            data: bytes = stream.read()
        self._unpacked[shard] = data
        while len(self._unpacked) > 1 and sum(map(len, self._unpacked.values())) > UNPACKED_BYTES:
            self._unpacked.popitem(last=False)
        return data

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_unpacked": OrderedDict()}

    def describe(self, rows: pa.Table, index: int) -> str:
        return f"{self.shards[rows.column('shard')[index].as_py()]}:{rows.column('key')[index].as_py()}"


def _range(file: Any, offset: int, size: int) -> bytes:
    file.seek(offset)
    data: bytes = file.read(size)
    if len(data) != size:
        raise ValueError(f"the shard ends after {len(data)} of {size} bytes")
    return data


def parsed(data: bytes, form: str, name: str) -> Any:
    """What the bytes of a file are, by the form that its extension tells.

    Args:
        form: `bytes` (as they are), `text`, `integer`, `json` (a number, a list of numbers, or text; anything else is
            text as it stands), or `npy`.
        name: of the field, for messages.

    Raises:
        ValueError: it is not of that form.
    """
    try:
        return _parsed(data, form)
    except ValueError as error:
        raise ValueError(f"field `{name}` is no {form}: {error}") from None


def _parsed(data: bytes, form: str) -> Any:
    if form == "bytes":
        return data
    if form == "text":
        return data.decode()
    try:
        if form == "integer":
            return np.int64(int(data))
        if form == "npy":
            return np.lib.format.read_array(BytesIO(data), allow_pickle=False)
    except (EOFError, OverflowError) as error:
        raise ValueError(str(error)) from None
    value = json.loads(data)
    if isinstance(value, str):
        return value
    found = np.asarray(value)
    return found if found.dtype.kind in "biuf" else data.decode()


@dataclass(frozen=True)
class ParquetReader:
    """A row of a row group: columns `file`, `group`, `row`. Row groups are kept while they are in use.

    Attributes:
        columns: by field, that of the file.
        shapes: of flat lists that are arrays.
    """

    filesystem: pyarrow.fs.FileSystem
    files: tuple[str, ...]
    columns: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    _cache: OrderedDict[tuple[int, int], pa.Table] = field(default_factory=OrderedDict, compare=False)
    _footers: OrderedDict[int, pq.FileMetaData] = field(default_factory=OrderedDict, compare=False)

    remote = False  # a row group is one long read, and the cache is not shared between threads

    def read(self, rows: pa.Table, index: int) -> Sample | Exception:
        table = self._row_group((rows.column("file")[index].as_py(), rows.column("group")[index].as_py()))
        row = rows.column("row")[index].as_py()
        sample: Sample = {}
        for name, column in self.columns.items():
            value = cell(table.column(column)[row])
            if value is None:
                return ValueError(f"column {column!r} is null")
            sample[name] = value.reshape(self.shapes[name]) if name in self.shapes else value
        return sample

    def describe(self, rows: pa.Table, index: int) -> str:
        place = {name: rows.column(name)[index].as_py() for name in ("file", "group", "row")}
        return f"{self.files[place['file']]} (row group {place['group']}, row {place['row']})"

    def lengths(self, rows: pa.Table, name: str) -> np.ndarray | None:
        """Of one field, int64 by row: its column is read and no other, in batches that are not kept. None of what has
        no length.

        Raises:
            DataError: a file cannot be read.
        """
        if name in self.shapes:
            return np.full(rows.num_rows, self.shapes[name][0], np.int64)
        file, group, row = (rows.column(each).to_numpy() for each in ("file", "group", "row"))
        keys, inverse = np.unique(file.astype(np.int64) << 32 | group, return_inverse=True)
        parts = [keys[at] for at in _runs(keys >> 32, GROUPS_AT_ONCE)]
        found = reading_pool().map(partial(self._lengths_of, self.columns[name]), parts)
        return at_places([each for part in found for each in part], inverse, row)

    def _lengths_of(self, column: str, keys: np.ndarray) -> list[np.ndarray | None]:
        """By row group of one file."""
        path, found = self.files[int(keys[0] >> 32)], []
        try:
            with self.filesystem.open_input_file(path) as handle:
                file = pq.ParquetFile(handle, buffer_size=LENGTHS_BUFFER_BYTES)
                for group in (keys & 0xFFFFFFFF).tolist():
                    rows = _rows_at_once(file.metadata.row_group(group), column)
                    batches = file.iter_batches(rows, row_groups=[group], columns=[column])
                    each = [lengths_of(batch.column(0)) for batch in batches]
                    known = [part for part in each if part is not None]
                    found.append(np.concatenate([np.empty(0, np.int64), *known]) if len(known) == len(each) else None)
        except Exception as error:  # noqa: BLE001 - of a damaged file pyarrow raises anything
            raise DataError(f"cannot read {path}: {one_line(error)}") from None
        return found

    def _row_group(self, key: tuple[int, int]) -> pa.Table:
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        with self.filesystem.open_input_file(self.files[key[0]]) as file:
            parquet = pq.ParquetFile(file, metadata=self._footers.get(key[0]))
            table = parquet.read_row_group(key[1], columns=list({*self.columns.values()}))
        self._cache[key] = table
        self._footers[key[0]] = parquet.metadata
        while len(self._footers) > FOOTERS_KEPT:
            self._footers.popitem(last=False)
        while len(self._cache) > 1 and sum(each.nbytes for each in self._cache.values()) > ROW_GROUP_CACHE_BYTES:
            self._cache.popitem(last=False)
        return table

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": OrderedDict(), "_footers": OrderedDict()}


def at_places(parts: list[np.ndarray | None], part: np.ndarray, row: np.ndarray) -> np.ndarray | None:
    """The numbers in these rows of these parts; None where a part has none."""
    known = [each for each in parts if each is not None]
    if len(known) < len(parts):
        return None
    starts = np.cumsum([0, *(len(each) for each in known)])
    found: np.ndarray = np.concatenate(known)[starts[part] + row]
    return found


def group_bytes(group: pq.RowGroupMetaData, columns: Collection[str]) -> int:
    """About what these columns of a row group take in memory."""
    parts = [
        each for each in map(group.column, range(group.num_columns)) if each.path_in_schema.split(".")[0] in columns
    ]
    return sum(max(each.total_uncompressed_size, 8 * each.num_values) for each in parts)


def groups_in_cache(most_bytes: int) -> int:
    """How many row groups of at most so many bytes are shuffled together: two such windows stay in the cache, since
    batches of one are still being made when the next begins."""
    return int(np.clip(ROW_GROUP_CACHE_BYTES // 2 // max(most_bytes, 1), 1, GROUPS_IN_A_WINDOW))


def _rows_at_once(group: pq.RowGroupMetaData, column: str) -> int:
    """So many that their values are about LENGTHS_BATCH_BYTES."""
    size = group_bytes(group, (column,)) / max(group.num_rows, 1)
    return int(np.clip(LENGTHS_BATCH_BYTES / max(size, 1), 1, LENGTHS_BATCH_ROWS))


def _runs(values: np.ndarray, most: int) -> list[slice]:
    """Of equal values, which are sorted, each of `most` at most."""
    ends = np.append(np.flatnonzero(np.diff(values)) + 1, len(values)).tolist()
    starts = [0, *ends[:-1]]
    return [
        slice(at, min(at + most, end))
        for start, end in zip(starts, ends, strict=True)
        for at in range(start, end, most)
    ]


@cache
def _normal_quantiles() -> np.ndarray:
    """float32 (65536,), the middle of each step."""
    quantile = NormalDist().inv_cdf
    return np.array([quantile((step + 0.5) / 65536) for step in range(65536)], dtype=np.float32)


@dataclass(frozen=True)
class NoiseReader:
    """Noise, made from (seed, id): columns `number`.

    Floats are standard normal: the normal distribution's quantiles at 65,536 equally likely steps (the furthest is
    4.17), seven times as fast as drawing each exactly, and finer than any image file. Whole numbers are equally likely,
    in all of their type or below as many as the field has classes. Where a length varies it is from 1 to `longest`.
    """

    fields: Mapping[str, Field]
    seed: int
    longest: int = 64

    remote = False

    def read(self, rows: pa.Table, index: int) -> Sample:
        number = rows.column("number")[index].as_py()
        bits = np.random.SFC64((self.seed, number))  # seeding takes longer than a small field
        return {name: self._value(each, bits) for name, each in self.fields.items()}

    def _value(self, what: Field, bits: np.random.SFC64) -> Any:
        shape = tuple(1 + int(bits.random_raw() % self.longest) if side is None else side for side in what.shape or ())
        size = math.prod(shape)
        steps = np.atleast_1d(bits.random_raw(-(-size // 4) or 1)).astype("<u8", copy=False).view("<u2")[:size]
        if what.dtype in (TEXT, BYTES):
            letters = (steps % 26 + ord("a")).astype(np.uint8).tobytes()
            return letters.decode() if what.dtype == TEXT else letters
        if what.dtype == "float32":
            return _normal_quantiles().take(steps).reshape(shape)
        if what.dtype in ("float16", BFLOAT16, "float64"):
            return _normal_quantiles().take(steps).astype(np_dtype(what.dtype)).reshape(shape)[()]
        below = len(what.classes) or 65535
        if below > 65535:
            steps = np.atleast_1d(bits.random_raw(size))
        whole = steps % np.asarray(below, steps.dtype)
        return (whole % 2 if what.dtype == "bool" else whole).astype(what.dtype).reshape(shape)[()]

    def describe(self, rows: pa.Table, index: int) -> str:
        return f"synthetic sample {rows.column('number')[index].as_py()}"
