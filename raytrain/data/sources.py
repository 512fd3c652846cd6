"""From the description of a data set to its manifest. Runs once, in the driver.

A source is a frozen value; nothing is listed or opened before `open_manifest`. Paths are local or `s3://…`, `gs://…`
(whatever pyarrow's file systems know).
"""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from raytrain.config import ImageFolderSource, ParquetSource, Source, SyntheticSource, WebDatasetSource
from raytrain.data.manifest import FileReader, Manifest, NoiseReader, ParquetReader, ShardReader
from raytrain.errors import DataError, one_line
from raytrain.job_file import section_of

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm"})


def image_folder(path: str) -> ImageFolderSource:
    """Images in class folders: `path/<class name>/<image>`."""
    return _described(ImageFolderSource, "image_folder", path=_path(path))


def parquet(
    path: str, *, image_column: str = "image", label_column: str = "label", shape: tuple[int, ...] | None = None
) -> ParquetSource:
    """Parquet files with encoded images (binary) or arrays (lists, with `shape` where they are flat)."""
    return _described(
        ParquetSource, "parquet", path=_path(path), image_column=image_column, label_column=label_column, shape=shape
    )


def webdataset(path: str, *, label_extension: str = "cls") -> WebDatasetSource:
    """Tar shards in a folder (or one tar file)."""
    return _described(WebDatasetSource, "webdataset", path=_path(path), label_extension=label_extension)


def synthetic(
    num_samples: int, *, shape: tuple[int, int, int] = (224, 224, 3), num_classes: int = 1000
) -> SyntheticSource:
    """Normal noise made from (seed, id), labelled `id % num_classes`."""
    return _described(SyntheticSource, "synthetic", num_samples=num_samples, shape=shape, num_classes=num_classes)


def _path(path: Any) -> Any:
    return os.fspath(path) if isinstance(path, os.PathLike) else path


def _described(source: Any, kind: str, **options: Any) -> Any:
    """Raises ConfigError as of a job file."""
    return section_of(source, {"kind": kind, **options}, kind)


def open_manifest(source: Source, *, seed: int = 0, classes: tuple[str, ...] = ()) -> Manifest:
    """List what the source holds.

    Args:
        source: the description.
        seed: of a synthetic source.
        classes: names by label, of the training split, so that a validation split numbers them alike.

    Raises:
        DataError: nothing there, a class folder without images, an unreadable file, a missing column or label.
    """
    match source:
        case ImageFolderSource():
            manifest = _open_image_folder(source, classes)
        case ParquetSource():
            manifest = _open_parquet(source, classes)
        case WebDatasetSource():
            manifest = _open_webdataset(source)
        case SyntheticSource():
            labels = pa.array(np.arange(source.num_samples, dtype=np.int64) % source.num_classes)
            manifest = Manifest(pa.table({"label": labels}), NoiseReader(source.shape, seed))
    if manifest.num_samples == 0:
        raise DataError(f"{getattr(source, 'path', source.kind)} holds no samples")
    return manifest


def _filesystem(path: str) -> tuple[pyarrow.fs.FileSystem, str]:
    try:
        if "://" in path:
            return pyarrow.fs.FileSystem.from_uri(path)
        return pyarrow.fs.LocalFileSystem(), os.path.abspath(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot open {path}: {one_line(error)}") from None


def _list(path: str) -> tuple[pyarrow.fs.FileSystem, str, list[str]]:
    """Every file below `path`, hidden ones left out, sorted."""
    filesystem, root = _filesystem(path)
    try:
        info = filesystem.get_file_info(root)
        if info.type == pyarrow.fs.FileType.NotFound:
            raise DataError(f"{path} does not exist; check the path in the job file (data.*.path)")
        if info.is_file:
            return filesystem, str(PurePosixPath(root).parent), [PurePosixPath(root).name]
        if isinstance(filesystem, pyarrow.fs.LocalFileSystem):  # pyarrow leaves out links to nothing
            walk = os.walk(root, followlinks=True)
            paths = [os.path.join(folder, name) for folder, _, files in walk for name in files]
        else:
            found = filesystem.get_file_info(pyarrow.fs.FileSelector(root, recursive=True))
            paths = [entry.path for entry in found if entry.type != pyarrow.fs.FileType.Directory]
    except OSError as error:
        raise DataError(f"cannot list {path}: {one_line(error)}") from None
    names = (path[len(root) :].lstrip("/") for path in paths)
    return filesystem, root, sorted(n for n in names if not any(p.startswith(".") for p in n.split("/")))


def _open_image_folder(source: ImageFolderSource, classes: tuple[str, ...]) -> Manifest:
    filesystem, root, names = _list(source.path)
    images = [n for n in names if "/" in n and PurePosixPath(n).suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise DataError(
            f"{source.path} holds no images in class folders; expected {source.path}/<class name>/<image>.jpg"
        )
    found = sorted({name.split("/", 1)[0] for name in images})
    folders = filesystem.get_file_info(pyarrow.fs.FileSelector(root))
    empty = sorted(
        f.base_name
        for f in folders
        if f.type == pyarrow.fs.FileType.Directory and not f.base_name.startswith(".") and f.base_name not in found
    )
    if empty:
        raise DataError(f"class folder {source.path}/{empty[0]} holds no images; add some or remove the folder")
    unknown = sorted(set(found) - set(classes)) if classes else []
    if unknown:
        raise DataError(f"class {unknown[0]!r} of {source.path} is not among the training classes")
    if isinstance(filesystem, pyarrow.fs.LocalFileSystem):
        _refuse_unreadable(root, images)
    classes = classes or tuple(found)
    number = {name: label for label, name in enumerate(classes)}
    labels = np.fromiter((number[name.split("/", 1)[0]] for name in images), dtype=np.int64, count=len(images))
    return Manifest(pa.table({"label": labels, "key": pa.array(images)}), FileReader(filesystem, root), classes)


def _refuse_unreadable(root: str, names: list[str]) -> None:
    for name in names:
        path = f"{root}/{name}"
        if not os.path.isfile(path):
            raise DataError(f"cannot read {path}: not a file, or a link to nothing")
        if not os.access(path, os.R_OK):
            raise DataError(f"cannot read {path}: permission denied")


def _open_parquet(source: ParquetSource, classes: tuple[str, ...]) -> Manifest:
    filesystem, root, names = _list(source.path)
    files = [f"{root}/{name}" for name in names if name.endswith((".parquet", ".pq"))]
    if not files:
        raise DataError(f"{source.path} holds no Parquet files (*.parquet)")
    columns: dict[str, list[np.ndarray]] = {"file": [], "group": [], "row": []}
    labels: list[pa.Array] = []
    starts: list[int] = []
    total = 0
    for number, path in enumerate(files):
        try:
            with filesystem.open_input_file(path) as handle:
                file = pq.ParquetFile(handle)
                for column in (source.image_column, source.label_column):
                    if column not in file.schema_arrow.names:
                        raise DataError(f"{path} has no column {column!r}; it has {', '.join(file.schema_arrow.names)}")
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
    return Manifest(rows, reader, classes, np.asarray(starts, dtype=np.int64))


def _number(labels: pa.ChunkedArray, classes: tuple[str, ...], source: ParquetSource) -> tuple[np.ndarray, tuple]:
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


def _open_webdataset(source: WebDatasetSource) -> Manifest:
    filesystem, root, names = _list(source.path)
    shards = [f"{root}/{name}" for name in names if name.endswith(".tar")]
    if not shards:
        raise DataError(f"{source.path} holds no tar shards (*.tar)")
    columns: dict[str, list] = {"label": [], "shard": [], "key": [], "offset": [], "size": []}
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
    return Manifest(rows, ShardReader(filesystem, tuple(shards)))


def _samples_of(tar: tarfile.TarFile, label_extension: str) -> dict[str, dict]:
    samples: dict[str, dict] = {}
    for member in tar:
        if not member.isfile():
            continue
        folder, _, base = member.name.rpartition("/")
        stem, _, extension = base.partition(".")
        parts = samples.setdefault(f"{folder}/{stem}".lstrip("/"), {})
        if extension == label_extension:
            parts["label"] = _label(tar.extractfile(member).read(), member.name)
        elif f".{extension.lower()}" in IMAGE_SUFFIXES:
            parts["image"] = (member.offset_data, member.size)
    return samples


def _label(text: bytes, name: str) -> int:
    try:
        value = json.loads(text)
        return int(value["label"] if isinstance(value, dict) else value)
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{name} is not an integer label or JSON with a `label`: {text[:40]!r}") from None
