"""Lists of files: CSV, TSV, or a JSON object a line."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json

from raytrain.config.data import ImageListSource
from raytrain.data.samples.fields import BYTES, Field, Schema
from raytrain.data.sources.arrow import field_of_type
from raytrain.data.sources.files import (
    Listing,
    Place,
    Places,
    check_paths,
    described,
    filesystem_of,
    list_files,
    path_of,
)
from raytrain.data.sources.kinds.image_folder import refuse_unreadable
from raytrain.data.sources.labels import classes_of, label_field, names_classes, numbered
from raytrain.data.sources.manifest import Manifest
from raytrain.data.sources.readers import FileReader
from raytrain.errors import DataError, nearest, one_line


def image_list(
    path: Places,
    *,
    files: Mapping[str, str] | None = None,
    root: Place | None = None,
    masks: Sequence[str] = (),
    labels: Sequence[str] = ("label",),
    limit: int | None = None,
    weights: str | None = None,
) -> ImageListSource:
    """A list of files, CSV, TSV or JSON lines, whose every column is a field.

    Args:
        files: by field, the column with the path of its file (default `{"image": "path"}`).
        root: of the files; the folder of the list where it is left out.
        masks: of `files`, those that are masks.
        labels: columns whose text names classes.
        limit, weights: see `raytrain.config.data.BuiltIn`.
    """
    given: dict[str, Any] = {} if files is None else {"files": dict(files)}
    return described(
        ImageListSource,
        "image_list",
        path=path_of(path),
        root=path_of(root),
        masks=tuple(masks),
        labels=tuple(labels),
        limit=limit,
        weights=weights,
        **given,
    )


def open_image_list(source: ImageListSource, like: Schema | None, seed: int) -> Manifest:
    import pyarrow.compute as pc  # takes a while, for every start

    listing = list_files(source.path)
    lists = [listing.path(name) for name in listing.names]
    told = listing.told
    tables = _read(listing, lists, source)
    for path, table in zip(lists, tables, strict=True):
        for column in {*source.files.values()} & {*table.column_names}:
            check_paths(
                table.column(column).cast(pa.string()), f"{path}, column {column!r}", foreign=not listing.is_local
            )
    table, root = _together(tables, lists, source)
    for field, column in source.files.items():
        if column not in table.column_names:
            near = nearest(column, table.column_names)
            raise DataError(
                f"{told} has no column {column!r} for field `{field}`{near}; it has {', '.join(table.column_names)}"
            )
    filesystem, root = filesystem_of(source.root) if source.root else (listing.filesystem, root)
    fields: dict[str, Field] = {}
    columns: dict[str, Any] = {}
    for name, column in source.files.items():
        paths = table.column(column).cast(pa.string())
        nothing = paths.null_count + (pc.sum(pc.equal(paths, "")).as_py() or 0)
        if nothing:
            raise DataError(f"{told}: {nothing} rows have nothing in column {column!r}")
        columns[f"{name}.path"] = paths
        fields[name] = Field(BYTES, (), "mask" if name in source.masks else "image")
    for name in table.column_names:
        if name in source.files.values():
            continue
        if name in columns or name in fields:
            raise DataError(f"{told}: column {name!r} has the name of a field of `files`; rename one of the two")
        values = table.column(name)
        if pa.types.is_temporal(values.type):  # as it is written
            values = values.cast(pa.string())
        if name in source.labels and names_classes(values.type):
            columns[name], classes = numbered(values, classes_of(like, name), name, told)
            fields[name] = label_field(classes)
        else:
            columns[name], fields[name] = values, _field(values, name, told)
    known = tuple(name for name in fields if name not in source.files)
    reader = FileReader(filesystem, root, {name: f"{name}.path" for name in source.files})
    for name in reader.columns.values():
        whole = [reader.path(each) for each in columns[name].to_pylist()]
        refuse_unreadable(Listing(filesystem, "", [], told), whole)
    return Manifest(pa.table(columns), reader, Schema(fields), known)


def _together(tables: list[pa.Table], lists: list[str], source: ImageListSource) -> tuple[pa.Table, str]:
    """As one list, and the folder that its paths start from.

    Raises:
        DataError: they do not go together.
    """
    folders = [path.rpartition("/")[0] for path in lists]
    root = os.path.commonpath(folders)
    for number, folder in enumerate(folders):
        if folder != root and source.root is None:  # each list's paths start from its own folder
            tables[number] = _below(tables[number], folder[len(root) :].lstrip("/"), source)
    try:
        return pa.concat_tables(tables, promote_options="permissive"), root
    except pa.ArrowException as error:
        told = ", ".join(lists)
        raise DataError(f"the lists {told} have different columns: {one_line(error)}") from None


def _below(table: pa.Table, folder: str, source: ImageListSource) -> pa.Table:
    for column in {*source.files.values()} & {*table.column_names}:
        paths = [p if not p or p.startswith("/") else f"{folder}/{p}" for p in table.column(column).to_pylist()]
        place = table.column_names.index(column)
        table = table.set_column(place, column, pa.array(paths, pa.string()))
    return table


def _read(listing: Listing, lists: list[str], source: ImageListSource) -> list[pa.Table]:
    """
    Raises:
        DataError: another kind of file, or not what its name says.
    """
    tables = []
    for path in lists:
        suffix = path.lower().rpartition(".")[2]
        try:
            with listing.filesystem.open_input_stream(path) as stream:
                if suffix in ("jsonl", "ndjson", "json"):
                    tables.append(pyarrow.json.read_json(stream))
                elif suffix in ("csv", "tsv", "txt"):
                    options = pyarrow.csv.ParseOptions(delimiter="," if suffix == "csv" else "\t")
                    paths = dict.fromkeys(source.files.values(), pa.string())  # `007` is no number there
                    convert = pyarrow.csv.ConvertOptions(column_types=paths)
                    tables.append(pyarrow.csv.read_csv(stream, parse_options=options, convert_options=convert))
                else:
                    raise DataError(f"{path} is no list of files: its name must end in .csv, .tsv or .jsonl")
            tables[-1].column_names  # noqa: B018 - which are no UTF-8 either where the first line is not
        except UnicodeDecodeError as error:
            raise DataError(f"cannot read {path}: not UTF-8 ({error.reason})") from None
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"cannot read {path}: {one_line(error)}") from None
    return tables


def _field(column: pa.ChunkedArray, name: str, told: str) -> Field:
    if column.null_count:
        raise DataError(f"{told}: {column.null_count} rows have nothing in column {name!r}")
    found = field_of_type(column.type, name)
    if found is None or found.dtype == BYTES:
        what = column.type if found is None else "not UTF-8"
        raise DataError(f"{told}: column {name!r} is {what}; a list has numbers, text and lists of numbers")
    return found
