"""A `ray.data.Dataset` that is there already: its own operators run once, as they are, on the same CPUs.

Its rows are the samples, and their numbers the ids. Only what gives the same rows in the same order each time it is run
can be gone on with after a restart; see `from_ray`.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from raytrain.data.order import Groups
from raytrain.data.samples.fields import BYTES, IMAGE, Field, Sample, Schema
from raytrain.data.sources.arrow import cells, field_of_type, looks_like_image
from raytrain.data.sources.labels import check_apart, classes_of, label_field, names_classes, numbered
from raytrain.data.sources.manifest import Manifest
from raytrain.data.sources.registry import InProgram
from raytrain.errors import ConfigError, DataError, named

BLOCK_CACHE_BYTES = 256 << 20
TOLD = "the ray.data.Dataset"
GUARANTEE = "each row exactly once an epoch in this run; after a resume, only if the ray.data.Dataset is deterministic"


@dataclass(frozen=True)
class FromRay(InProgram):
    """See `from_ray`."""

    dataset: Any
    columns: Mapping[str, str] | None = None
    masks: tuple[str, ...] = ()
    labels: tuple[str, ...] = ("label",)

    kind = "from_ray"


def from_ray(
    dataset: Any,
    *,
    columns: Mapping[str, str] | None = None,
    masks: Sequence[str] = (),
    labels: Sequence[str] = ("label",),
) -> FromRay:
    """A `ray.data.Dataset`, whose every column is a field.

    It is run once, when the run starts, and its blocks stay in the object stores (which spill to disk); what is random
    in it is drawn once, and not anew each epoch. In this run every row is consumed exactly once an epoch. A run that is
    resumed runs it again, which gives the same rows only if it is deterministic: files read in order, no shuffle
    without a seed. Where it has other numbers of rows, or other labels, the resume is refused.

    Args:
        dataset: it.
        columns: by field, the column; all by their own names where it is left out.
        masks: fields that are masks.
        labels: fields whose text names classes.

    Raises:
        ConfigError: it is no such data set.
    """
    if not callable(getattr(dataset, "to_arrow_refs", None)):
        raise ConfigError(f"from_ray takes a ray.data.Dataset, not {type(dataset).__name__}")
    return FromRay(dataset, None if columns is None else dict(columns), tuple(masks), tuple(labels))


@dataclass(frozen=True)
class BlockReader:
    """Rows of blocks in the object stores: columns `block`, `row`.

    Attributes:
        sizes: rows of each block when it was first made.
    """

    references: tuple[Any, ...]
    sizes: tuple[int, ...]
    columns: Mapping[str, str]
    _cache: OrderedDict[int, pa.Table] = field(default_factory=OrderedDict, compare=False)

    remote = False  # a block is fetched at once

    def read(self, rows: pa.Table, index: int) -> Sample | Exception:
        table = self._table(rows.column("block")[index].as_py())
        return cells(table, rows.column("row")[index].as_py(), self.columns)

    def describe(self, rows: pa.Table, index: int) -> str:
        return f"{TOLD}'s block {rows.column('block')[index].as_py()}, row {rows.column('row')[index].as_py()}"

    def _table(self, number: int) -> pa.Table:
        """
        Raises:
            DataError: it was lost, and made again with other rows.
        """
        import ray

        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        table = ray.get(self.references[number])
        if table.num_rows != self.sizes[number]:
            raise DataError(
                f"block {number} of {TOLD} was lost and made again, with {table.num_rows:,} rows in place of "
                f"{self.sizes[number]:,}: it is not deterministic; write it to Parquet first"
            )
        self._cache[number] = table
        while len(self._cache) > 1 and sum(each.nbytes for each in self._cache.values()) > BLOCK_CACHE_BYTES:
            self._cache.popitem(last=False)
        return table

    def __getstate__(self) -> dict[str, Any]:
        """The references with their owner, without whom no worker finds the blocks: only Ray's own pickle tells it, and
        it keeps them alive as long as this process is connected."""
        import ray

        rays_own: Any = ray.cloudpickle
        return {**self.__dict__, "references": rays_own.dumps(self.references), "_cache": OrderedDict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, references=pickle.loads(state["references"]))


def open_from_ray(source: FromRay, like: Schema | None, seed: int) -> Manifest:
    import ray

    try:
        references = source.dataset.to_arrow_refs()
        about = [_about(source.labels, source.columns, each) for each in references]
        told = ray.get(about)
    except ray.exceptions.RayError as error:
        raise DataError(f"{TOLD} cannot be run: {named(error)[:300]}") from None
    except ValueError as error:  # an operator of the user's, as Ray Data raises it
        raise DataError(f"{TOLD} cannot be run: {named(error)[:300]}") from None
    full = [number for number, (_, types, _) in enumerate(told) if len(types)]
    if not full:
        raise DataError(f"{TOLD} holds no samples")
    types = told[full[0]][1]
    columns = dict(source.columns or {name: name for name in types.names})
    for name, column in columns.items():
        if column not in types.names:
            has = ", ".join(types.names)
            raise ConfigError(f"from_ray: there is no column {column!r} for field `{name}`; it has {has}")
    sizes = tuple(size for size, _, _ in told)
    rows: dict[str, Any] = {
        "block": np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
        "row": np.concatenate([np.arange(size, dtype=np.int32) for size in sizes]),
    }
    fields: dict[str, Field] = {}
    for name, column in columns.items():
        found = field_of_type(types.field(column).type, name)
        if found is None:
            kind = types.field(column).type
            raise ConfigError(f"from_ray: column {column!r} is {kind}, which can be no field; leave it out")
        fields[name] = replace(found, kind="mask") if name in source.masks else found
    known = tuple(n for n, column in columns.items() if n in source.labels and names_classes(types.field(column).type))
    check_apart(known, rows, TOLD)
    for name in known:
        values = pa.chunked_array([part for number in full for part in told[number][2][name].chunks])
        rows[name], classes = numbered(values, classes_of(like, name), columns[name], TOLD)
        fields[name] = label_field(classes)
    read = {name: column for name, column in columns.items() if name not in known}
    reader = BlockReader(tuple(references), sizes, read)
    starts = np.append(0, np.cumsum(sizes))[:-1][np.array(sizes) > 0]
    table = pa.table(rows)
    for name in [name for name in read if fields[name].dtype == BYTES and not fields[name].kind]:
        first = reader.read(table, 0)
        if name == IMAGE or (not isinstance(first, Exception) and looks_like_image(first[name])):
            fields[name] = replace(fields[name], kind="image")
    return Manifest(table, reader, Schema(fields), known, Groups(starts.astype(np.int64)), GUARANTEE)


def _about(labels: Sequence[str], columns: Mapping[str, str] | None, reference: Any) -> Any:
    """Of a block, where it lies: its rows, its columns' types, and the values of the labels."""
    import ray

    @ray.remote(num_cpus=0.1)
    def look(table: pa.Table) -> tuple[int, pa.Schema, dict[str, pa.ChunkedArray]]:
        names = columns or {name: name for name in table.column_names}
        found = {name: table.column(names[name]) for name in labels if names.get(name) in table.column_names}
        return table.num_rows, table.schema.remove_metadata(), found

    return look.remote(reference)
