"""Noise, made from a seed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from raytrain.config.data import FieldOf, SyntheticSource
from raytrain.data.samples.fields import BYTES, DTYPES, IMAGE, TEXT, Field, Schema
from raytrain.data.sources.files import described
from raytrain.data.sources.labels import LABEL
from raytrain.data.sources.manifest import Manifest
from raytrain.data.sources.readers import NoiseReader
from raytrain.errors import ConfigError, nearest


def synthetic(
    num_samples: int,
    *,
    shape: tuple[int, int, int] = (224, 224, 3),
    num_classes: int = 1000,
    fields: Mapping[str, Field] | None = None,
    longest: int = 64,
    limit: int | None = None,
    weights: str | None = None,
) -> SyntheticSource:
    """Noise made from (seed, id): `image`, normal, and `label`, `id % num_classes`; or `fields` of any kind.

    Args:
        shape: of the image, (height, width, channels).
        fields: by name. Floats are normal, whole numbers equally likely, below the number of `classes` where there are.
        longest: length of an axis that varies.
        limit, weights: see `raytrain.config.data.BuiltIn`.
    """
    given = None if fields is None else {name: _described(each) for name, each in fields.items()}
    return described(
        SyntheticSource,
        "synthetic",
        num_samples=num_samples,
        shape=shape,
        num_classes=num_classes,
        fields=given,
        longest=longest,
        limit=limit,
        weights=weights,
    )


def _described(what: Field) -> dict[str, object]:
    return {
        "dtype": what.dtype or "float32",
        "shape": what.shape or (),
        "kind": what.kind,
        "classes": len(what.classes) or None,
    }


def open_synthetic(source: SyntheticSource, like: Schema | None, seed: int) -> Manifest:
    numbers = np.arange(source.num_samples, dtype=np.int64)
    if source.fields is None:
        image, names = Field("float32", source.shape, "image"), _names(source.num_classes)
        rows = pa.table({LABEL: numbers % source.num_classes, "number": numbers})
        schema = Schema({IMAGE: image, LABEL: Field("int64", (), classes=names)})
        return Manifest(rows, NoiseReader({IMAGE: image}, seed), schema, (LABEL,))
    fields = {name: _field(each, name) for name, each in source.fields.items()}
    if not fields:
        raise ConfigError("a synthetic source with `fields` needs one at least")
    reader = NoiseReader(fields, seed, source.longest)
    return Manifest(pa.table({"number": numbers}), reader, Schema(fields))


def _field(given: FieldOf, name: str) -> Field:
    known = (*DTYPES, TEXT, BYTES)
    dtype = "int64" if given.classes and given.dtype == "float32" else given.dtype
    if dtype not in known or dtype.startswith("complex"):
        raise ConfigError(f"synthetic field `{name}`: unknown dtype {dtype!r}{nearest(dtype, known)}")
    kind = given.kind or ("image" if name == IMAGE and len(given.shape) == 3 else "")
    return Field(dtype, given.shape, kind, _names(given.classes or 0))


def _names(number: int) -> tuple[str, ...]:
    return tuple(map(str, range(number)))
