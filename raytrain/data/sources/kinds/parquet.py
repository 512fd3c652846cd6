"""Parquet files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from raytrain.config.data import ParquetSource
from raytrain.data.order import Groups
from raytrain.data.samples.fields import IMAGE, Field, Schema
from raytrain.data.sources.arrow import cell, field_of_type, looks_like_image
from raytrain.data.sources.cache import made_once
from raytrain.data.sources.files import Listing, Places, described, list_files, path_of
from raytrain.data.sources.labels import check_apart, classes_of, label_field, names_classes, numbered
from raytrain.data.sources.manifest import Manifest
from raytrain.data.sources.readers import ParquetReader, group_bytes, groups_in_cache
from raytrain.errors import DataError, nearest, one_line


def parquet(
    path: Places,
    *,
    columns: Mapping[str, str] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    masks: Sequence[str] = (),
    labels: Sequence[str] = ("label",),
    limit: int | None = None,
    weights: str | None = None,
) -> ParquetSource:
    """Parquet files, whose every column is a field: numbers, text, lists, tensors, bytes.

    Args:
        columns: by field, the column; all by their own names where it is left out.
        shapes: of fields that are flat lists.
        masks: fields that are masks.
        labels: fields whose text names classes.
        limit, weights: see `raytrain.config.data.BuiltIn`.
    """
    return described(
        ParquetSource,
        "parquet",
        path=path_of(path),
        columns=None if columns is None else dict(columns),
        shapes=dict(shapes or {}),
        masks=tuple(masks),
        labels=tuple(labels),
        limit=limit,
        weights=weights,
    )


def open_parquet(source: ParquetSource, like: Schema | None, seed: int) -> Manifest:
    listing = list_files(source.path)
    files = listing.ending(".parquet", ".pq")
    if not files:
        raise DataError(f"{listing.told} holds no Parquet files (*.parquet)")
    return made_once(source, listing.filesystem, files, like, lambda: _made(source, listing, files, like))


def _made(source: ParquetSource, listing: Listing, files: list[str], like: Schema | None) -> Manifest:
    filesystem = listing.filesystem
    columns: dict[str, str] = dict(source.columns or {})
    beforehand: dict[str, list[pa.Array]] = {}
    places: dict[str, list[np.ndarray]] = {"file": [], "group": [], "row": []}
    starts: list[int] = []
    total, types, longest = 0, None, 0
    for number, path in enumerate(files):
        try:
            with filesystem.open_input_file(path) as handle:
                file = pq.ParquetFile(handle)
                if types is None:
                    types = file.schema_arrow
                    columns = columns or {name: name for name in types.names}
                    if not columns:
                        raise DataError(f"{path} has no columns")
                    beforehand = {name: [] for name in columns if _is_known(name, columns[name], types, source)}
                for column in columns.values():
                    if column not in file.schema_arrow.names:
                        names = file.schema_arrow.names
                        raise DataError(
                            f"{path} has no column {column!r}{nearest(column, names)}; it has {', '.join(names)}"
                        )
                for name, chunks in beforehand.items():
                    chunks += file.read(columns=[columns[name]]).column(0).chunks
                sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
                kept = {column for name, column in columns.items() if name not in beforehand}
                longest = max([longest, *(group_bytes(file.metadata.row_group(g), kept) for g in range(len(sizes)))])
        except DataError:
            raise
        except Exception as error:  # noqa: BLE001 - of a damaged file pyarrow raises anything
            raise DataError(f"cannot read {path}: {one_line(error)}") from None
        for group, size in enumerate(sizes):
            starts.append(total)
            total += size
            places["file"].append(np.full(size, number, dtype=np.int32))
            places["group"].append(np.full(size, group, dtype=np.int32))
            places["row"].append(np.arange(size, dtype=np.int32))
    assert types is not None
    if total == 0:
        raise DataError(f"{listing.told} holds no samples")
    rows, fields = (
        {name: np.concatenate(parts) for name, parts in places.items()},
        _fields(columns, types, source, listing.told),
    )
    check_apart(beforehand, rows, listing.told)
    for name, chunks in beforehand.items():
        values = pa.chunked_array(chunks)
        if name in source.labels and names_classes(values.type):
            rows[name], classes = numbered(values, classes_of(like, name), columns[name], listing.told)
            fields[name] = label_field(classes)
        else:
            rows[name] = values
    read = {name: column for name, column in columns.items() if name not in beforehand}
    reader = ParquetReader(filesystem, tuple(files), read, source.shapes)
    schema = Schema(_with_images(fields, reader, rows))
    groups = Groups(np.asarray(starts, dtype=np.int64), groups_in_cache(longest))
    return Manifest(pa.table(rows), reader, schema, tuple(beforehand), groups)


def _is_known(name: str, column: str, types: pa.Schema, source: ParquetSource) -> bool:
    """Whether its values are read beforehand."""
    place = types.get_field_index(column)
    return name == source.weights or (name in source.labels and place >= 0 and names_classes(types.field(place).type))


def _fields(columns: Mapping[str, str], types: pa.Schema, source: ParquetSource, told: str) -> dict[str, Field]:
    fields = {}
    for name, column in columns.items():
        kind = types.field(column).type
        found = field_of_type(kind, name)
        if found is None:
            raise DataError(f"{told}: column {column!r} is {kind}, which can be no field; leave it out with `columns`")
        if name in source.shapes:
            shape = source.shapes[name]
            found = replace(found, shape=shape, kind="image" if name == IMAGE and len(shape) == 3 else found.kind)
        fields[name] = replace(found, kind="mask") if name in source.masks else found
    return fields


def _with_images(fields: dict[str, Field], reader: ParquetReader, rows: Mapping[str, np.ndarray]) -> dict[str, Field]:
    """Bytes are images where the first row's look like one, or their name says so."""
    encoded = [name for name in reader.columns if fields[name].dtype == "bytes" and not fields[name].kind]
    if not encoded:
        return fields
    number = int(rows["file"][0])
    try:
        first = reader._row_group((number, int(rows["group"][0])))
        looks = {name: looks_like_image(cell(first.column(reader.columns[name])[0])) for name in encoded}
    except Exception as error:  # noqa: BLE001 - of a damaged file pyarrow raises anything
        raise DataError(f"cannot read {reader.files[number]}: {one_line(error)}") from None
    for name in encoded:
        if name == IMAGE or looks[name]:
            fields[name] = replace(fields[name], kind="image")
    return fields
