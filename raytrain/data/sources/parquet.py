"""Parquet files."""

from __future__ import annotations

import os

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from raytrain.config.data import ParquetSource
from raytrain.data.sources.files import described, list_files, path_of
from raytrain.data.sources.manifest import Manifest
from raytrain.data.sources.readers import ParquetReader
from raytrain.errors import DataError, one_line


def parquet(
    path: str | os.PathLike[str],
    *,
    image_column: str = "image",
    label_column: str = "label",
    shape: tuple[int, ...] | None = None,
) -> ParquetSource:
    """Parquet files with encoded images (binary) or arrays (lists, with `shape` where they are flat)."""
    return described(
        ParquetSource, "parquet", path=path_of(path), image_column=image_column, label_column=label_column, shape=shape
    )


def open_parquet(source: ParquetSource, classes: tuple[str, ...]) -> Manifest:
    filesystem, root, names = list_files(source.path)
    files = [f"{root}/{name}" for name in names if name.endswith((".parquet", ".pq"))]
    if not files:
        raise DataError(f"{source.path} holds no Parquet files (*.parquet)")
    columns: dict[str, list[np.ndarray]] = {"file": [], "group": [], "row": []}
    labels: list[pa.Array] = []
    starts: list[int] = []
    total = 0
    encoded = True
    for number, path in enumerate(files):
        try:
            with filesystem.open_input_file(path) as handle:
                file = pq.ParquetFile(handle)
                for column in (source.image_column, source.label_column):
                    if column not in file.schema_arrow.names:
                        raise DataError(f"{path} has no column {column!r}; it has {', '.join(file.schema_arrow.names)}")
                encoded = encoded and _is_encoded(file.schema_arrow.field(source.image_column).type)
                labels += file.read(columns=[source.label_column]).column(0).chunks
                sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"cannot read {path}: {one_line(error)}") from None
        for group, size in enumerate(sizes):
            starts.append(total)
            total += size
            columns["file"].append(np.full(size, number, dtype=np.int32))
            columns["group"].append(np.full(size, group, dtype=np.int32))
            columns["row"].append(np.arange(size, dtype=np.int32))
    if total == 0:
        raise DataError(f"{source.path} holds no samples")
    label, classes = _number(pa.chunked_array(labels), classes, source)
    rows = pa.table({"label": label, **{name: np.concatenate(parts) for name, parts in columns.items()}})
    reader = ParquetReader(filesystem, tuple(files), source.image_column, source.shape)
    return Manifest(rows, reader, classes, np.asarray(starts, dtype=np.int64), encoded)


def _is_encoded(column: pa.DataType) -> bool:
    if pa.types.is_struct(column):  # the {bytes, path} of Hugging Face data sets
        place = column.get_field_index("bytes")
        column = column if place < 0 else column.field(place).type
    return bool(pa.types.is_binary(column) or pa.types.is_large_binary(column))


def _number(
    labels: pa.ChunkedArray, classes: tuple[str, ...], source: ParquetSource
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Integer labels as they are; text labels numbered in sorted order."""
    if labels.null_count:
        raise DataError(f"{source.path}: {labels.null_count} labels in column {source.label_column!r} are null")
    if pa.types.is_integer(labels.type):
        numbers = labels.to_numpy().astype(np.int64)
        if numbers.min() < 0:
            raise DataError(f"{source.path}: column {source.label_column!r} holds the negative label {numbers.min()}")
        return numbers, classes
    if not (pa.types.is_string(labels.type) or pa.types.is_large_string(labels.type)):
        raise DataError(f"{source.path}: column {source.label_column!r} is {labels.type}, expected integers or text")
    values = labels.to_pylist()
    classes = classes or tuple(sorted(set(values)))
    number = {name: label for label, name in enumerate(classes)}
    unknown = sorted(set(values) - set(classes))
    if unknown:
        raise DataError(f"class {unknown[0]!r} of {source.path} is not among the training classes")
    return np.array([number[value] for value in values], dtype=np.int64), classes
