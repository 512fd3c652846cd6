"""What a prediction is going to do, settled as a value before Ray is started."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raytrain.config.inference import PredictionJob
from raytrain.data.order import Position, StreamPlan, StreamSpec
from raytrain.data.pipeline import OpenPipeline, Pipeline, without_random
from raytrain.data.producer import StreamWork
from raytrain.data.samples.collate import Pad
from raytrain.data.samples.fields import BYTES, TEXT, Field
from raytrain.data.samples.rules import collated
from raytrain.data.sources.files import telling
from raytrain.data.sources.lengths import lengths_of
from raytrain.data.stages.registry import parse_stage
from raytrain.errors import ConfigError, DataError
from raytrain.infer.blocks import Block, Shard, blocks_of, rows_of, shards_of
from raytrain.infer.contract import ModelFile
from raytrain.infer.prepare import WHERE, Keep
from raytrain.infer.sizes import Sizes
from raytrain.infer.streams.gpus import even_blocks
from raytrain.record.status import Failure

MANIFESTS = ".manifests"  # beside the runs, as those of training
EXAMPLES = 8  # samples, from all over the data
TRIED = 64  # to find some
Ask = Callable[[np.ndarray], "tuple[Any, ...] | None"]
OWN_COLUMNS = (
    *("id", "prediction", "prediction_index", "probability", "probabilities", "top", "top_probability"),
    *("output", "embedding"),
)


@dataclass(frozen=True)
class Examples:
    """Samples that were prepared beforehand.

    Attributes:
        blocks: by size class, where there is one.
        sample_bytes: of a ready one, on average.
    """

    blocks: Mapping[int, pa.Table]
    sample_bytes: float


@dataclass(frozen=True)
class InferencePlan:
    """
    Attributes:
        job: with what its run says.
        inputs: fields that the model is given, in the order of its arguments.
        keep: fields that are written beside the predictions.
        classes: by id, its size class; None where that is known only behind the stages.
        work: for the tasks that prepare.
        made_by: what the predictions depend on.
    """

    job: PredictionJob
    file: ModelFile
    opened: OpenPipeline
    inputs: tuple[str, ...]
    keep: Keep
    sizes: Sizes
    classes: np.ndarray | None
    shards: tuple[Shard, ...]
    work: StreamWork
    made_by: dict[str, Any]

    @property
    def num_samples(self) -> int:
        return self.opened.train.num_samples

    @property
    def is_padded(self) -> bool:
        """Whether batches differ in what a sample's shape is."""
        return any(isinstance(rule, Pad) for rule in self.opened.splits["train"].collations.values())

    def blocks(self, done: Mapping[int, Any], sample_bytes: float, workers: int = 1) -> tuple[Block, ...]:
        """Of the shards that are not done; smaller ones where there would be fewer than there are workers.

        Args:
            sample_bytes: of a ready sample.
            workers: streams, or tasks that prepare at a time.
        """
        size, left = self.job.inference.block, [shard for shard in self.shards if shard.number not in done]
        samples = sum(map(len, left))
        most = [(rows_of(size, sample_bytes, each), each) for each in self.sizes.batch_sizes]
        rows = [even_blocks(samples, rows, workers, batch_size) for rows, batch_size in most]
        return blocks_of(left, rows, self.classes)

    @classmethod
    def of(cls, job: PredictionJob, file: ModelFile, watch: Callable[[str], None]) -> InferencePlan:
        """
        Args:
            job: completed.
            watch: called with how far the listing has come, where that takes long.

        Raises:
            RaytrainError: the data cannot be listed, or does not go with the job.
        """
        pipeline = pipeline_of(job)
        with telling(watch):
            opened = pipeline.open(0, Path(job.run_dir).expanduser().absolute() / MANIFESTS)
        opened, sizes = sized(job, opened)
        inputs = inputs_of(job, file, opened)
        manifest = opened.train
        spec = StreamSpec(manifest.num_samples, 0, manifest.num_samples, 0, epochs=1)
        work = StreamWork(
            StreamPlan(spec, Position(), 1), opened.pickled_splits(), stage_timeout_s=job.data.stage_timeout_s
        )
        return cls(
            job=job,
            file=file,
            opened=opened,
            inputs=inputs,
            keep=kept(job, opened),
            sizes=sizes,
            classes=known_classes(opened, sizes),
            shards=shards_of(manifest.num_samples, job.output.shard_rows),
            work=work,
            made_by=made_by(job, file, manifest.fingerprint),
        )


def pipeline_of(job: PredictionJob) -> Pipeline:
    """Its `train` is what is predicted; without random stages."""
    data = job.data
    stages = [parse_stage(spec) for spec in data.stages or ()]
    return Pipeline(
        train=data.source,
        stages=without_random(stages),
        collate=data.collate or {},
        normalize=data.normalize,
        fields=data.fields or {},
        max_corrupt_share=data.max_corrupt_share,
    )


def sized(job: PredictionJob, opened: OpenPipeline) -> tuple[OpenPipeline, Sizes]:
    """With the field padded whose length tells the size class, where there are several.

    Raises:
        ConfigError: there is no such field, or it has no length here.
    """
    asked, batch_size = job.inference.buckets, job.inference.batch_size
    if asked is None:
        return opened, Sizes((batch_size,))
    opened.schema.check_has((asked.by,), "inference.buckets.by")
    what, split = opened.schema.get(asked.by, Field()), opened.splits["train"]
    if asked.by in opened.on_device["train"].decoded:
        raise ConfigError(
            f"inference.buckets.by: field `{asked.by}` is decoded on the device, where it is too late to go to a "
            "class; leave `decode` to the CPU"
        )
    is_image = what.kind == "image"
    sizes = Sizes(
        tuple(each.batch_size or batch_size for each in asked.classes),
        asked.by,
        tuple(each.upto for each in asked.classes),
        is_image,
    )
    given = split.collations.get(asked.by)
    if isinstance(given, Pad):
        return opened, replace(sizes, most=given.most if given.axes[0] == 0 else None)
    if given is not None:
        raise ConfigError(f"inference.buckets.by: field `{asked.by}` is ragged, and classes are padded; leave it out")
    rule = {asked.by: Pad(axes=(0, 1) if is_image else (0,))}
    split = replace(split, collations={**split.collations, **rule})
    return replace(opened, schema=collated(opened.schema, rule), splits={"train": split}), sizes


def inputs_of(job: PredictionJob, file: ModelFile, opened: OpenPipeline) -> tuple[str, ...]:
    """
    Raises:
        ConfigError: there is no such field, or none that a model can be given.
    """
    said = job.model.inputs
    if isinstance(said, dict):
        names = tuple(said[argument] for argument in file.arguments)
    else:
        names = (said or "image",)
    opened.schema.check_has(names, "model.inputs")
    for name in names:
        what = opened.schema.get(name, Field())
        encoded = what.is_encoded and name not in opened.on_device["train"].decoded
        if encoded or not (what.may_be_array or what.is_encoded):
            mend = "put `decode` into data.stages" if encoded else "have a stage make it numbers"
            raise ConfigError(f"model.inputs: field `{name}` is {what}, which no model takes; {mend}")
    return names


def kept(job: PredictionJob, opened: OpenPipeline) -> dict[str, str]:
    """
    Raises:
        ConfigError: there is no such field of the source, or it is no text and no number.
    """
    schema = opened.train.schema
    if WHERE not in schema and schema.whole:
        schema = schema.but(**{WHERE: Field(dtype=WHERE, shape=())})
    schema.check_has(job.output.fields, "output.fields")
    found = {}
    for name in job.output.fields:
        what = schema.get(name, Field())
        if name in OWN_COLUMNS:
            raise ConfigError(f"output.fields: `{name}` is a column of the predictions themselves; rename the field")
        if what.dtype == BYTES or (what.dtype not in ("", TEXT) and (what.shape or what.dtype.startswith("complex"))):
            raise ConfigError(f"output.fields: field `{name}` is {what}; what is written is text or a number")
        found[name] = what.dtype
    return found


def known_classes(opened: OpenPipeline, sizes: Sizes) -> np.ndarray | None:
    """By id, where no stage can change the length and it does not take reading the samples.

    Raises:
        DataError: samples are longer than the last class.
    """
    if not sizes.by or sizes.is_image:
        return None
    manifest, stages = opened.train, opened.splits["train"].stages
    known = sizes.by in manifest.known or callable(getattr(manifest.reader, "lengths", None))
    touched = any(stage.scope != "field" or sizes.by in (stage.on or ()) for stage in stages)
    what = manifest.schema.get(sizes.by, Field())
    if not known or touched or not what.may_be_array or what.shape == ():
        return None
    lengths = lengths_of(manifest, sizes.by)
    rule = opened.splits["train"].collations[sizes.by]
    if isinstance(rule, Pad) and rule.most is not None:
        lengths = np.minimum(lengths, rule.most)
    too_long = np.flatnonzero(lengths > sizes.longest)
    if len(too_long):
        first = int(too_long[0])
        raise DataError(
            f"inference.buckets: {len(too_long):,} of {len(lengths):,} samples are longer than the last class "
            f"({sizes.longest}); the first is {manifest.describe(first)} with {lengths[first]:,}; give a class that "
            f"takes them, or cut them with data.collate: {{{sizes.by}: {{padded: {{most: {sizes.longest}}}}}}}"
        )
    return np.searchsorted(np.array(sizes.upto), lengths).astype(np.int64)


def find_examples(num_samples: int, ask: Ask) -> Examples:
    """A few samples that can be prepared, from all over the data.

    Args:
        ask: prepares samples, where it costs nothing that one of them kills its process; None when that has happened.

    Raises:
        DataError: none of those that were tried can be.
    """
    tried = np.unique(np.linspace(0, num_samples - 1, TRIED, dtype=np.int64))
    spread = np.random.default_rng(0).permutation(tried)
    failures: list[Failure] = []
    for first in range(0, len(spread), EXAMPLES):
        if (found := ask(np.sort(spread[first : first + EXAMPLES]))) is None:
            continue
        told, *blocks = found
        if ready := sum(told.counts):
            return Examples({n: block for n, block in enumerate(blocks) if block is not None}, told.nbytes / ready)
        failures += told.failures
    some = "; ".join(f"{each.where}: {each.reason}" for each in failures[:3]) or "each killed its process"
    raise DataError(f"none of {len(spread)} samples from all over the data could be prepared: {some}")


def made_by(job: PredictionJob, file: ModelFile, fingerprint: str) -> dict[str, Any]:
    """What the predictions depend on, by key of the job: not on which hosts, in which blocks or batches."""
    model, data, output, inference = job.model, job.data, job.output, job.inference
    tree = {
        "model": file.digest,
        "model.inputs": model.inputs,
        "model.classes": _digest(file.classes or model.classes),
        "model.task": model.task,
        "model.embeddings": model.embeddings,
        "data.source": fingerprint,
        "data.stages": data.stages or (),
        "data.collate": {name: each.model_dump() for name, each in (data.collate or {}).items()},
        "data.normalize": data.normalize and data.normalize.model_dump(),
        "data.fields": {name: each.model_dump() for name, each in (data.fields or {}).items()},
        "output.fields": output.fields,
        "output.probabilities": output.probabilities,
        "output.shard_rows": output.shard_rows,
        "inference.backend": inference.backend,
        "inference.precision": inference.precision,
        "inference.buckets": inference.buckets and [inference.buckets.by, [c.upto for c in inference.buckets.classes]],
    }
    found: dict[str, Any] = json.loads(json.dumps(tree, default=str))
    return found


def _digest(names: tuple[str, ...]) -> str:
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16] if names else ""
