"""Tar shards in the form of WebDataset."""

from __future__ import annotations

import json
import os
import tarfile
from typing import IO, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.fs

from raytrain.config.data import WebDatasetSource
from raytrain.data.sources.files import described, list_files, path_of
from raytrain.data.sources.image_folder import IMAGE_SUFFIXES
from raytrain.data.sources.manifest import Manifest
from raytrain.data.sources.readers import ShardReader
from raytrain.errors import DataError, one_line


def webdataset(path: str | os.PathLike[str], *, label_extension: str = "cls") -> WebDatasetSource:
    """Tar shards in a folder (or one tar file)."""
    return described(WebDatasetSource, "webdataset", path=path_of(path), label_extension=label_extension)


def open_webdataset(source: WebDatasetSource) -> Manifest:
    filesystem, root, names = list_files(source.path)
    shards = [f"{root}/{name}" for name in names if name.endswith(".tar")]
    if not shards:
        raise DataError(f"{source.path} holds no tar shards (*.tar)")
    columns: dict[str, list[Any]] = {"label": [], "shard": [], "key": [], "offset": [], "size": []}
    for number, path in enumerate(shards):
        try:
            with filesystem.open_input_file(path) as handle, tarfile.open(fileobj=handle) as tar:
                samples = _samples_of(tar, source.label_extension)
        except (OSError, tarfile.TarError) as error:
            raise DataError(f"cannot read {path}: {one_line(error)}") from None
        for key, parts in samples.items():
            if "image" not in parts or "label" not in parts:
                missing = "image" if "image" not in parts else f".{source.label_extension} label"
                raise DataError(f"{path}: sample {key!r} has no {missing}")
            for column, value in zip(columns, (parts["label"], number, key, *parts["image"]), strict=True):
                columns[column].append(value)
    rows = pa.table({k: v if k == "key" else np.asarray(v, dtype=np.int64) for k, v in columns.items()})
    return Manifest(rows, ShardReader(filesystem, tuple(shards)), encoded=True)


def _samples_of(tar: tarfile.TarFile, label_extension: str) -> dict[str, dict[str, Any]]:
    samples: dict[str, dict[str, Any]] = {}
    for member in tar:
        if not member.isfile():
            continue
        folder, _, base = member.name.rpartition("/")
        stem, _, extension = base.partition(".")
        parts = samples.setdefault(f"{folder}/{stem}".lstrip("/"), {})
        if extension == label_extension:
            parts["label"] = _label(cast(IO[bytes], tar.extractfile(member)).read(), member.name)
        elif f".{extension.lower()}" in IMAGE_SUFFIXES:
            parts["image"] = (member.offset_data, member.size)
    return samples


def _label(text: bytes, name: str) -> int:
    try:
        value = json.loads(text)
        return int(value["label"] if isinstance(value, dict) else value)
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{name} is not an integer label or JSON with a `label`: {text[:40]!r}") from None
