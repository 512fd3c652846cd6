"""From the description of a data set to its manifest. Runs once, in the driver.

A source is a frozen value; nothing is listed or opened before `open_manifest`. Paths are local or `s3://…`, `gs://…`
(whatever pyarrow's file systems know).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from raytrain.config.data import AnySource, BuiltIn, HeldOut, OwnSource
from raytrain.data.samples.fields import Schema
from raytrain.data.sources.kinds.own import FromTorch, MapDataset, made_by
from raytrain.data.sources.labels import LABEL
from raytrain.data.sources.manifest import Manifest
from raytrain.data.sources.registry import InProgram, opener
from raytrain.errors import ConfigError, DataError, nearest


def open_manifest(source: AnySource | InProgram | MapDataset, *, seed: int = 0, like: Schema | None = None) -> Manifest:
    """List what the source holds.

    Args:
        source: the description.
        seed: of a synthetic source, and of what is drawn by weights.
        like: of the training split, so that a validation split numbers its classes alike.

    Raises:
        DataError: nothing there, a class folder without images, an unreadable file, a missing column or label.
    """
    made, manifest = _opened(source, seed, like)
    return _by_weights(made, manifest, seed)


def open_split(source: Any, part: HeldOut, *, seed: int = 0) -> tuple[Manifest, Manifest]:
    """Training data, and the part of it that is held out; weights are those of training.

    Raises:
        DataError: see `open_manifest`.
        ConfigError: one of the two would have no samples.
    """
    made, whole = _opened(source, seed, None)
    count = round(part.share * whole.num_samples)
    if not 0 < count < whole.num_samples:
        raise ConfigError(
            f"data.validation: {part.share:g} of {whole.num_samples} samples is {count}; both splits need one"
        )
    drawn = np.zeros(whole.num_samples, dtype=bool)
    drawn[np.random.default_rng(part.seed).permutation(whole.num_samples)[:count]] = True
    return _by_weights(made, whole.of(np.flatnonzero(~drawn)), seed), whole.of(np.flatnonzero(drawn))


def _opened(source: Any, seed: int, like: Schema | None) -> tuple[BuiltIn | InProgram, Manifest]:
    """A source of ours or a data set, and what it holds."""
    named = source.kind if isinstance(source, OwnSource) else ""
    made: Any = made_by(source) if isinstance(source, OwnSource) else source
    made = made if isinstance(made, BuiltIn | InProgram) else FromTorch(made)
    if isinstance(made, FromTorch):
        made = replace(made, name=named)
    manifest = opener(made.kind)(made, like, seed)
    if manifest.num_samples == 0:
        raise DataError(
            f"{getattr(source, 'path', None) or named or getattr(made, 'told', made.kind)} holds no samples"
        )
    _check_named(made, named or made.kind, manifest.schema)
    if made.limit is not None:
        manifest = manifest.of(np.arange(min(made.limit, manifest.num_samples)))
    return made, manifest


def _check_named(made: BuiltIn | InProgram, name: str, schema: Schema) -> None:
    """
    Raises:
        ConfigError: the description speaks of a field that the data has not.
    """
    schema.check_has(getattr(made, "masks", ()), f"source {name!r}: `masks`")
    schema.check_has(getattr(made, "shapes", ()), f"source {name!r}: `shapes`")
    labels = getattr(made, "labels", ())
    schema.check_has(labels if labels != (LABEL,) else (), f"source {name!r}: `labels`")


def _by_weights(made: BuiltIn | InProgram, manifest: Manifest, seed: int) -> Manifest:
    return manifest if made.weights is None else manifest.of(_drawn(manifest, made.weights, seed))


def _drawn(manifest: Manifest, by: str, seed: int) -> np.ndarray:
    """Ids, int64, in order: as many as there are samples, each as often as its share of the weights says, rounded up or
    down by systematic sampling.

    Raises:
        DataError: there is no such field beforehand, or a weight that is none.
    """
    weights = manifest.values(by)
    if weights is None:
        numbers = [name for name in manifest.known if manifest.values(name) is not None]
        hint = "" if by in manifest.schema else nearest(by, numbers)
        raise DataError(
            f"weights: {by!r} is no number that is known before samples are read{hint} (those are: "
            f"{', '.join(numbers) or 'none'})"
        )
    weights = weights.astype(np.float64)
    if not np.isfinite(weights).all() or weights.min() < 0 or weights.sum() == 0:
        raise DataError(f"weights: {by!r} must be finite numbers from 0, not all of them 0")
    ends = np.cumsum(weights) * (manifest.num_samples / weights.sum())
    marks = np.random.default_rng(seed).random() + np.arange(manifest.num_samples)
    return np.searchsorted(ends, marks, side="right").clip(max=manifest.num_samples - 1)
