"""The run record: one versioned JSON a run, with every figure, that tables, pages and comparisons read.

All durations are in seconds, sizes in bytes, times of day in ISO 8601 with UTC offset.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import ValidationError, field_validator, model_validator

from raytrain.errors import ConfigError
from raytrain.record.guarantee import EXACTLY_ONCE
from raytrain.record.job import check_job
from raytrain.record.part import Part, Record
from raytrain.record.placements import DecodingFigures, Placement
from raytrain.record.plain_json import from_json

SCHEMA_VERSION: Final = 5
POINTS = 600  # of a timeline


class HostFacts(Part):
    """A host, or an emulated node that shares this machine."""

    name: str
    group: str
    cpus: float
    gpus: float
    instance_type: str | None
    emulated: bool
    is_head: bool
    samples_prepared: int


class Hardware(Part):
    """Of the driver's machine."""

    cpu_model: str
    cpu_cores: int
    memory_bytes: int
    platform: str
    gpus: list[str]


class Startup(Part):
    """Seconds from the start of the command."""

    manifest_s: float
    cluster_s: float
    trainer_s: float
    first_batch_ready_s: float | None
    first_batch_s: float | None
    first_step_s: float | None


class RankFigures(DecodingFigures):
    """One training rank, in the last attempt. `wait_s`, `transfer_s` and `compute_s` share out its training time; where
    `transfer_overlaps` (GPU), transfers run beside the computation and `wait_s`, `gap_s` and `compute_s` do. `gap_s` is
    when no kernel ran within a step; where nobody can tell it is None, and part of `compute_s`. `device_stage_s` is
    what the stages on the device took, by name: of `transfer_s` on a CPU, of the steps on a GPU. `checkpoint_s` is what
    the training waited for checkpoints; they took `checkpoint_write_s` to write beside it, and `late_checkpoints` came
    later than they were due, since the one before was still being written."""

    rank: int
    device: str
    wait_s: float
    transfer_s: float
    compute_s: float
    transfer_overlaps: bool
    evaluate_s: float
    checkpoint_s: float
    num_batches: int
    num_samples: int
    wire_bytes: int
    read_bytes: int
    device_stage_s: dict[str, float] = {}
    device_stage_samples: dict[str, int] = {}
    gap_s: float | None = None
    checkpoint_write_s: float = 0.0
    late_checkpoints: int = 0

    @property
    def train_s(self) -> float:
        """Its training time, of which those are shares."""
        return self.wait_s + self.compute_s + (self.gap_s or 0.0) + (0.0 if self.transfer_overlaps else self.transfer_s)


def of_device_stages(ranks: Sequence[RankFigures]) -> dict[str, tuple[int, float]]:
    """Samples and seconds of all ranks in each stage on the device, those of validation named `validation/…`."""
    found: dict[str, tuple[int, float]] = {}
    for rank in ranks:
        for name, own_s in rank.device_stage_s.items():
            samples, seconds = found.get(name, (0, 0.0))
            found[name] = samples + rank.device_stage_samples.get(name, 0), seconds + own_s
    return found


def is_of_training(stage: str) -> bool:
    """Not of validation, whose stages are named `validation/…`."""
    return "/" not in stage


class StageFigures(Part):
    """One CPU stage over all workers.

    Attributes:
        cpu_s: CPU time, that of other threads of the worker included.
        wall_s: how long workers were in it: beside CPU time, waiting for storage and for a core that others used.
        batch_wall_p90_s, batch_wall_p99_s: percentiles of the wall time of whole batches.
    """

    name: str
    num_samples: int
    num_batches: int
    cpu_s: float
    wall_s: float
    batch_wall_p90_s: float
    batch_wall_p99_s: float

    @property
    def cpu_s_per_sample(self) -> float:
        return self.cpu_s / max(self.num_samples, 1)

    @property
    def wall_s_per_sample(self) -> float:
        return self.wall_s / max(self.num_samples, 1)

    @property
    def wait_s_per_sample(self) -> float:
        """Without a CPU: for storage, or for a core."""
        return max(self.wall_s - self.cpu_s, 0.0) / max(self.num_samples, 1)

    @property
    def of_training(self) -> bool:
        return is_of_training(self.name)


class Totals(Part):
    """Over the last attempt. `samples_per_s` (all ranks) and `wait_share` are of training time: waiting, transferring
    and computing, without start-up, evaluation and checkpoints. `limited_by` is told at length in `bottleneck`."""

    wall_s: float
    samples: int
    samples_per_s: float
    wait_share: float
    limited_by: Literal["compute", "balanced", "input", "unknown"]
    bottleneck: str
    attempts: int


class Corrupt(Part):
    """Samples of the data set that could not be prepared and were left out, each counted once; `listed` names at most
    100. `train` is of `num_train`, `validation` of `num_validation`."""

    train: int
    validation: int
    listed: list[str]


class Unusual(Part):
    """Samples and steps of the whole run, earlier attempts included, that went another way than usual.

    Attributes:
        dropped: samples that no step had (`data.tail: drop_last`).
        repeated: samples that a step had for the second time in their epoch (`data.tail: pad`).
        carried: samples that the next epoch began with (`data.tail: carry`).
        filtered: samples that a stage did not want (`keep_if`), in every epoch.
        stand_ins: steps on which a rank had no sample and took part with a blank one of no weight.
        skipped_steps: without an update: gradients of fp16 that overflowed, a loss that was no number
            (`training.on_nan: skip`), or no sample on any rank.
        skipped_samples: of those steps.
    """

    dropped: int = 0
    repeated: int = 0
    carried: int = 0
    filtered: int = 0
    stand_ins: int = 0
    skipped_steps: int = 0
    skipped_samples: int = 0


class Utilization(Part):
    """Percent over the training time; 100 is one whole core or GPU where a host has several."""

    mean: float
    max: float


class HostLoad(Part):
    """How busy a host was; None where nobody measured."""

    host: str
    group: str | None
    cpu_percent: Utilization | None = None
    memory_percent: Utilization | None = None
    disk_percent: Utilization | None = None
    gpu_percent: Utilization | None = None
    gpu_memory_percent: Utilization | None = None
    received_mbit_per_s: Utilization | None = None
    sent_mbit_per_s: Utilization | None = None


class _Lines(Part):
    """Lists side by side, each with a number for every point."""

    @model_validator(mode="after")
    def _of_one_length(self) -> Self:
        counts = {
            name: len(value) for name in type(self).model_fields if isinstance(value := getattr(self, name), list)
        }
        if len({*counts.values()}) > 1:
            raise ValueError(f"the lists are not of one length: {counts}")
        return self


class Progress(_Lines):
    """How a run went on, in at most POINTS points: all ranks together between one point and the one before.

    Attributes:
        at_s: seconds from `started_at`.
    """

    at_s: list[float]
    samples_per_s: list[float]
    wait_share: list[float]


class HostTimeline(_Lines):
    """What a host did meanwhile, in at most POINTS points, percentages as in Utilization. A list is None where nobody
    measured; emulated nodes are one host, this machine.

    Attributes:
        at_s: seconds from `started_at`.
    """

    host: str
    at_s: list[float]
    cpu_percent: list[float]
    memory_percent: list[float]
    received_mbit_per_s: list[float]
    sent_mbit_per_s: list[float]
    gpu_percent: list[float] | None = None
    gpu_memory_percent: list[float] | None = None


class BilledGroup(Part):
    """An instance group; `billable_s` is of all its hosts together, `usd_per_hour` of one of them."""

    name: str
    instance_type: str
    hosts: int
    billable_s: float
    usd_per_hour: float | None
    usd: float | None
    price_source: str | None
    price_date: str | None


class CloudFacts(Part):
    """What SageMaker says of the training job that the run was in; of a twin, what this machine says in its place.

    `billable_s` is of all hosts together. A twin costs nothing, so that it has no money.
    """

    kind: Literal["sagemaker", "twin"]
    job_name: str
    arn: str
    status: str
    failure: str | None
    spot: bool
    training_s: float
    billable_s: float
    usd: float | None
    groups: list[BilledGroup]
    loads: list[HostLoad]


class RunRecord(Record):
    """Everything about one run.

    Attributes:
        fields: of a sample as it arrives, by name: dtype, shape (? where it varies) and kind.
        classes: names by number.
        guarantee: what holds of the samples of an epoch.
        warnings: what the user was told while it went on, the first hundred of them.
    """

    schema_version: Literal[5] = SCHEMA_VERSION
    name: str
    status: Literal["finished", "stopped", "failed"]
    error: str | None
    started_at: str
    command: list[str]
    job: dict[str, Any]
    versions: dict[str, str]
    hardware: Hardware
    environment: dict[str, str]
    cluster_attached: bool
    emulated_gpus: bool
    world_size: int
    cpu_slots: int
    hosts: list[HostFacts]
    num_train: int
    num_validation: int
    fields: dict[str, str] = {}
    classes: list[str] = []
    guarantee: str = EXACTLY_ONCE
    startup: Startup
    totals: Totals
    ranks: list[RankFigures]
    stages: list[StageFigures]
    epochs: list[dict[str, int | float | None]]
    corrupt: Corrupt
    unusual: Unusual = Unusual()
    warnings: list[str] = []
    torch_in_preprocessing_workers: bool
    resumed_from: str | None
    checkpoint: str | None
    best_checkpoint: str | None = None
    cloud: CloudFacts | None = None
    loads: list[HostLoad] = []
    progress: Progress | None = None
    timelines: list[HostTimeline] = []
    placements: list[Placement] = []

    @field_validator("job")
    @classmethod
    def _is_a_job(cls, job: dict[str, Any]) -> dict[str, Any]:
        check_job(job)
        return job

    @property
    def left_out(self) -> list[tuple[int, int, str]]:
        """Samples that could not be prepared, of how many, for each split that had some."""
        corrupt = self.corrupt
        train = (corrupt.train, self.num_train, "training")
        validation = (corrupt.validation, self.num_validation, "validation")
        return [each for each in (train, validation) if each[0]]

    @property
    def device_stage_s_per_sample(self) -> dict[str, float]:
        """Of the stages on the device, by name, for a training sample; empty where no sample was trained on."""
        samples = sum(float(rank.num_samples) for rank in self.ranks)
        taken = of_device_stages(self.ranks) if samples else {}
        return {name: seconds / samples for name, (_, seconds) in taken.items() if is_of_training(name)}


def read_record(path: Path) -> RunRecord:
    """Read a record back.

    Raises:
        ConfigError: it cannot be read, is cut off, or has another schema version.
    """
    try:
        return parse_record(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not JSON, or was cut off") from None


def parse_record(text: str, path: str) -> RunRecord:
    """Read a record out of its text; `path` says in an error where it came from.

    Raises:
        ConfigError: it is cut off, or has another schema version.
    """
    try:
        tree = from_json(text)
        if isinstance(tree, dict) and tree.get("schema_version") != SCHEMA_VERSION:
            raise ConfigError(
                f"{path} has schema version {tree.get('schema_version')!r}; this raytrain reads {SCHEMA_VERSION}: "
                "run the job again, or read it with the raytrain that wrote it"
            )
        record = RunRecord.model_validate(tree)
        if any(entry.get("epoch") is None for entry in record.epochs):
            raise ConfigError(f"{path} is not a run record: one of its epochs has no number, `epoch`")
        return record
    except ValidationError as error:
        first = error.errors()[0]
        where = " ".join(".".join(str(part) for part in first["loc"]).split())
        raise ConfigError(f"{path} is not a run record: {where}: {first['msg']}") from None
    except ValueError:
        raise ConfigError(f"{path} is not JSON, or was cut off") from None
