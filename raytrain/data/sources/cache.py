"""A manifest that was made before, beside the runs, and is still true.

What takes long is to look into the files, at the headers of tar shards say, and that need be done once. Whether nothing
has changed is told by the description of the source, and by path, size and time of change of every file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import asdict, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.fs

from raytrain.config.data import BuiltIn
from raytrain.data.order import Groups
from raytrain.data.samples.fields import Field, Schema
from raytrain.data.sources.manifest import Manifest

READERS = "raytrain.data.sources."  # where they are
VERSION = 4
DIGEST_BYTES = 32  # of SHA-256, behind the rest
MOST_KEPT = 16  # the latest
_FOLDER: ContextVar[Path | None] = ContextVar("manifests", default=None)


@contextlib.contextmanager
def kept_in(folder: Path | None) -> Iterator[None]:
    """Manifests that are made meanwhile are kept in a folder, which is made where it is not there."""
    token = _FOLDER.set(folder)
    try:
        yield
    finally:
        _FOLDER.reset(token)


def made_once(
    source: BuiltIn,
    filesystem: pyarrow.fs.FileSystem,
    paths: Sequence[str],
    like: Schema | None,
    make: Callable[[], Manifest],
) -> Manifest:
    """The manifest of the files at `paths`, from the cache if they have not changed."""
    folder = _FOLDER.get()
    if folder is None:
        return make()
    path = folder / f"{_stamp(source, filesystem, paths, like)}.arrow"
    found = _read(path, filesystem)
    if found is None:
        found = make()
        with contextlib.suppress(OSError):  # a full disk is no reason not to train
            _write(path, found)
    return found


def _stamp(source: BuiltIn, filesystem: pyarrow.fs.FileSystem, paths: Sequence[str], like: Schema | None) -> str:
    digest = hashlib.sha256(f"{VERSION} {source.model_dump_json()} {like}".encode())
    if like is not None:
        digest.update(json.dumps([each.classes for each in like.values()]).encode())
    for info in filesystem.get_file_info(list(paths)):
        digest.update(f"\n{info.path} {info.size} {info.mtime_ns}".encode())
    return digest.hexdigest()[:24]


def _write(path: Path, manifest: Manifest) -> None:
    groups = manifest.groups
    about = {
        "reader": [type(manifest.reader).__module__, type(manifest.reader).__qualname__, _of_reader(manifest.reader)],
        "schema": {name: asdict(each) for name, each in manifest.schema.items()},
        "known": manifest.known,
        "groups": None if groups is None else {"starts": groups.starts.tolist(), "window": groups.window},
        "guarantee": manifest.guarantee,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{uuid4().hex}")  # hosts that share the folder may have one process id
    rows = manifest.rows.replace_schema_metadata({"about": json.dumps(about)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows)
    body = sink.getvalue()
    try:
        with draft.open("wb") as file:
            file.write(body)
            file.write(hashlib.sha256(body).digest())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    kept = sorted(path.parent.glob("*.arrow"), key=lambda each: each.stat().st_mtime_ns, reverse=True)
    for old in kept[MOST_KEPT:]:
        old.unlink()


def _read(path: Path, filesystem: pyarrow.fs.FileSystem) -> Manifest | None:
    """None where there is none, or it was cut off or changed."""
    try:
        data = memoryview(path.read_bytes())
        if hashlib.sha256(data[:-DIGEST_BYTES]).digest() != data[-DIGEST_BYTES:]:
            return None
        rows = pa.ipc.open_file(pa.py_buffer(data[:-DIGEST_BYTES])).read_all()
        about = json.loads(rows.schema.metadata[b"about"])
        module, name, given = about["reader"]
        if not module.startswith(READERS):
            return None
        kind: Any = getattr(import_module(module), name)
        is_reader = is_dataclass(kind) and hasattr(kind, "read")
        if not is_reader:  # whoever wrote it, it says which reader and no more
            return None
        reader = kind(filesystem=filesystem, **{key: _frozen(value) for key, value in given.items()})
        schema = {each: Field(**{key: _frozen(v) for key, v in what.items()}) for each, what in about["schema"].items()}
        groups = about["groups"] and Groups(np.array(about["groups"]["starts"], np.int64), about["groups"]["window"])
        rows = rows.replace_schema_metadata(None)
        return Manifest(rows, reader, Schema(schema), tuple(about["known"]), groups, about["guarantee"])
    except Exception:  # noqa: BLE001 - of a file of another version, whatever it holds
        return None


def _of_reader(reader: Any) -> Mapping[str, Any]:
    """What it is made of, but for its file system and what it keeps."""
    names = [each.name for each in fields(reader) if each.name != "filesystem" and not each.name.startswith("_")]
    return {name: getattr(reader, name) for name in names}


def _frozen(value: Any) -> Any:
    """JSON knows no tuples."""
    if isinstance(value, list):
        return tuple(_frozen(each) for each in value)
    return {key: _frozen(each) for key, each in value.items()} if isinstance(value, dict) else value
