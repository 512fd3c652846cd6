"""What happens to a sample, as a value: sources, stages, batch size. Nothing is listed, opened or started here."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import cloudpickle

from raytrain.config.data import AnySource, BuiltInSource, Data, Normalize, OwnSource
from raytrain.config.file import section_of
from raytrain.config.own_code import own_code
from raytrain.data.order import Split, Tail
from raytrain.data.producer import SplitWork
from raytrain.data.sources.manifest import Manifest
from raytrain.data.sources.open import open_manifest
from raytrain.data.sources.own import Samples, factory_of
from raytrain.data.stages.registry import as_stage, needs_image, parse_stage
from raytrain.data.stages.stage import Stage
from raytrain.errors import ConfigError, RaytrainError, named


@dataclass(frozen=True)
class Pipeline:
    """Where samples come from and what the CPU hosts do to them.

    Args:
        train: a source, such as `image_folder("s3://bucket/train")`, or a map-style data set of your own
            (`sources.own.Samples`).
        stages: in order; each a Stage, a torchvision v2 transform or a function of one array.
        batch_size: samples a rank and step.
        tail: what becomes of the samples of an epoch that do not fill a step of full batches: `share`, `drop_last`,
            `pad` or `carry`.
        validation: a source, or None for no evaluation.
        validation_stages: by default the stages without the random ones.
        normalize: applied on the device; a Normalize, or a dict such as `{"mean": [0.5], "std": [0.5]}`.
        max_corrupt_share: of a split's samples that may be undecodable before the run stops; at least one, if not 0.
        batches_per_task: batches that one Ray task prepares, None to choose.
    """

    train: AnySource | Samples
    stages: Sequence[Any] = ()
    batch_size: int = 64
    validation: AnySource | Samples | None = None
    validation_stages: Sequence[Any] | None = None
    normalize: Normalize | dict[str, Any] | None = None
    max_corrupt_share: float = 0.01
    batches_per_task: int | None = None
    tail: Tail = "share"

    def __post_init__(self) -> None:
        _check_source("train", self.train)
        if self.validation is not None:
            _check_source("validation", self.validation)
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise ConfigError(f"batch_size must be a whole number of at least 1 (given: {self.batch_size!r})")
        if self.tail not in get_args(Tail):
            raise ConfigError(f"tail must be one of {', '.join(get_args(Tail))} (given: {self.tail!r})")
        if not 0 <= self.max_corrupt_share <= 1:
            raise ConfigError(f"max_corrupt_share must be a share from 0 to 1 (given: {self.max_corrupt_share!r})")
        if isinstance(self.normalize, dict):
            object.__setattr__(self, "normalize", section_of(Normalize, self.normalize, "Pipeline: normalize"))
        object.__setattr__(self, "stages", _as_stages("stages", self.stages))
        if self.validation_stages is None:
            object.__setattr__(self, "validation_stages", tuple(s for s in self.stages if not s.random))
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
            validation=data.validation,
            validation_stages=None if own is None else [parse_stage(spec) for spec in own],
            normalize=data.normalize,
            max_corrupt_share=data.max_corrupt_share,
            batches_per_task=data.batches_per_task,
            tail=data.tail,
        )

    def open(self, seed: int) -> OpenPipeline:
        """List the sources.

        Raises:
            DataError: as `open_manifest` says.
            ConfigError: a source gives encoded images, and the stages do not decode them first; or a data set of the
                user's own cannot be pickled.
        """
        train = open_manifest(self.train, seed=seed)
        _check_decoded("stages", self.stages, train, self.train)
        validation = None
        if self.validation is not None:
            validation = open_manifest(self.validation, seed=seed + 1, classes=train.classes)
            _check_decoded("validation_stages", self.validation_stages or (), validation, self.validation)
        opened = OpenPipeline(self, train, validation)
        if not all(isinstance(each, BuiltInSource | None) for each in (self.train, self.validation)):
            opened.pickled_splits()  # before anything is started
        return opened


def _check_source(name: str, value: Any) -> None:
    if isinstance(value, OwnSource):
        factory_of(value, f"data.{name}")
    if isinstance(value, AnySource):
        return
    if isinstance(value, type):
        raise ConfigError(f"Pipeline: {name} must be a data set, not its class: write {value.__name__}(...)")
    if isinstance(value, str | os.PathLike):
        raise ConfigError(
            f"Pipeline: {name} must be a source, not a path; write image_folder({str(value)!r}), or parquet or "
            "webdataset, from raytrain.data"
        )
    if isinstance(value, Samples) and not isinstance(value, Mapping):
        return
    what = "nothing" if value is None else type(value).__name__
    raise ConfigError(
        f"Pipeline: {name} must be a source of raytrain.data (image_folder, parquet, webdataset or synthetic), or a "
        f"map-style data set of your own, with __len__ and __getitem__, not {what}"
    )


def _as_stages(name: str, given: Any) -> tuple[Stage, ...]:
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ConfigError(f"Pipeline: {name} must be a list of stages, such as [decode(), resize(32)], not {given!r}")
    return tuple(as_stage(each) for each in given)


def _check_decoded(name: str, stages: Sequence[Stage], manifest: Manifest, source: Any) -> None:
    """Of a stage of the user's own nobody knows what it takes."""
    if not manifest.encoded:
        return
    if not stages:
        raise ConfigError(f"data.{name}: {source.kind} gives encoded bytes, and no stage decodes them; add `decode`")
    if needs_image(stages[0]):
        raise ConfigError(
            f"data.{name}: `{stages[0].name}` needs decoded images and {source.kind} gives encoded bytes; put `decode` "
            "before it"
        )


@dataclass(frozen=True)
class OpenPipeline:
    """A pipeline whose sources have been listed."""

    pipeline: Pipeline
    train: Manifest
    validation: Manifest | None

    @property
    def num_validation(self) -> int:
        return self.validation.num_samples if self.validation else 0

    def pickled_splits(self) -> bytes:
        """For the workers (StreamWork.splits); functions of a script or notebook travel by value, the user's modules
        with them.

        Raises:
            ConfigError: something of the user's cannot be pickled.
        """
        splits: dict[Split, SplitWork] = {"train": SplitWork(self.train, self._stages(self.pipeline.stages))}
        if self.validation is not None:
            splits["validation"] = SplitWork(self.validation, self._stages(self.pipeline.validation_stages or ()))
        try:
            return bytes(cloudpickle.dumps((own_code(), splits), protocol=pickle.HIGHEST_PROTOCOL))
        except RaytrainError:
            raise
        except Exception as error:  # noqa: BLE001 - a user's object may raise anything
            raise ConfigError(
                f"the data and its stages cannot be sent to the workers: {named(error)}; let an object open files and "
                "connections when it first needs them"
            ) from None

    @staticmethod
    def _stages(stages: Sequence[Stage]) -> tuple[Stage, ...]:
        """Names made unique, since seconds are kept by name."""
        seen: dict[str, int] = {}
        unique = []
        for each in stages:
            seen[each.name] = seen.get(each.name, 0) + 1
            name = each.name if seen[each.name] == 1 else f"{each.name}_{seen[each.name]}"
            unique.append(Stage(name, each.function, each.random, each.options))
        return tuple(unique)
