"""One typed job description. YAML in, unknown keys refused, every error names the key and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from raytrain.job_file import read_tree, section_of
from raytrain.own_code import look_in

Share = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(gt=0)]


def _is_a_stage(value: Any) -> Any:
    """Which stages and options there are, the pipeline knows."""
    if isinstance(value, str) or (isinstance(value, dict) and len(value) == 1 and isinstance(next(iter(value)), str)):
        return value
    raise ValueError(f"a stage is one name, or one name with its options such as `resize: {{size: 32}}`, not {value!r}")


StageSpec = Annotated[str | dict[str, Any], BeforeValidator(_is_a_stage)]


class Section(BaseModel):
    """Every part of a job: immutable, and a key that does not exist is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ImageFolderSource(Section):
    """`path/<class name>/<image>`; classes are numbered in sorted order."""

    kind: Literal["image_folder"]
    path: str


class ParquetSource(Section):
    """Parquet files with an image column (encoded bytes) or an array column, and an integer label column."""

    kind: Literal["parquet"]
    path: str
    image_column: str = "image"
    label_column: str = "label"
    shape: tuple[PositiveInt, ...] | None = Field(None, description="of the array column when it is a flat list")


class WebDatasetSource(Section):
    """Tar shards: members that share a name up to the first dot are one sample (`.jpg` and `.cls`, say)."""

    kind: Literal["webdataset"]
    path: str
    label_extension: str = "cls"


class SyntheticSource(Section):
    """Images of normal noise made from (seed, id), labelled `id % num_classes`."""

    kind: Literal["synthetic"]
    num_samples: PositiveInt
    shape: tuple[PositiveInt, PositiveInt, PositiveInt] = Field((224, 224, 3), description="height, width, channels")
    num_classes: PositiveInt = 1000


Source = Annotated[ImageFolderSource | ParquetSource | WebDatasetSource | SyntheticSource, Field(discriminator="kind")]


class Normalize(Section):
    """Applied on the device: `(x * scale - mean) / std`, channel by channel."""

    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[Annotated[float, Field(gt=0)], ...] = (1.0,)


class Data(Section):
    train: Source
    validation: Source | None = None
    stages: tuple[StageSpec, ...] = Field((), description="CPU stages, in order")
    validation_stages: tuple[StageSpec, ...] | None = Field(
        None, description="default: the stages without the random ones"
    )
    batch_size: PositiveInt = Field(64, description="samples a rank and step")
    tail: Literal["share", "drop_last", "pad", "carry"] = Field(
        "share", description="what becomes of the samples of an epoch that do not fill a step of full batches"
    )
    normalize: Normalize | None = None
    max_corrupt_share: Share = Field(
        0.01,
        description="share of a split's samples that may be undecodable before the run stops; at least one, if not 0",
    )
    batches_per_task: PositiveInt | None = Field(None, description="default: chosen from the data set's size")


class Model(Section):
    name: str = Field(description="a timm model name, or `package.module:callable` that returns a torch module")
    options: dict[str, Any] = Field(default_factory=dict, description="passed to the model's constructor")


class Optimizer(Section):
    name: Literal["sgd", "adamw"] = "sgd"
    lr: Annotated[float, Field(gt=0)] = 0.001
    momentum: Share = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 0.0


class Schedule(Section):
    name: Literal["constant", "cosine"] = "constant"
    warmup_share: Share = Field(0.0, description="share of all steps with a linear warm-up")
    final_share: Share = Field(0.0, description="learning rate at the end as a share of the peak")


class CheckpointPolicy(Section):
    every_steps: PositiveInt | None = Field(None, description="beside the one at the end of every epoch")
    keep: PositiveInt = Field(2, description="of the latest, over all attempts")
    best: str | None = Field("validation_accuracy", description="metric whose best checkpoint is kept beside them")
    best_is: Literal["max", "min"] | None = Field(None, description="default: min for a metric whose name ends in loss")

    def score(self, metrics: Mapping[str, float | None]) -> float | None:
        """What the best is chosen by, more is better; None where the metric was not logged."""
        value = None if self.best is None else metrics.get(self.best)
        if value is None:
            return None
        return -value if self._smaller else value

    @property
    def goal(self) -> str | None:
        """Scores of one goal can be compared."""
        return self.best and f"{'min' if self._smaller else 'max'} {self.best}"

    @property
    def _smaller(self) -> bool:
        return self.best_is == "min" or (self.best_is is None and self.best.endswith("loss"))


class Training(Section):
    epochs: PositiveInt | None = None
    steps: PositiveInt | None = None
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    accumulate: PositiveInt = Field(1, description="batches whose gradients are summed before a step")
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    label_smoothing: Share = 0.0
    checkpoint: CheckpointPolicy = CheckpointPolicy()
    max_failures: Annotated[int, Field(ge=0)] = Field(3, description="restarts after a lost worker or host")
    on_nan: Literal["stop", "skip"] = Field(
        "stop", description="a loss that is no finite number ends the run, or its optimizer step is left out"
    )
    sync_batchnorm: bool = Field(False, description="BatchNorm over the batches of all ranks together; needs GPUs")
    threads: PositiveInt | None = Field(None, description="torch threads of a CPU rank; default: its host's CPUs")

    @model_validator(mode="after")
    def _one_length(self) -> Training:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of `epochs` and `steps`")
        return self


class Group(Section):
    """An instance group: hosts of one kind."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]*$", max_length=64)]
    hosts: PositiveInt = 1
    cpus: PositiveInt | None = Field(None, description="of a host; default: as the instance type has")
    gpus: Annotated[int, Field(ge=0)] | None = Field(None, description="likewise")
    instance_type: Annotated[str, Field(pattern=r"^ml\.")] | None = None

    @model_validator(mode="after")
    def _of_some_size(self) -> Group:
        if self.cpus is None and self.instance_type is None:
            raise ValueError(f"group {self.name!r} needs `instance_type` or `cpus`")
        return self


Placement = Literal["anywhere", "cpu-groups-first", "cpu-groups-only"]


class Cluster(Section):
    groups: tuple[Group, ...] = Field((), description="what the job runs on in the cloud; --nodes emulates it here")
    placement: Placement = Field("anywhere", description="where the CPU stages may run")
    reserved_cpus: Annotated[int, Field(ge=0)] | None = Field(
        None, description="CPUs of a training host kept from the CPU stages; default: one a GPU, at most half"
    )


S3Uri = Annotated[str, Field(pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?$", max_length=1024)]


class Image(Section):
    """An AWS deep-learning container, by what is in it."""

    framework: Literal["pytorch"] = "pytorch"
    version: str = "2.9.0"
    python: str | None = Field(None, description="such as py312; default: the only one there is")


class Channel(Section):
    """Input data that SageMaker puts into a folder of this name on every host."""

    uri: S3Uri
    groups: tuple[str, ...] = Field((), description="whose hosts get it; all channels name groups, or none does")
    mode: Literal["File", "FastFile"] = "File"
    distribution: Literal["FullyReplicated", "ShardedByS3Key"] = "FullyReplicated"
    content_type: str | None = None


class Checkpoints(Section):
    """Kept in S3 while the job runs; a spot job that was interrupted goes on from them."""

    uri: S3Uri | None = Field(None, description="default: <bucket>/<prefix>/<name>/checkpoints, for every job its own")
    path: str | None = Field(None, description="in the containers; default: the folder checkpoints of SageMaker's")


class Vpc(Section):
    subnets: Annotated[tuple[str, ...], Field(min_length=1, max_length=16)]
    security_groups: Annotated[tuple[str, ...], Field(min_length=1, max_length=5)]


class Kms(Section):
    """Keys by id or ARN; `output` also by alias."""

    volume: str | None = Field(None, description="of the hosts' disks")
    output: str | None = Field(None, description="of results, and of what is staged in S3")


class SageMaker(Section):
    """How the job becomes a SageMaker training job; `cluster.groups` says on which hosts."""

    region: str | None = Field(None, description="default: of your AWS configuration")
    role: str | None = Field(None, description="ARN or name of the role that the job assumes")
    bucket: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")] | None = Field(
        None, description="for code and results; default: sagemaker-<region>-<account>"
    )
    prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9!_.*'()/-]*$")] = "raytrain"
    image: str | Image = Image()
    source_dir: str = "source_dir"
    program: tuple[str, ...] = Field(("train.py", "job.yaml"), description="run on the head; job.yaml is this job")
    bootstrap: tuple[str, ...] = Field((), description="options of `raytrain bootstrap`")
    channels: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")], Channel] = {}
    output: S3Uri | None = Field(None, description="default: <bucket>/<prefix>/<name>")
    checkpoints: Checkpoints | None = Checkpoints()
    spot: bool = False
    max_run_s: PositiveInt = 86_400
    max_wait_s: PositiveInt | None = Field(None, description="of a spot job, waits included; default: twice max_run_s")
    max_pending_s: Annotated[int, Field(ge=1800, le=2_419_200)] | None = None
    volume_gb: PositiveInt = 30
    vpc: Vpc | None = None
    kms: Kms = Kms()
    encrypt_traffic: bool = Field(False, description="between the hosts")
    network_isolation: bool = False
    tags: dict[str, str] = {}
    environment: dict[str, str] = {}
    keep_alive_s: PositiveInt | None = Field(None, description="warm pool: keep the hosts for the next job")
    remote_debug: bool = Field(False, description="allow a shell in the containers (SSM)")
    retries: Annotated[int, Field(ge=1, le=30)] | None = Field(None, description="after failures of SageMaker's own")
    metrics: dict[str, str] = Field({}, description="more CloudWatch metrics: name -> regular expression with a group")
    token: Literal["channel", "environment"] = Field(
        "channel", description="how Ray's token travels; whoever may describe the job can read its environment"
    )
    max_usd_per_hour: Annotated[float, Field(gt=0)] | None = Field(None, description="refuse to launch above it")


class Job(Section):
    """What to train, on what, how, and where."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=63)]
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    data: Data | None = None
    model: Model | None = None
    training: Training
    cluster: Cluster = Cluster()
    sagemaker: SageMaker | None = None
    run_dir: str = Field("runs", description="the run's folder is `<run_dir>/<name>`")

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Job:
        """Read a job file and apply `key.sub=value` overrides (values are YAML).

        From now on modules beside the file and in the working folder can be imported: the job may name them.

        Raises:
            ConfigError: the file cannot be read or parsed, or a key or value is wrong.
        """
        look_in(Path(path).parent, Path())
        return cls.from_dict(read_tree(path, overrides), where=str(path))

    @classmethod
    def from_dict(cls, tree: dict[str, Any], where: str = "job") -> Job:
        """Validate a parsed job description; `where` opens the error message."""
        return section_of(cls, tree, where)
