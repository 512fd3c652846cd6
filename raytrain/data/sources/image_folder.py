"""Images in a folder a class."""

from __future__ import annotations

import os
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.fs

from raytrain.config.data import ImageFolderSource
from raytrain.data.sources.files import described, list_files, path_of
from raytrain.data.sources.manifest import Manifest
from raytrain.data.sources.readers import FileReader
from raytrain.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm"})


def image_folder(path: str | os.PathLike[str]) -> ImageFolderSource:
    """Images in class folders: `path/<class name>/<image>`."""
    return described(ImageFolderSource, "image_folder", path=path_of(path))


def open_image_folder(source: ImageFolderSource, classes: tuple[str, ...]) -> Manifest:
    filesystem, root, names = list_files(source.path)
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
    rows = pa.table({"label": labels, "key": pa.array(images)})
    return Manifest(rows, FileReader(filesystem, root), classes, encoded=True)


def _refuse_unreadable(root: str, names: list[str]) -> None:
    for name in names:
        path = f"{root}/{name}"
        if not os.path.isfile(path):
            raise DataError(f"cannot read {path}: not a file, or a link to nothing")
        if not os.access(path, os.R_OK):
            raise DataError(f"cannot read {path}: permission denied")
