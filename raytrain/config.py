"""One typed job description. YAML in, unknown keys refused, every error names the key and what to do."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from raytrain.errors import ConfigError, nearest, one_line

Share = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(gt=0)]
StageSpec = str | dict[str, dict[str, Any] | None]


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
    normalize: Normalize | None = None
    max_corrupt_share: Share = Field(0.01, description="share of undecodable samples past which the run stops")
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
    keep: PositiveInt = 2


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
    threads: PositiveInt | None = Field(None, description="torch threads of a CPU rank; default: its host's CPUs")

    @model_validator(mode="after")
    def _one_length(self) -> Training:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of `epochs` and `steps`")
        return self


class Group(Section):
    """An instance group: hosts of one kind."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]*$")]
    hosts: PositiveInt = 1
    cpus: PositiveInt
    gpus: Annotated[int, Field(ge=0)] = 0
    instance_type: str | None = None


Placement = Literal["anywhere", "cpu-groups-first", "cpu-groups-only"]


class Cluster(Section):
    groups: tuple[Group, ...] = Field((), description="what the job runs on in the cloud; --nodes emulates it here")
    placement: Placement = Field("anywhere", description="where the CPU stages may run")
    reserved_cpus: Annotated[int, Field(ge=0)] | None = Field(
        None, description="CPUs of a training host kept from the CPU stages; default: one a GPU, at most half"
    )


class Job(Section):
    """What to train, on what, how, and where."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=63)]
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    data: Data | None = None
    model: Model | None = None
    training: Training
    cluster: Cluster = Cluster()
    run_dir: str = Field("runs", description="the run's folder is `<run_dir>/<name>`")

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Job:
        """Read a job file and apply `key.sub=value` overrides (values are YAML).

        Raises:
            ConfigError: the file cannot be read or parsed, or a key or value is wrong.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the job file {path}: {_reason(error)}") from None
        try:
            tree = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"{path} is not YAML: {one_line(error)}") from None
        if not isinstance(tree, dict):
            raise ConfigError(f"{path} must hold a mapping of job keys, such as `name:` and `training:`")
        for override in overrides:
            _apply(tree, override)
        return cls.from_dict(tree, where=str(path))

    @classmethod
    def from_dict(cls, tree: dict[str, Any], where: str = "job") -> Job:
        """Validate a parsed job description; `where` opens the error message."""
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            raise ConfigError(_explain(error, cls, where)) from None


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {override!r} must look like key.sub=value, such as training.epochs=2")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: the value is not YAML: {one_line(error)}") from None
    node = tree
    for part in parts[:-1]:
        child = node.get(part)
        if child is None:
            child = node[part] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override!r}: {part!r} is not a section")
        node = child
    node[parts[-1]] = parsed


def _explain(error: ValidationError, root: type[BaseModel], where: str) -> str:
    """The first problem in one line: which key, what is wrong, and the nearest key that exists."""
    first, more = error.errors()[0], len(error.errors()) - 1
    names = [part for part in first["loc"] if not _is_union_tag(part)]
    key = ".".join(str(part) for part in names) or "the job"
    if first["type"] == "extra_forbidden":
        fields = _fields_at(root, first["loc"][:-1])
        message = f"{where}: unknown key {key!r}{nearest(str(names[-1]), fields)}"
        if "did you mean" not in message:
            message += f" (known here: {', '.join(sorted(fields))})"
    elif first["type"] == "missing":
        message = f"{where}: {key!r} is missing"
    else:
        text = first["msg"].removeprefix("Value error, ")
        given = first.get("input")
        shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool) else ""
        message = f"{where}: {key}: {text[0].lower()}{text[1:]}{shown}"
    return message + (f" (and {more} more)" if more else "")


def _is_union_tag(part: Any) -> bool:
    return isinstance(part, str) and part in {"image_folder", "parquet", "webdataset", "synthetic"}


def _fields_at(model: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """Names of the fields of the section that `loc` points to."""
    current: Any = model
    for part in loc:
        candidates = _models_in(current)
        if _is_union_tag(part):
            current = next(c for c in candidates if part in get_args(c.model_fields["kind"].annotation))
        elif isinstance(part, str):
            current = next((c.model_fields[part].annotation for c in candidates if part in c.model_fields), current)
    return [name for candidate in _models_in(current) for name in candidate.model_fields]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType, Annotated, tuple, list):
        return [model for arg in get_args(annotation) for model in _models_in(arg)]
    return []


def _reason(error: Exception) -> str:
    return error.strerror.lower() if isinstance(error, OSError) and error.strerror else one_line(error)
