"""What a sample costs, measured: what the planner predicts from.

A profile comes out of `raytrain diagnose`, or out of the record of a run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from raytrain.cost.instances import Catalog
from raytrain.errors import ConfigError
from raytrain.record.job import check_job
from raytrain.record.schema import RunRecord
from raytrain.record.status import READ

SCHEMA_VERSION: Final = 1
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
MOST_EFFICIENT = 1.5  # of what the pieces alone admit: above it one of the measurements is wrong
ROUNDING = 1e-6
TRAINED_ON_CPU = "CPU"  # in the place of a GPU's name


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Figure(_Part):
    """A measurement: the median of `n` parts of it, the lowest and the highest."""

    value: NotNegative
    low: NotNegative
    high: NotNegative
    n: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _in_order(self) -> Figure:
        if not self.low <= self.value <= self.high:
            raise ValueError("low, value and high are not in order")
        return self

    @classmethod
    def of(cls, values: list[float]) -> Figure:
        """The median of some measurements, which must not be empty."""
        ordered = sorted(values)
        middle = ordered[len(ordered) // 2]
        if len(ordered) % 2 == 0:
            middle = (ordered[len(ordered) // 2 - 1] + middle) / 2
        return cls(value=middle, low=ordered[0], high=ordered[-1], n=len(ordered))

    @classmethod
    def once(cls, value: float) -> Figure:
        return cls(value=value, low=value, high=value)


class StageCost(_Part):
    """What one sample takes in one stage.

    Attributes:
        cpu_share: of `cpu_s_per_sample`, whatever the kind of CPU.
        device_s_per_sample: by GPU as `accelerator_s_per_sample` has them, seconds of one where the stage runs there;
            None where it cannot, or nobody has measured it.
        wire_bytes_per_sample: from a CPU host to a rank where this stage and those behind it run on the device;
            likewise None.
    """

    name: str
    cpu_share: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
    device_s_per_sample: Annotated[dict[str, Figure], Field(min_length=1)] | None = None
    wire_bytes_per_sample: Figure | None = None

    @model_validator(mode="after")
    def _not_absurd(self) -> StageCost:
        if (self.device_s_per_sample is None) != (self.wire_bytes_per_sample is None):
            raise ValueError(
                f"stage `{self.name}` has one of device_s_per_sample and wire_bytes_per_sample: it must have both, or "
                "none where it cannot run on the device"
            )
        for kind, figure in (self.device_s_per_sample or {}).items():
            if not figure.value:
                raise ValueError(f"device_s_per_sample of `{self.name}` on {kind} is 0: nothing takes no time")
        return self


class Profile(_Part):
    """What one sample of a job takes.

    Attributes:
        job: as the job file has it.
        source: how it was measured.
        hardware: what it was measured on.
        cpu_s_per_sample: by kind of CPU, seconds of one vCPU while all are at work. A kind is a family of instance
            types such as `c5`, or the name of a CPU; families that are not listed are taken to be like the first entry.
        cpu_s_per_sample_alone: likewise of the first kind, while the others are idle; None when not measured.
        read_wait_s_per_sample: how long a worker waits for storage, beside that and without a CPU; None when not
            measured.
        accelerator_s_per_sample: by GPU, such as `A10G`, seconds of one; `CPU` where a rank trained without.
        stages: that ran on CPUs, in order; what is left of `cpu_s_per_sample` is no stage's. What stages that can run
            on the device alone take is in `accelerator_s_per_sample`.
        wire_bytes_per_sample: from a CPU host to a rank.
        read_bytes_per_sample: from storage.
        startup_s: from the command to the first step.
        efficiency: of the whole, as a share of what the slower of its parts could do alone; by wall time on both
            sides, so that other programs' share of the machine is in neither this nor the CPU time.
        worker_memory_bytes: of one preprocessing process; None when not measured.
        accelerator_memory_bytes: of one GPU, at its peak; None when not measured.
        world_size: ranks that were measured; a job given in steps does as many samples on any number of GPUs.
        num_samples: of an epoch.
        epochs: of the whole job.
        cores_shared_with: what else ran on the cores that the measured ranks trained on; None where ranks had GPUs, or
            hosts of their own.
        on_sagemaker: measured in a training job there, so that the start-up is one of SageMaker's.
        estimated: how `accelerator_s_per_sample` of the GPUs was estimated; None where it was measured or given.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    kind: Literal["raytrain profile"] = "raytrain profile"
    name: str
    job: dict[str, Any]
    source: str
    measured_at: str
    hardware: str
    cpu_s_per_sample: Annotated[dict[str, Figure], Field(min_length=1)]
    cpu_s_per_sample_alone: Figure | None = None
    read_wait_s_per_sample: Figure | None = None
    accelerator_s_per_sample: Annotated[dict[str, Figure], Field(min_length=1)]
    stages: tuple[StageCost, ...] = ()
    wire_bytes_per_sample: Figure
    read_bytes_per_sample: Figure
    startup_s: Figure
    efficiency: Figure
    worker_memory_bytes: Positive | None = None
    accelerator_memory_bytes: Positive | None = None
    world_size: Annotated[int, Field(gt=0)] = 1
    num_samples: Annotated[int, Field(gt=0)]
    epochs: Positive
    cores_shared_with: str | None = None
    on_sagemaker: bool = False
    estimated: str | None = None

    @field_validator("job")
    @classmethod
    def _is_a_job(cls, job: dict[str, Any]) -> dict[str, Any]:
        check_job(job, trained=False)
        return job

    @model_validator(mode="after")
    def _not_absurd(self) -> Profile:
        times = {"startup_s": self.startup_s, "efficiency": self.efficiency}
        for name in ("cpu_s_per_sample", "accelerator_s_per_sample"):
            times |= {f"{name} of {kind}": figure for kind, figure in getattr(self, name).items()}
        for name, figure in times.items():
            if not figure.value:
                raise ValueError(f"{name} is 0: nothing takes no time")
        if self.efficiency.value > MOST_EFFICIENT:
            raise ValueError(
                f"an efficiency of {self.efficiency.value:g} is absurd: the whole cannot be faster than its parts"
            )
        if (shares := sum(stage.cpu_share for stage in self.stages)) > 1 + ROUNDING:
            raise ValueError(f"the stages' shares of the CPU time are {shares:.0%} in all, which is more than there is")
        return self

    @property
    def may_move(self) -> bool:
        """Whether the last stage, and with it some, can run on the device."""
        return bool(self.stages) and self.stages[-1].device_s_per_sample is not None

    def device_s(self, stage: StageCost, gpu: str) -> float | None:
        """Seconds of a GPU for a sample; on one that the stage was not measured on, as much longer as a step takes
        there. None where it was measured on no GPU that a step was."""
        measured = stage.device_s_per_sample or {}
        if gpu in measured:
            return measured[gpu].value
        like = self.measured_like(stage)
        if like is None or gpu not in self.accelerator_s_per_sample:
            return None
        steps = self.accelerator_s_per_sample
        return measured[like].value * steps[gpu].value / steps[like].value

    def measured_like(self, stage: StageCost) -> str | None:
        """The GPU that stands for those that a stage was not measured on."""
        known = (gpu for gpu in stage.device_s_per_sample or {} if gpu != TRAINED_ON_CPU)
        return next((gpu for gpu in known if gpu in self.accelerator_s_per_sample), None)

    @property
    def cpu_kind(self) -> str:
        """What stands for every kind of CPU that was not measured."""
        return next(iter(self.cpu_s_per_sample))

    def cpu_s(self, family: str) -> float:
        """Seconds of one vCPU of a family for a sample."""
        return self.cpu_s_per_sample.get(family, self.cpu_s_per_sample[self.cpu_kind]).value

    @property
    def read_wait_s(self) -> float:
        """Of a sample; 0 where it was not measured."""
        return self.read_wait_s_per_sample.value if self.read_wait_s_per_sample else 0.0

    def worker_s(self, family: str) -> float:
        """Seconds that a sample keeps a worker, of which there is one a vCPU: it computes, or waits for storage."""
        return self.cpu_s(family) + self.read_wait_s

    @property
    def efficiency_on_gpus(self) -> float:
        """What of the efficiency holds where ranks train on GPUs: one that was measured on shared cores does not."""
        return 1.0 if self.cores_shared_with else min(self.efficiency.value, 1.0)

    def write(self, path: Path) -> None:
        """
        Raises:
            ConfigError: it cannot be written there.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(path.name + ".part")
            draft.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
            draft.replace(path)
        except OSError as error:
            raise ConfigError(f"the profile cannot be written to {path}: {error.strerror}") from None


def parse_profile(tree: Any, path: str) -> Profile:
    """A profile out of its JSON; `path` says in an error where it came from.

    Raises:
        ConfigError: it has another schema version, or a figure that cannot be.
    """
    version = tree.get("schema_version") if isinstance(tree, dict) else None
    if version != SCHEMA_VERSION:
        raise ConfigError(
            f"{path} is a profile of schema version {version!r}; this raytrain reads {SCHEMA_VERSION}: diagnose again"
        )
    try:
        return Profile.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the profile"
        raise ConfigError(f"{path} is not a profile: {where}: {first['msg'].removeprefix('Value error, ')}") from None


def profile_of_record(record: RunRecord, known: Catalog) -> Profile:
    """What a finished run says about its samples.

    The stages' is CPU time, free of other programs' share of the machine; the wait of `read` (wall less CPU time) is
    kept apart from it. The accelerator's is what the ranks' steps took by the clock, gaps between kernels included, and
    the stages that ran nowhere else. Of those that ran on CPUs too, the record's last decision has what they take on
    the device; how large a sample is between them nobody noted, so that the mean stands for all. A record has one
    figure of each: no spread.

    Raises:
        ConfigError: nothing was trained on, or its figures cannot be.
    """
    try:
        return _profile_of(record, known)
    except ValidationError as error:
        what = error.errors()[0]["msg"].removeprefix("Value error, ")
    except ArithmeticError as error:
        what = str(error)
    raise ConfigError(f"the record of {record.name} has figures that cannot be: {what}")


def _profile_of(record: RunRecord, known: Catalog) -> Profile:
    totals = record.totals
    stages = [stage for stage in record.stages if stage.of_training and stage.num_samples]
    computed = sum(rank.train_s - rank.wait_s for rank in record.ranks)
    cpu_s = sum(stage.cpu_s_per_sample for stage in stages)
    wall_s = sum(stage.wall_s_per_sample for stage in stages)
    if not (totals.samples > 0 and record.num_train > 0 and totals.samples_per_s > 0 and computed > 0 and cpu_s > 0):
        raise ConfigError(f"the record of {record.name} has no training to learn from: its run {record.status}")
    both = {stage.name for stage in stages}
    moved = sum(s for rank in record.ranks for name, s in rank.device_stage_s.items() if name in both)
    accelerator_s = max(computed - moved, 1e-9) / totals.samples
    slots = record.cpu_slots / max(wall_s, cpu_s)  # a worker's other threads can make its CPU time the longer one
    limit = min(record.world_size / accelerator_s, slots, shared_cores(record, cpu_s, accelerator_s))
    if record.placements and (record.placements[-1].on_device or record.placements[-1].share):
        limit = record.placements[-1].samples_per_s
    received = sum(stage.num_samples for stage in record.stages if stage.name in (READ, f"validation/{READ}"))
    training = record.job["training"]
    batch = totals.samples / max(sum(rank.num_batches for rank in record.ranks), 1)
    step = batch * record.world_size
    gpu, wire = gpu_of(record, known), sum(rank.wire_bytes for rank in record.ranks) / max(received, 1)
    return Profile(
        name=record.name,
        job=record.job,
        source=f"the record of {record.name}",
        measured_at=record.started_at,
        hardware=hardware_of(record),
        cpu_s_per_sample={cpu_kind_of(record): Figure.once(cpu_s)},
        read_wait_s_per_sample=Figure.once(sum(s.wait_s_per_sample for s in stages if s.name == READ)),
        accelerator_s_per_sample={gpu: Figure.once(accelerator_s)},
        stages=_stage_costs(record, {stage.name: stage.cpu_s_per_sample / cpu_s for stage in stages}, gpu, wire),
        wire_bytes_per_sample=Figure.once(wire),
        read_bytes_per_sample=Figure.once(sum(rank.read_bytes for rank in record.ranks) / max(received, 1)),
        startup_s=Figure.once(max(record.startup.first_step_s or totals.wall_s, 1e-3)),
        efficiency=Figure.once(min(totals.samples_per_s / limit, MOST_EFFICIENT)),
        world_size=record.world_size,
        num_samples=record.num_train,
        epochs=epochs_of(training.get("epochs"), training.get("steps"), step, record.num_train),
        cores_shared_with=cores_shared_with(record),
        on_sagemaker=record.cloud is not None and record.cloud.kind == "sagemaker",
    )


def _stage_costs(record: RunRecord, shares: dict[str, float], gpu: str, wire: float) -> tuple[StageCost, ...]:
    """In the order of the pipeline, as far as that is known: those behind the others that have run on both."""
    decided = record.placements[-1].stages if record.placements else []
    there = {stage.name: stage.device_s for stage in decided if stage.device_s and stage.name in shares}
    costs = [StageCost(name=name, cpu_share=share) for name, share in shares.items() if name not in there]
    for name, device_s in there.items():
        seconds, size = {gpu: Figure.once(device_s)}, Figure.once(wire)
        made = StageCost(name=name, cpu_share=shares[name], device_s_per_sample=seconds, wire_bytes_per_sample=size)
        costs.append(made)
    return tuple(costs)


def epochs_of(epochs: float | None, steps: int | None, samples_per_step: float, num_train: int) -> float:
    """Of a job that is given in epochs or in steps."""
    return epochs or max((steps or 0) * samples_per_step / num_train, 1e-9)


def shared_cores(record: RunRecord, cpu_s: float, accelerator_s: float) -> float:
    """Samples a second that one machine's cores can both prepare and train on; infinite where ranks have GPUs, or the
    hosts are not all this machine."""
    if record.cluster_attached or not all(rank.device == "cpu" for rank in record.ranks):
        return float("inf")
    training = [host.cpus for host in record.hosts if host.is_head] or [record.hardware.cpu_cores]
    threads = (record.job["training"].get("threads") or training[0]) * record.world_size
    cores = record.hardware.cpu_cores
    return cores / (cpu_s + accelerator_s * min(threads, cores) / record.world_size)


def cores_shared_with(record: RunRecord) -> str | None:
    """What ran beside ranks without a GPU on their cores; None where ranks had GPUs, or hosts that prepared nothing."""
    if not (record.ranks and all(rank.device == "cpu" for rank in record.ranks)):
        return None
    groups = {host.group for host in record.hosts if host.is_head}
    apart = not any(host.samples_prepared for host in record.hosts if host.group in groups)
    return None if record.cluster_attached and apart else "the CPU stages"


def gpu_of(record: RunRecord, known: Catalog) -> str:
    """The catalog's name of the GPU that a run trained on; `CPU` where it had none, or only declared ones."""
    if record.ranks and all(rank.device == "cpu" for rank in record.ranks):
        return TRAINED_ON_CPU
    for host in record.hosts:
        kind = known.types.get(host.instance_type or "")
        if host.gpus and kind is not None and kind.gpu:
            return kind.gpu
    if not record.hardware.gpus:
        return "unknown GPU"  # of another host than the driver's
    words = set(record.hardware.gpus[0].replace("-", " ").split())
    kinds = {each.gpu for each in known.types.values() if each.gpu}
    named = (kind for kind in sorted(kinds, key=len, reverse=True) if words >= set(kind.split()))
    return next(named, record.hardware.gpus[0])


def cpu_kind_of(record: RunRecord) -> str:
    """The family of the CPU hosts, or the CPU's name where no host says its instance type."""
    named = [(host.samples_prepared, host.instance_type or "") for host in record.hosts if host.cpus]
    typed = [(prepared, kind) for prepared, kind in named if "." in kind]
    if typed:
        _, kind = max(typed, key=lambda each: each[0])
        return kind.split(".")[1]
    return record.hardware.cpu_model


def hardware_of(record: RunRecord) -> str:
    """`4 x Intel … , 1 x NVIDIA A10G`."""
    facts = [f"{record.hardware.cpu_cores} x {record.hardware.cpu_model}"]
    return ", ".join(
        facts + [f"{record.hardware.gpus.count(name)} x {name}" for name in dict.fromkeys(record.hardware.gpus)]
    )
