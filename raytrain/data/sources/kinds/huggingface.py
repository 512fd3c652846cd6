"""Hugging Face's `datasets` on disk, as `save_to_disk` leaves them: Arrow files. That package is not needed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs

from raytrain.config.data import HuggingFaceSource
from raytrain.data.samples.fields import BYTES, IMAGE, Field, Sample, Schema
from raytrain.data.sources.arrow import cell, cells, field_of_type, lengths_of, looks_like_image
from raytrain.data.sources.files import Place, check_paths, described, filesystem_of, path_of
from raytrain.data.sources.labels import check_alike, check_apart, classes_of, label_field, names_classes, numbered
from raytrain.data.sources.manifest import Manifest
from raytrain.data.sources.readers import at_places
from raytrain.errors import DataError, looked_for, nearest, one_line

STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"


def huggingface(
    path: Place,
    *,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    masks: Sequence[str] = (),
    labels: Sequence[str] = ("label",),
    limit: int | None = None,
    weights: str | None = None,
) -> HuggingFaceSource:
    """A data set that `save_to_disk` has written; every column is a field.

    Args:
        split: of a `DatasetDict`.
        columns: by field, the column; all by their own names where it is left out.
        masks: fields that are masks.
        labels: fields whose text names classes; a `ClassLabel` has names of its own.
        limit, weights: see `raytrain.config.data.BuiltIn`.
    """
    return described(
        HuggingFaceSource,
        "huggingface",
        path=path_of(path),
        split=split,
        columns=None if columns is None else dict(columns),
        masks=tuple(masks),
        labels=tuple(labels),
        limit=limit,
        weights=weights,
    )


@dataclass(frozen=True)
class ArrowReader:
    """Rows of Arrow files: columns `file`, `row`. A local file is mapped, another one is read whole, once a process."""

    filesystem: pyarrow.fs.FileSystem
    files: tuple[str, ...]
    columns: Mapping[str, str]
    _tables: dict[int, pa.Table] = field(default_factory=dict, compare=False)

    remote = False  # a file is read at once

    def read(self, rows: pa.Table, index: int) -> Sample | Exception:
        table = self.table(rows.column("file")[index].as_py())
        return cells(table, rows.column("row")[index].as_py(), self.columns)

    def describe(self, rows: pa.Table, index: int) -> str:
        return f"{self.files[rows.column('file')[index].as_py()]} (row {rows.column('row')[index].as_py()})"

    def table(self, number: int) -> pa.Table:
        """
        Raises:
            OSError, ArrowException: it cannot be read.
        """
        if number not in self._tables:
            path = self.files[number]
            if isinstance(self.filesystem, pyarrow.fs.LocalFileSystem):
                source: Any = pa.memory_map(path)
            else:
                with self.filesystem.open_input_stream(path) as stream:
                    source = pa.py_buffer(stream.read())
            self._tables[number] = pa.ipc.open_stream(source).read_all()
        return self._tables[number]

    def check(self, number: int) -> pa.Table:
        """A table whose every offset lies within it: Arrow itself would end the process at the first that does not.

        Raises:
            OSError, ArrowException: it cannot be read, or is damaged.
        """
        table = self.table(number)
        for column in table.columns:
            plain = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}.get(column.type)
            (column if plain is None else column.cast(plain)).validate(full=True)  # text is read for each sample
        return table

    def lengths(self, rows: pa.Table, name: str) -> np.ndarray | None:
        """Of one field, int64 by row; None of what has no length."""
        each = [lengths_of(self.table(number).column(self.columns[name])) for number in range(len(self.files))]
        return at_places(each, rows.column("file").to_numpy(), rows.column("row").to_numpy())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": {}}


def open_huggingface(source: HuggingFaceSource, like: Schema | None, seed: int) -> Manifest:
    filesystem, root = filesystem_of(source.path)
    root = _of_split(source, filesystem, root)
    state = _json(filesystem, f"{root}/{STATE}", source.path)
    if state.get("_indices_data_files"):
        raise DataError(f"{source.path} was selected from or shuffled; call flatten_indices() before save_to_disk()")
    names = _names_of(state.get("_data_files") or [], source.path)
    if not names:
        raise DataError(f"{source.path} names no data files in {STATE}")
    check_paths(names, f"{source.path}/{STATE}", foreign=True)  # who wrote it named files beside it
    features = _features_of(_json(filesystem, f"{root}/{INFO}", source.path))
    reader = ArrowReader(filesystem, tuple(f"{root}/{name}" for name in names), {})
    tables = []
    for number, path in enumerate(reader.files):
        try:
            tables.append(reader.check(number))
        except Exception as error:  # noqa: BLE001 - of a damaged file pyarrow raises anything
            raise DataError(f"cannot read {path}: {one_line(error)}") from None
    types = tables[0].schema
    columns = dict(source.columns or {name: name for name in types.names})
    if not columns:
        raise DataError(f"{source.path} has no columns")
    for column in columns.values():
        if column not in types.names:
            near = nearest(column, types.names)
            raise DataError(f"{source.path} has no column {column!r}{near}; it has {', '.join(types.names)}")
    rows: dict[str, Any] = {
        "file": np.repeat(np.arange(len(tables), dtype=np.int32), [len(table) for table in tables]),
        "row": np.concatenate([np.arange(len(table), dtype=np.int64) for table in tables]),
    }
    fields = {name: _field(name, column, types, features, source) for name, column in columns.items()}
    named = {name for name in fields if name in source.labels and names_classes(types.field(columns[name]).type)}
    known = tuple(name for name in fields if name in named or name == source.weights)
    check_apart(known, rows, source.path)
    for name in known:
        chunks = [chunk for table in tables for chunk in table.column(columns[name]).chunks]
        values = pa.chunked_array(chunks, types.field(columns[name]).type)
        rows[name] = values
        if name in named:
            told = features.get(columns[name], {}).get("names")
            own = tuple(map(str, told)) if isinstance(told, list) else ()
            check_alike(own, classes_of(like, name), f"{source.path}: column {columns[name]!r}")
            rows[name], classes = numbered(values, classes_of(like, name), columns[name], source.path)
            fields[name] = label_field(classes or own)
    read = {name: column for name, column in columns.items() if name not in known}
    _tell_images(fields, read, tables[0])
    return Manifest(pa.table(rows), replace(reader, columns=read), Schema(fields), known)


def _names_of(files: Any, told: str) -> list[str]:
    """
    Raises:
        DataError: they are not told as `save_to_disk` does.
    """
    names: list[Any] = [None]
    if isinstance(files, list):
        names = [each.get("filename") if isinstance(each, dict) else None for each in files]
    for name in names:
        if not isinstance(name, str) or not name.isprintable():
            raise DataError(f"{told} is no data set that `save_to_disk` has written: {STATE} names a file {name!r}")
    return names


def _features_of(info: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    features = info.get("features")
    return {name: each for name, each in features.items() if type(each) is dict} if type(features) is dict else {}


def _of_split(source: HuggingFaceSource, filesystem: pyarrow.fs.FileSystem, root: str) -> str:
    """The folder of the data set, or of one of several."""
    if filesystem.get_file_info(root).type == pyarrow.fs.FileType.NotFound:
        raise DataError(f"{source.path} does not exist{looked_for(source.path)}; check the path in the job file")
    if filesystem.get_file_info(f"{root}/{SPLITS}").type == pyarrow.fs.FileType.NotFound:
        if source.split is not None:
            raise DataError(f"{source.path} is one data set and has no splits; leave `split` out")
        return root
    splits = [str(each) for each in _json(filesystem, f"{root}/{SPLITS}", source.path).get("splits") or ()]
    if source.split not in splits:
        near = nearest(source.split or "", splits)
        raise DataError(f"{source.path} holds several data sets; give `split`, one of {', '.join(splits)}{near}")
    return f"{root}/{source.split}"


def _json(filesystem: pyarrow.fs.FileSystem, path: str, told: str) -> dict[str, Any]:
    try:
        with filesystem.open_input_stream(path) as stream:
            tree = json.loads(stream.read())
        if not isinstance(tree, dict):
            raise ValueError("it is no JSON object")
        return tree
    except FileNotFoundError:
        raise DataError(
            f"{told} is no data set that `save_to_disk` has written: it has no {path.rpartition('/')[2]}"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot read {path}: {one_line(error)}") from None


def _field(name: str, column: str, types: pa.Schema, features: Mapping[str, Any], source: HuggingFaceSource) -> Field:
    kind = types.field(column).type
    found = field_of_type(kind, name)
    if found is None:
        raise DataError(
            f"{source.path}: column {column!r} is {kind}, which can be no field; leave it out with `columns`"
        )
    if name in source.masks:
        return replace(found, kind="mask")
    if found.dtype == BYTES and features.get(column, {}).get("_type") == "Image":
        return replace(found, kind="image")
    return found


def _tell_images(fields: dict[str, Field], columns: Mapping[str, str], first: pa.Table) -> None:
    """Bytes are images where the first row's look like one, or their name says so."""
    for name, column in columns.items():
        plain = fields[name].dtype == BYTES and not fields[name].kind and len(first)
        if plain and (name == IMAGE or looks_like_image(cell(first.column(column)[0]))):
            fields[name] = replace(fields[name], kind="image")
