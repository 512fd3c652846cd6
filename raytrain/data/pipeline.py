"""What happens to a sample, as a value: sources, stages, batch size. Nothing is listed, opened or started here."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias, get_args

import cloudpickle

from raytrain.config.data import ONE_SIZE, AnySource, Arrival, BuiltIn, Data, HeldOut, Normalize, OwnSource
from raytrain.config.data import Buckets as BucketsOf
from raytrain.config.file import section_of
from raytrain.config.own_code import own_code, torch_by_name
from raytrain.data.order import Buckets, Split, Tail
from raytrain.data.producer import SplitWork
from raytrain.data.samples.collate import Encoded, Pad, Ragged
from raytrain.data.samples.fields import Schema
from raytrain.data.samples.rules import check_arrivals, collated, parse_collation
from raytrain.data.sources.cache import kept_in
from raytrain.data.sources.kinds.own import MapDataset, factory_of
from raytrain.data.sources.lengths import lengths_of
from raytrain.data.sources.manifest import Manifest
from raytrain.data.sources.open import open_manifest, open_split
from raytrain.data.sources.registry import InProgram
from raytrain.data.stages.mixing import MIXING
from raytrain.data.stages.registry import as_stage, parse_stage
from raytrain.data.stages.settling import DevicePart, Settled, settle
from raytrain.data.stages.stage import Stage
from raytrain.errors import ConfigError, RaytrainError, named

Source: TypeAlias = AnySource | InProgram | MapDataset
BATCH_SIZE = Data.model_fields["batch_size"].default


@dataclass(frozen=True)
class Pipeline:
    """Where samples come from and what the CPU hosts do to them.

    Args:
        train: a source, such as `image_folder("s3://bucket/train")`, or a map-style data set of your own.
        stages: in order; each a Stage, a torchvision v2 transform or a function of one array.
        batch_size: samples of the source a rank and step; 64 where neither this nor `global_batch_size` is given.
        tail: what becomes of the samples of an epoch that do not fill a step of full batches: `share`, `drop_last`,
            `pad` or `carry`.
        validation: a source, `held_out(0.1)` for a share of the training data, or None for no evaluation.
        validation_stages: by default the stages without the random ones.
        collate: by field whose shape varies, `padded()` or `ragged()`.
        buckets: batches of samples of like length, such as `{"by": "tokens"}`.
        normalize: of all images, on the device; a Normalize, or a dict such as `{"mean": [0.5], "std": [0.5]}`.
        fields: by name, what becomes of a field on the device; an Arrival, or a dict such as `{"dtype": "float32"}`.
        max_corrupt_share: of a split's samples that may be undecodable before the run stops; at least one, if not 0.
        batches_per_task: batches that one Ray task prepares, None to choose.
        stage_timeout_s: that a stage, or reading, may be at one sample before its worker is ended and the sample left
            out; None for as long as it likes.
        global_batch_size: in place of `batch_size`, samples of a step of all ranks together, which share it evenly.
            Steps then have the same samples in the same order on any number of ranks.
        allow_nan: a sample whose arrays are NaN in places behind a stage, and not before, is not left out for it.
    """

    train: Source
    stages: Sequence[Any] = ()
    batch_size: int | None = None
    validation: Source | HeldOut | None = None
    validation_stages: Sequence[Any] | None = None
    collate: Mapping[str, Any] = field(default_factory=dict)
    buckets: BucketsOf | dict[str, Any] | None = None
    normalize: Normalize | dict[str, Any] | None = None
    fields: Mapping[str, Arrival | dict[str, Any]] = field(default_factory=dict)
    max_corrupt_share: float = 0.01
    batches_per_task: int | None = None
    tail: Tail = "share"
    stage_timeout_s: float | None = 300.0
    global_batch_size: int | None = None
    allow_nan: bool = False

    def __post_init__(self) -> None:
        _check_source("train", self.train)
        if self.validation is not None and not isinstance(self.validation, HeldOut):
            _check_source("validation", self.validation)
        if self.batch_size is None and self.global_batch_size is None:
            object.__setattr__(self, "batch_size", BATCH_SIZE)
        elif self.batch_size is not None and self.global_batch_size is not None:
            raise ConfigError(f"Pipeline: {ONE_SIZE}")
        if not isinstance(self.size, int) or self.size < 1:
            raise ConfigError(f"{self.size_key} must be a whole number of at least 1 (given: {self.size!r})")
        if self.tail not in get_args(Tail):
            raise ConfigError(f"tail must be one of {', '.join(get_args(Tail))} (given: {self.tail!r})")
        share, per_task = self.max_corrupt_share, self.batches_per_task
        if not isinstance(share, int | float) or not 0 <= share <= 1:
            raise ConfigError(f"max_corrupt_share must be a share from 0 to 1 (given: {self.max_corrupt_share!r})")
        if per_task is not None and (not isinstance(per_task, int) or per_task < 1):
            raise ConfigError(f"batches_per_task must be a whole number of at least 1 (given: {per_task!r})")
        limit_s = self.stage_timeout_s
        if limit_s is not None and (not isinstance(limit_s, int | float) or not limit_s > 0):
            raise ConfigError(f"stage_timeout_s must be seconds above 0, or None (given: {limit_s!r})")
        for name, each in (("fields", self.fields), ("collate", self.collate)):
            if not isinstance(each, Mapping):
                raise ConfigError(f"Pipeline: {name} must be a dict with the names of fields (given: {each!r})")
        if self.normalize is not None:
            object.__setattr__(self, "normalize", _section(Normalize, self.normalize, "normalize"))
        if self.buckets is not None:
            object.__setattr__(self, "buckets", _section(BucketsOf, self.buckets, "buckets"))
        arrivals = {name: _section(Arrival, each, f"fields.{name}") for name, each in self.fields.items()}
        object.__setattr__(self, "fields", arrivals)
        object.__setattr__(self, "collate", {name: parse_collation(name, each) for name, each in self.collate.items()})
        object.__setattr__(self, "stages", _as_stages("stages", self.stages))
        if self.validation_stages is None:
            object.__setattr__(self, "validation_stages", without_random(self.stages))
        else:
            object.__setattr__(self, "validation_stages", _as_stages("validation_stages", self.validation_stages))

    @classmethod
    def from_config(cls, data: Data) -> Pipeline:
        """The pipeline of a job file's `data` section."""
        own = data.validation_stages
        return cls(
            train=data.train,
            stages=[parse_stage(spec) for spec in data.stages],
            batch_size=data.batch_size,
            global_batch_size=data.global_batch_size,
            validation=data.validation,
            validation_stages=None if own is None else [parse_stage(spec) for spec in own],
            collate=data.collate,
            buckets=data.buckets,
            normalize=data.normalize,
            fields=data.fields,
            max_corrupt_share=data.max_corrupt_share,
            stage_timeout_s=data.stage_timeout_s,
            allow_nan=data.allow_nan,
            batches_per_task=data.batches_per_task,
            tail=data.tail,
        )

    @property
    def is_global(self) -> bool:
        """Whether `size` is of all ranks together."""
        return self.global_batch_size is not None

    @property
    def size(self) -> int:
        """Samples of a rank's batch, or of all ranks' together."""
        return self.global_batch_size if self.global_batch_size is not None else self.batch_size  # type: ignore[return-value]

    @property
    def size_key(self) -> str:
        return "global_batch_size" if self.is_global else "batch_size"

    def open(self, seed: int, cache: Path | None = None) -> OpenPipeline:
        """List the sources.

        Args:
            cache: folder of manifests that were made before.

        Raises:
            DataError: as `open_manifest` says.
            ConfigError: a stage, collation or setting wants a field that there is not, or something else than it is; or
                a data set of the user's own cannot be pickled.
        """
        validation = None
        with kept_in(cache):
            if isinstance(self.validation, HeldOut):
                train, validation = open_split(self.train, self.validation, seed=seed)
            else:
                train = open_manifest(self.train, seed=seed)
                if self.validation is not None:
                    validation = open_manifest(self.validation, seed=seed + 1, like=train.schema)
        buckets = None
        if self.buckets is not None:
            asked = self.buckets
            assert isinstance(asked, BucketsOf)
            buckets = Buckets(lengths_of(train, asked.by), self.size, asked.batches)
        own = self._settled("stages", self.stages, train)
        splits: dict[Split, SplitWork] = {"train": self._work(train, own)}
        on_device: dict[Split, DevicePart] = {"train": own.device}
        if validation is not None:
            other = self._settled("validation_stages", self.validation_stages or (), validation)
            _check_same(own.schema, other.schema, _mixed(self.stages))
            splits["validation"] = self._work(validation, other)
            on_device["validation"] = other.device
        opened = OpenPipeline(self, splits, on_device, own.schema, buckets)
        if not all(isinstance(each, BuiltIn | HeldOut | None) for each in (self.train, self.validation)):
            opened.pickled_splits()  # before anything is started
        return opened

    def _work(self, manifest: Manifest, settled: Settled) -> SplitWork:
        collations = {**self.collate, **dict.fromkeys(settled.device.decoded, Encoded())}
        stages_at = {cut: settled.cpu_at(cut) for cut in settled.cuts}
        return SplitWork(manifest, settled.cpu, collations, stages_at, self.allow_nan)

    def _settled(self, key: str, stages: Sequence[Stage], manifest: Manifest) -> Settled:
        found = settle(stages, manifest.schema, f"data.{key}", on_cpu=self.collate)
        found.schema.check_has(self.collate, "data.collate")
        for stage, name in ((each, name) for each in found.device.at() for name in each.on or ()):
            collation = self.collate.get(name)
            if isinstance(collation, Ragged) or (isinstance(collation, Pad) and stage.kinds):
                form = "ragged" if isinstance(collation, Ragged) else "padded"
                raise ConfigError(f"data.{key}: `{stage.name}` runs on the device, where field `{name}` is {form}")
        schema = collated(found.schema, self.collate)
        check_arrivals(schema, self.fields, self.normalize)  # type: ignore[arg-type]
        return replace(found, schema=schema)


def without_random(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """Each where it runs in training, though a random one may have been the first that was put on the device."""
    found, on_device = [], False
    for each in stages:
        on_device |= each.place == "device"
        if not each.random:
            found.append(replace(each, place="device") if on_device and each.place == "auto" else each)
    return tuple(found)


def _section(kind: Any, given: Any, key: str) -> Any:
    """From a dict of its keys, where it is none yet."""
    if isinstance(given, kind):
        return given
    if not isinstance(given, dict):
        raise ConfigError(
            f"Pipeline: {key} must be a dict of its keys: {', '.join(kind.model_fields)} (given: {given!r})"
        )
    return section_of(kind, given, f"Pipeline: {key}")


def held_out(share: float, *, seed: int = 0) -> HeldOut:
    """A share of the training data, which is then not trained on; the same in every run of one seed."""
    return section_of(HeldOut, {"kind": "held_out", "share": share, "seed": seed}, "held_out")


def _mixed(stages: Sequence[Stage]) -> set[str]:
    """Fields whose type says that training mixes them, as validation does not."""
    return {name for stage in stages if stage.draws in MIXING for name in stage.on or ()}


def _check_same(training: Schema, validation: Schema, mixed: Set[str]) -> None:
    """
    Raises:
        ConfigError: validation lacks a field, or has it in another type, which a loop would meet after an epoch.
    """
    if not (training.whole and validation.whole):
        return
    for name, what in training.items():
        if name not in validation:
            raise ConfigError(f"data.validation has no field `{name}`, as training has; there are {validation.names}")
        other = validation[name]
        if what.dtype and other.dtype and what.dtype != other.dtype and name not in mixed:
            raise ConfigError(f"data.validation: field `{name}` is {other}, and {what} of training; stages can cast it")


def _check_source(name: str, value: Any) -> None:
    if isinstance(value, OwnSource):
        factory_of(value, f"data.{name}")
    if isinstance(value, AnySource | InProgram):
        return
    if isinstance(value, type):
        raise ConfigError(f"Pipeline: {name} must be a data set, not its class: write {value.__name__}(...)")
    if isinstance(value, str | os.PathLike):
        raise ConfigError(
            f"Pipeline: {name} must be a source, not a path; write image_folder({str(value)!r}), or another source of "
            "raytrain.data"
        )
    if isinstance(value, MapDataset) and not isinstance(value, Mapping):
        return
    what = "nothing" if value is None else type(value).__name__
    raise ConfigError(
        f"Pipeline: {name} must be a source of raytrain.data, such as image_folder or from_torch, or a map-style data "
        f"set of your own, with __len__ and __getitem__, not {what}"
    )


def _as_stages(name: str, given: Any) -> tuple[Stage, ...]:
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ConfigError(f"Pipeline: {name} must be a list of stages, such as [decode(), resize(32)], not {given!r}")
    return tuple(as_stage(each) for each in given)


@dataclass(frozen=True)
class OpenPipeline:
    """A pipeline whose sources have been listed.

    Attributes:
        splits: what the workers do for each.
        on_device: the stages that the ranks run then, and those that they may.
        schema: of what arrives.
        buckets: of the training split.
    """

    pipeline: Pipeline
    splits: dict[Split, SplitWork]
    on_device: dict[Split, DevicePart]
    schema: Schema
    buckets: Buckets | None = None

    @property
    def train(self) -> Manifest:
        return self.splits["train"].manifest

    @property
    def validation(self) -> Manifest | None:
        return self.splits["validation"].manifest if "validation" in self.splits else None

    @property
    def num_validation(self) -> int:
        return self.validation.num_samples if self.validation else 0

    def pickled_splits(self) -> bytes:
        """For the workers (StreamWork.splits); functions of a script or notebook travel by value, the user's modules
        with them.

        Raises:
            ConfigError: something of the user's cannot be pickled.
        """
        torch_by_name()
        try:
            cloudpickle.dumps(self.on_device)  # which goes to the ranks
            return bytes(cloudpickle.dumps((own_code(), self.splits), protocol=pickle.HIGHEST_PROTOCOL))
        except RaytrainError:
            raise
        except Exception as error:  # noqa: BLE001 - a user's object may raise anything
            raise ConfigError(
                f"the data and its stages cannot be sent to other processes: {named(error)}; let an object open "
                "files and connections when it first needs them"
            ) from None
