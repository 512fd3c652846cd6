"""A prediction job: which model, on what, how it shares devices and cores, and where the rows go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from raytrain.config.cluster import Cluster
from raytrain.config.data import Arrival, Collations, Normalize, Source, StageSpec
from raytrain.config.file import has, read_tree, section_of
from raytrain.config.own_code import look_in
from raytrain.config.section import PositiveInt, Section, Share
from raytrain.errors import ConfigError

Backend = Literal["eager", "compile", "onnx", "openvino"]
Precision = Literal["fp32", "bf16", "int8"]
Allocator = Literal["default", "glibc", "jemalloc", "tcmalloc"]
Objective = Literal["throughput", "latency"]


class PredictingModel(Section):
    """One of `run`, `file` and `name`; `name` with `weights` is a module whose weights lie in a file."""

    run: str | None = Field(None, description="folder of a run of `raytrain train`: its best checkpoint, or its last")
    checkpoint: Literal["best", "last"] = Field("best", description="of the run; the last where there is no best")
    file: str | None = Field(None, description="`.pt2` of `torch.export.save`, or `.onnx`")
    name: str | None = Field(None, description="a timm model name, or `package.module:callable` that returns a module")
    options: dict[str, Any] = Field(default_factory=dict, description="passed to the model's constructor")
    weights: str | None = Field(None, description="state of a model by name: `.safetensors`, `.pt` or `.pth`")
    inputs: dict[str, str] | str | None = Field(
        None, description="field that the model is given, or several by the name of its argument; default: `image`"
    )
    classes: tuple[str, ...] = Field((), description="names by number; default: those of the run")
    embeddings: bool = Field(False, description="write what the model has before its last layer (timm models)")
    task: Literal["classification", "raw"] = Field(
        "classification", description="`raw`: write the model's output as it is, without classes"
    )


class PredictionData(Section):
    """Where samples come from and what is done to them. With `model.run` what is left out is as in its validation."""

    source: Source = Field(description="where samples come from")
    stages: tuple[StageSpec, ...] | None = Field(None, description="in order; random ones are left out")
    collate: Collations | None = Field(None, description="what becomes of fields whose shape varies")
    normalize: Normalize | None = Field(None, description="of all images, as in training")
    fields: dict[str, Arrival] | None = Field(None, description="what becomes of single fields on the device")
    max_corrupt_share: Share = Field(1.0, description="share of samples that may fail before the run stops")
    stage_timeout_s: Annotated[float, Field(gt=0)] | None = Field(
        300.0,
        description="that a stage, or reading, may be at one sample before its worker is ended; null: for ever",
    )


class Output(Section):
    """Parquet files, one a shard, with a row for every sample; those that failed are in `_errors-*.parquet`."""

    path: str | None = Field(None, description="folder, local or `s3://…`; default: `<run_dir>/<name>/predictions`")
    fields: tuple[str, ...] = Field(
        (), description="of the samples, that are written as well; `where` is the file of each, or the place in one"
    )
    probabilities: PositiveInt | Literal["all", "none"] = Field(5, description="of the likeliest so many classes")
    shard_rows: PositiveInt = Field(10_000, description="samples a file; what is finished is not done again")


class Block(Section):
    """What a task prepares and a stream is given at once: as many rows as fit both."""

    rows: PositiveInt = Field(256, description="at most")
    bytes: PositiveInt = Field(64 << 20, description="at most, of ready samples")


class SizeClass(Section):
    """Samples up to a length, and the streams that take them."""

    upto: PositiveInt = Field(description="length along the first axis, or the longer side of an image")
    batch_size: PositiveInt | None = Field(None, description="default: that of `inference`")
    streams: PositiveInt | None = Field(None, description="a host; default: all of them take every class")
    cores: PositiveInt | None = Field(None, description="of each of these streams")


class SizeClasses(Section):
    """Each sample goes to the smallest class that it fits, and is padded to its length."""

    by: str = Field(description="field whose length is meant")
    classes: Annotated[tuple[SizeClass, ...], Field(min_length=1)] = Field(description="by length, ascending")

    @model_validator(mode="after")
    def _ascending(self) -> SizeClasses:
        limits = [each.upto for each in self.classes]
        if sorted({*limits}) != limits:
            raise ValueError(f"`upto` must ascend from class to class, not {limits}")
        return self


class Streams(Section):
    """Model instances on the CPUs of a host, each with cores of its own."""

    count: PositiveInt | None = Field(None, description="a host; default: by `objective`")
    cores: PositiveInt | None = Field(None, description="physical ones of each; default: shared out evenly")
    threads_per_core: Literal[1, 2] = Field(1, description="hardware threads used of a core")
    allocator: Allocator = Field("default", description="of memory; `jemalloc` and `tcmalloc` must be installed")
    huge_pages: bool = Field(False, description="transparent ones, for the allocator's memory")


class Inference(Section):
    """How it runs."""

    backend: Backend = Field("eager", description="what computes")
    precision: Precision = Field("fp32", description="that it computes in")
    batch_size: PositiveInt = Field(32, description="samples that the model is given at once")
    block: Block = Block()
    in_flight: PositiveInt = Field(2, description="blocks that a stream has or has coming")
    tasks_per_gpu: PositiveInt = Field(1, description="model instances that share a GPU")
    mps: bool = Field(False, description="NVIDIA's Multi-Process Service on the hosts with GPUs")
    device: Literal["auto", "cpu", "gpu"] = Field("auto", description="auto: GPUs where there are any")
    objective: Objective = Field(
        "throughput", description="throughput: a stream a core; latency: one stream with all cores of a NUMA node"
    )
    streams: Streams = Streams()
    buckets: SizeClasses | None = None
    max_failures: Annotated[int, Field(ge=0)] = Field(3, description="tries more of a block whose worker died")


Some = Field(min_length=1)


class Tune(Section):
    """What `raytrain tune` tries: each value of one with each of the others, as far as they go together. What is left
    out follows from the machine."""

    backends: Annotated[tuple[Backend, ...], Some] | None = Field(None, description="default: those installed")
    precisions: Annotated[tuple[Precision, ...], Some] | None = Field(None, description="default: all")
    batch_sizes: Annotated[tuple[PositiveInt, ...], Some] | None = Field(
        None, description="default: 1 to 64, doubling; with `objective: latency` that of `inference` alone"
    )
    block_rows: Annotated[tuple[PositiveInt, ...], Some] | None = Field(
        None, description="default: that of `inference`; tried on the whole path alone"
    )
    streams: Annotated[tuple[tuple[PositiveInt, PositiveInt], ...], Some] | Literal["auto"] = Field(
        "auto", description="[streams, cores of each]; auto: all cores and half of them, in 1, 2, 4 … streams"
    )
    allocators: Annotated[tuple[Allocator, ...], Some] | None = Field(None, description="default: those installed")
    tasks_per_gpu: Annotated[tuple[PositiveInt, ...], Some] | None = Field(None, description="default: 1, 2, 4")
    budget_s: Annotated[float, Field(gt=0)] = Field(600, description="for all measurements; one that has begun ends")
    latency_p95_ms: Annotated[float, Field(gt=0)] | None = Field(
        None, description="the most that a batch may take with `objective: throughput`"
    )
    samples: PositiveInt = Field(512, description="of the data, that it is tuned on")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of which settings are tried first")


class PredictionJob(Section):
    """What is predicted, with what, and how."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=63)] = Field(
        description="of the run: letters, digits and ._-, at most 63"
    )
    model: PredictingModel
    data: PredictionData
    output: Output = Output()
    inference: Inference = Inference()
    tune: Tune = Tune()
    cluster: Cluster = Cluster()
    run_dir: str = Field("runs", description="the run's folder is `<run_dir>/<name>`")

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> PredictionJob:
        """Read a job file and apply `key.sub=value` overrides (values are YAML).

        Raises:
            ConfigError: the file cannot be read or parsed, or a key or value is wrong.
        """
        look_in(Path(path).parent, Path())
        return cls.from_dict(read_tree(path, overrides), where=str(path))

    @classmethod
    def from_dict(cls, tree: dict[str, Any], where: str = "job") -> PredictionJob:
        """Validate a parsed job description; `where` opens the error message."""
        if "training" in tree and not has(tree, "data", "source"):
            raise ConfigError(
                f"{where} is a job of `raytrain train` (it has `training`); one that predicts has `model: {{run: …}}`, "
                "the folder of a run of it, and `data: {source: …}`"
            )
        return section_of(cls, tree, where)
