"""Run job files one after the other, each as a user would run it, and read their records."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from raytrain.config.cluster import Group
from raytrain.config.data import SyntheticSource
from raytrain.config.job import Job
from raytrain.config.sagemaker import SageMaker
from raytrain.cost.instances import Catalog, most_usd
from raytrain.errors import ConfigError, TrainingError
from raytrain.record.schema import RunRecord, parse_record, read_record

PLACES = {
    "nodes": "emulated nodes of this machine",
    "twin": "simulated hosts of this machine",
    "sagemaker": "SageMaker",
}
PROBE_STEPS = 3
PROBE_BATCH = 8  # samples a rank and step, at most: enough for a rough figure


@dataclass(frozen=True)
class Trials:
    """Where job files run, and with what changes.

    Args:
        on: one of PLACES: emulated nodes of this machine, simulated hosts of it, or SageMaker.
        overrides: `key=value` of every job file.
        scale: CPUs of an emulated host as a share of its vCPUs; None for all.
        prices: a file of the user's.
        channels: `NAME=FOLDER` of twins.

    Raises:
        ConfigError: there is no such place.
    """

    on: str
    known: Catalog
    overrides: list[str]
    scale: float | None = None
    prices: Path | None = None
    channels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.on not in PLACES:
            raise ConfigError(f"--on {self.on!r} must be one of {', '.join(PLACES)}")
        if self.scale is not None and not 0 < self.scale <= 1:
            raise ConfigError(f"--scale {self.scale:g} must be above 0 and at most 1")

    def region(self, paths: list[Path]) -> str | None:
        """Of the first job file that names one: the record of a twin does not."""
        jobs = (Job.from_yaml(path, self.overrides) for path in paths if path.suffix != ".json")
        return next((job.sagemaker.region for job in jobs if job.sagemaker and job.sagemaker.region), None)

    def intended(self, path: Path) -> str:
        """What would run for a job file, in a line."""
        job = Job.from_yaml(path, self.overrides)
        hosts = nodes_of(job, self.known, self.scale) or "one node, which is all of it"
        length = f"{job.training.epochs:,} epochs" if job.training.epochs else f"{job.training.steps:,} steps"
        samples = _samples(job, self.known)
        count = f", {samples:,} samples" if samples else ""
        return f"{job.name} ({path}): {length}{count}, on {PLACES[self.on]} ({hosts})"

    def duration(self, path: Path) -> str:
        """About how long a job file's run would take. It is tried for a moment where that costs nothing.

        Raises:
            RaytrainError: the trial failed.
        """
        job = Job.from_yaml(path, self.overrides)
        if self.on == "sagemaker":
            return self._most_usd(job)
        if self.on == "twin":
            return f"{job.name}: how long is not known before"
        batch = min(job.data.step_samples(1), PROBE_BATCH) if job.data else PROBE_BATCH
        with tempfile.TemporaryDirectory(prefix="raytrain-compare-") as folder:
            short = [f"training.steps={PROBE_STEPS}", "training.epochs=null", f"run_dir={folder}"]
            short += (
                [f"data.batch_size={batch}", "data.global_batch_size=null", "data.validation=null"] if job.data else []
            )
            record = self._train(path, job, [*self.overrides, *short])
        samples = _samples(job, self.known, record.num_train)
        seconds = (record.startup.first_step_s or 0.0) + samples / record.totals.samples_per_s
        return (
            f"{job.name}: roughly {lasting(seconds)} without validation, at the {record.totals.samples_per_s:.2g} "
            f"samples/s of a probe of {PROBE_STEPS} steps of {batch}"
        )

    def _most_usd(self, job: Job) -> str:
        asked = job.sagemaker or SageMaker()
        kept_s = asked.keep_alive_s or 0
        groups = job.cluster.groups
        prices = [self.known.prices.get((asked.region, group.instance_type)) for group in groups]
        line = f"{job.name}: how long is not known before; SageMaker ends it after {lasting(asked.max_run_s)}"
        if kept_s:
            line += f" and keeps its hosts for {lasting(kept_s)} more"
        if not groups or None in prices:
            return f"{line}, and what that costs is not known either"
        usd = sum(price.usd_per_hour * group.hosts for price, group in zip(prices, groups, strict=True))
        return f"{line}, at most ${most_usd(usd, asked.max_run_s, kept_s):,.2f}"

    def _train(self, path: Path, job: Job, overrides: list[str]) -> RunRecord:
        sets = [word for each in overrides for word in ("--set", each)]
        nodes = nodes_of(job, self.known, self.scale)
        return _record(["train", str(path), *sets, "--json", *(["--nodes", nodes] if nodes else [])])

    def record(self, path: Path) -> RunRecord:
        """A record as it is, or of the job file's run.

        Raises:
            RaytrainError: it cannot be read, or its run failed.
        """
        if path.suffix == ".json":
            return read_record(path)
        job = Job.from_yaml(path, self.overrides)
        sets = [word for each in self.overrides for word in ("--set", each)]
        prices = ["--prices", str(self.prices)] if self.prices else []
        region = ["--region", job.sagemaker.region] if job.sagemaker and job.sagemaker.region else []
        if self.on == "nodes":
            return self._train(path, job, self.overrides)
        if self.on == "twin":
            share = ["--scale", f"{self.scale:g}"] if self.scale else []
            share += [word for each in self.channels for word in ("--channel", each)]
            with tempfile.TemporaryDirectory(prefix="raytrain-compare-") as folder:
                twin = json.loads(_run(["twin", str(path), *sets, *share, *prices, "--folder", folder, "--json"]))
                out = ["--out", f"{folder}/record.json", "--json"]
                return _record(["record", twin["TrainingJobName"], "--folder", folder, *out])
        launched = json.loads(_run(["launch", str(path), *sets, *prices, "--yes", "--wait", "--json"]).splitlines()[-1])
        return _record(["record", launched["TrainingJobName"], *prices, *region, "--json"])


def lasting(seconds: float) -> str:
    """A rough duration: 40 s, 12 min, 3.3 h, 4.2 days."""
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{_rough(seconds / length)} {unit}"
    return f"{_rough(seconds)} s"


def _rough(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0") if value < 10 else f"{value:.0f}"


def _samples(job: Job, known: Catalog, num_train: int | None = None) -> int | None:
    """That a job trains on in all; None where only its data says how many there are."""
    if job.training.steps:
        gpus = sum(group.hosts * _gpus(group, known) for group in job.cluster.groups)
        return job.training.steps * job.data.step_samples(max(gpus, 1)) if job.data else None
    if num_train is None and job.data is not None and isinstance(job.data.train, SyntheticSource):
        num_train = job.data.train.num_samples
    return job.training.epochs * num_train if num_train else None


def nodes_of(job: Job, known: Catalog, scale: float | None) -> str | None:
    """The job's groups as `--nodes` takes them; None for a job without, which is this machine alone."""
    return ",".join(_node(group, known, scale) for group in job.cluster.groups) or None


def _node(group: Group, known: Catalog, scale: float | None) -> str:
    cpus, gpus = group.cpus or known.type(group.instance_type).vcpus, _gpus(group, known)
    cpus = max(round(cpus * (scale or 1)), 1)
    return f"{group.name}={group.hosts}x{cpus}" + (f"x{gpus}" if gpus else "")


def _gpus(group: Group, known: Catalog) -> int:
    """Of a host."""
    if group.gpus is None and group.instance_type:
        return known.type(group.instance_type).gpus
    return group.gpus or 0


def _record(arguments: list[str]) -> RunRecord:
    return parse_record(_run(arguments), "the record of " + arguments[1])


def _run(arguments: list[str]) -> str:
    """What `raytrain …` prints; what it says besides is shown.

    Raises:
        TrainingError: it failed; it has said why.
    """
    ended = subprocess.run([sys.executable, "-m", "raytrain", *arguments], stdout=subprocess.PIPE, text=True)
    if ended.returncode:
        raise TrainingError(
            f"raytrain {' '.join(arguments[:2])} ended with exit code {ended.returncode}; nothing compared"
        )
    return ended.stdout
