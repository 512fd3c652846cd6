"""Images in a folder a class."""

from __future__ import annotations

import os

import numpy as np
import pyarrow as pa
import pyarrow.fs

from raytrain.config.data import ImageFolderSource
from raytrain.data.samples.fields import BYTES, Field, Schema
from raytrain.data.sources.files import Listing, Place, below, counted, described, path_of
from raytrain.data.sources.labels import LABEL, classes_of, label_field
from raytrain.data.sources.manifest import Manifest
from raytrain.data.sources.readers import FileReader
from raytrain.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")


def image_folder(path: Place, *, limit: int | None = None, weights: str | None = None) -> ImageFolderSource:
    """Images in class folders: `path/<class name>/<image>`, as `image` (encoded) and `label`.

    Args:
        limit, weights: see `raytrain.config.data.BuiltIn`.
    """
    return described(ImageFolderSource, "image_folder", path=path_of(path), limit=limit, weights=weights)


def open_image_folder(source: ImageFolderSource, like: Schema | None, seed: int) -> Manifest:
    listing = below(source.path)
    images = [name for name in listing.names if "/" in name and name.lower().endswith(IMAGE_SUFFIXES)]
    if not images:
        raise DataError(
            f"{source.path} holds no images in class folders; expected {source.path}/<class name>/<image>.jpg (images "
            "without classes: kind: image_list, a CSV file with their paths in the column `path`)"
        )
    found = sorted({name.split("/", 1)[0] for name in images})
    folders = listing.filesystem.get_file_info(pyarrow.fs.FileSelector(listing.root))
    empty = sorted(
        f.base_name
        for f in folders
        if f.type == pyarrow.fs.FileType.Directory and not f.base_name.startswith(".") and f.base_name not in found
    )
    if empty:
        raise DataError(f"class folder {source.path}/{empty[0]} holds no images; add some or remove the folder")
    classes = classes_of(like, LABEL)
    unknown = sorted(set(found) - set(classes)) if classes else []
    if unknown:
        raise DataError(f"class {unknown[0]!r} of {source.path} is not among the training classes")
    refuse_unreadable(listing, images)
    classes = classes or tuple(found)
    number = {name: label for label, name in enumerate(classes)}
    labels = np.fromiter((number[name.split("/", 1)[0]] for name in images), dtype=np.int64, count=len(images))
    rows = pa.table({LABEL: labels, "key": pa.array(images)})
    schema = Schema({"image": Field(BYTES, (), "image"), LABEL: label_field(classes)})
    return Manifest(rows, FileReader(listing.filesystem, listing.root, {"image": "key"}), schema, known=(LABEL,))


def refuse_unreadable(listing: Listing, names: list[str]) -> None:
    """
    Raises:
        DataError: local files that cannot be read, before an hour has been spent on others.
    """
    if not listing.is_local:
        return
    bad = []
    for name in counted(names, f"looking at {listing.told}", "files"):
        path = listing.path(name)
        if not os.path.isfile(path):
            bad.append(f"{path}: not a file, or a link to nothing")
        elif not os.access(path, os.R_OK):
            bad.append(f"{path}: permission denied")
    if bad:
        more = f" (and {len(bad) - 1:,} more)" if len(bad) > 1 else ""
        raise DataError(f"cannot read {bad[0]}{more}; mend it, or take it out of the data")
