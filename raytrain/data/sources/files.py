"""Listing and reading files, local or remote."""

from __future__ import annotations

import os
from pathlib import PurePosixPath
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs

from raytrain.config.file import section_of
from raytrain.config.section import Section
from raytrain.errors import DataError, looked_for, one_line

Described = TypeVar("Described", bound=Section)


def path_of(path: Any) -> Any:
    return os.fspath(path) if isinstance(path, os.PathLike) else path


def described(source: type[Described], kind: str, **options: Any) -> Described:
    """Raises ConfigError as of a job file."""
    return section_of(source, {"kind": kind, **options}, kind)


def filesystem_of(path: str) -> tuple[pyarrow.fs.FileSystem, str]:
    try:
        if "://" in path:
            filesystem, root = pyarrow.fs.FileSystem.from_uri(path)
            return filesystem, root
        return pyarrow.fs.LocalFileSystem(), os.path.abspath(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot open {path}: {one_line(error)}") from None


def list_files(path: str) -> tuple[pyarrow.fs.FileSystem, str, list[str]]:
    """Every file below `path`, hidden ones left out, sorted."""
    filesystem, root = filesystem_of(path)
    try:
        info = filesystem.get_file_info(root)
        if info.type == pyarrow.fs.FileType.NotFound:
            raise DataError(f"{path} does not exist{looked_for(path)}; check the path in the job file (data.*.path)")
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
