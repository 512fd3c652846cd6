"""Tar shards in the form of WebDataset."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping, Sequence
from typing import IO, Any, cast

import numpy as np
import pyarrow as pa

from raytrain.config.data import WebDatasetSource
from raytrain.data.order import Groups
from raytrain.data.samples.fields import ANYTHING, BYTES, IMAGE, TEXT, Field, Schema
from raytrain.data.sources.cache import made_once
from raytrain.data.sources.files import Listing, Places, counted, described, list_files, path_of
from raytrain.data.sources.kinds.image_folder import IMAGE_SUFFIXES
from raytrain.data.sources.labels import LABEL, classes_of, label_field, numbered
from raytrain.data.sources.manifest import Manifest
from raytrain.data.sources.readers import PACKED, ShardReader
from raytrain.errors import DataError, one_line

LONGEST_LABEL = 64 << 10  # bytes
FORMS = {"txt": "text", "text": "text", "cls": "integer", "index": "integer", "json": "json", "npy": "npy"}


def webdataset(
    path: Places,
    *,
    fields: Mapping[str, str] | None = None,
    masks: Sequence[str] = (),
    limit: int | None = None,
    weights: str | None = None,
) -> WebDatasetSource:
    """Tar shards; members that share a name up to the first dot are one sample. Those that are packed (`.tar.gz`) are
    unpacked whole in each worker, and a shuffle stays within eight shards at a time.

    Args:
        fields: by field, the extension. Without: the first image of a sample is `image`, `cls` is `label`, and others
            go by their extension, dots as underscores. `txt` is text, `json` a number, a list of numbers or text (of
            anything else as it stands; as `label` also the `label` of an object), `npy` an array.
        masks: fields that are masks.
        limit, weights: see `raytrain.config.data.BuiltIn`.
    """
    return described(
        WebDatasetSource,
        "webdataset",
        path=path_of(path),
        fields=None if fields is None else dict(fields),
        masks=tuple(masks),
        limit=limit,
        weights=weights,
    )


def open_webdataset(source: WebDatasetSource, like: Schema | None, seed: int) -> Manifest:
    listing = list_files(source.path)
    shards = listing.ending(".tar", *PACKED)
    if not shards:
        raise DataError(f"{listing.told} holds no tar shards (*.tar, *.tar.gz)")
    return made_once(source, listing.filesystem, shards, like, lambda: _made(source, listing, shards, like))


def _made(source: WebDatasetSource, listing: Listing, shards: list[str], like: Schema | None) -> Manifest:
    members: list[tuple[int, str, dict[str, Any]]] = []
    extensions: dict[str, str] = dict(source.fields or {})
    for number, path in enumerate(shards):
        try:
            with listing.filesystem.open_input_file(path) as handle, tarfile.open(fileobj=handle, mode="r:*") as tar:
                found = _samples_of(tar, path, extensions.get(LABEL, "cls" if not extensions else ""))
        except DataError:
            raise
        except Exception as error:  # noqa: BLE001 - of a damaged archive tarfile raises anything
            raise DataError(f"cannot read {path}: {one_line(error)}") from None
        for key, parts in found.items():
            extensions = extensions or _extensions(parts)
            if not source.fields and extensions.get(IMAGE) not in parts:  # of another kind than the first sample's
                other = _extensions(parts).get(IMAGE)
                parts |= {extensions[IMAGE]: parts[other]} if other and IMAGE in extensions else {}
            for name, extension in extensions.items():
                if extension not in parts:
                    there = ", ".join(f".{each}" for each in parts)
                    raise DataError(f"{path}: sample {key!r} has no .{extension} ({name}); it has {there}")
            members.append((number, key, parts))
    if not members:
        raise DataError(f"{listing.told} holds no samples")
    return _manifest(source, like, listing, tuple(shards), members, extensions)


def _manifest(
    source: WebDatasetSource,
    like: Schema | None,
    listing: Listing,
    shards: tuple[str, ...],
    members: list[tuple[int, str, dict[str, Any]]],
    extensions: Mapping[str, str],
) -> Manifest:
    columns: dict[str, Any] = {
        "shard": np.array([number for number, _, _ in members], np.int64),
        "key": pa.array([key for _, key, _ in members]),
    }
    fields: dict[str, Field] = {}
    forms: dict[str, str] = {}
    for name, extension in extensions.items():
        values = [parts[extension] for _, _, parts in members]
        if name == LABEL:
            try:
                column = pa.array(values)
            except (pa.ArrowException, OverflowError):
                raise DataError(f"{listing.told}: labels must be all whole numbers or all text") from None
            columns[name], classes = numbered(pa.chunked_array([column]), classes_of(like, name), name, listing.told)
            fields[name] = label_field(classes)
            continue
        places = np.array(values, np.int64)
        columns |= {f"{name}.offset": places[:, 0], f"{name}.size": places[:, 1]}
        forms[name], fields[name] = _form(extension, "mask" if name in source.masks else "")
    known = tuple(name for name in extensions if name == LABEL)
    groups = None
    if any(shard.endswith(PACKED) for shard in shards):  # which are unpacked whole
        groups = Groups(np.flatnonzero(np.diff(columns["shard"], prepend=-1)))
    return Manifest(pa.table(columns), ShardReader(listing.filesystem, shards, forms), Schema(fields), known, groups)


def _form(extension: str, kind: Any) -> tuple[str, Field]:
    last = extension.rpartition(".")[2].lower()
    form = FORMS.get(last, "bytes")
    if form == "bytes":
        is_image = f".{last}" in IMAGE_SUFFIXES
        return form, Field(BYTES, (), kind or ("image" if is_image else ""))
    if form == "text":
        return form, Field(TEXT, ())
    return form, Field("int64", ()) if form == "integer" else Field(kind=kind) if kind else ANYTHING


def _extensions(parts: Mapping[str, Any]) -> dict[str, str]:
    """By field, in the first sample's order: what each of its members is called."""
    found: dict[str, str] = {}
    for extension in parts:
        if f".{extension.lower()}" in IMAGE_SUFFIXES and IMAGE not in found:
            found[IMAGE] = extension
        elif extension == "cls":
            found[LABEL] = extension
        else:
            found[extension.replace(".", "_")] = extension
    return found


def _samples_of(tar: tarfile.TarFile, told: str, label_extension: str) -> dict[str, dict[str, Any]]:
    """By key, and then by extension: (offset, size), or the label itself."""
    samples: dict[str, dict[str, Any]] = {}
    end = -1
    for member in counted(tar, f"reading {told}", "members"):
        if member.size < 0 or member.offset_data <= end:  # which tarfile would go round in for ever
            raise DataError(f"cannot read {told}: the member {member.name!r} does not lie behind the one before it")
        end = member.offset_data
        if not member.isfile():
            continue
        folder, _, base = member.name.rpartition("/")
        stem, _, extension = base.partition(".")
        if not stem:  # hidden
            continue
        parts = samples.setdefault(f"{folder}/{stem}".lstrip("/"), {})
        if extension == label_extension:
            data = cast(IO[bytes], tar.extractfile(member)).read(min(member.size, LONGEST_LABEL + 1))
            parts[extension] = _label(data, member.name)
        else:
            parts[extension] = (member.offset_data, member.size)
    return samples


def _label(data: bytes, name: str) -> int | str:
    """A whole number or text, or JSON with a `label` that is one."""
    text = data.decode(errors="replace").strip()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text if len(data) <= LONGEST_LABEL else ""
    if isinstance(value, dict):
        value = value.get(LABEL)
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise DataError(f"{name} is no label: a whole number, text, or JSON with a `label`: {text[:40]!r}")
    return value
