"""Run job files one after the other, each as a user would run it, and read their records."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from raytrain.config import Group, Job
from raytrain.cost.instances import Catalog
from raytrain.errors import ConfigError, TrainingError
from raytrain.record import RunRecord, parse_record, read_record

PLACES = ("nodes", "twin", "sagemaker")


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
            nodes = nodes_of(job, self.known, self.scale)
            return _record(["train", str(path), *sets, "--json", *(["--nodes", nodes] if nodes else [])])
        if self.on == "twin":
            share = ["--scale", f"{self.scale:g}"] if self.scale else []
            share += [word for each in self.channels for word in ("--channel", each)]
            with tempfile.TemporaryDirectory(prefix="raytrain-compare-") as folder:
                twin = json.loads(_run(["twin", str(path), *sets, *share, *prices, "--folder", folder, "--json"]))
                out = ["--out", f"{folder}/record.json", "--json"]
                return _record(["record", twin["TrainingJobName"], "--folder", folder, *out])
        launched = json.loads(_run(["launch", str(path), *sets, *prices, "--yes", "--wait", "--json"]).splitlines()[-1])
        return _record(["record", launched["TrainingJobName"], *prices, *region, "--json"])


def nodes_of(job: Job, known: Catalog, scale: float | None) -> str | None:
    """The job's groups as `--nodes` takes them; None for a job without, which is this machine alone."""
    return ",".join(_node(group, known, scale) for group in job.cluster.groups) or None


def _node(group: Group, known: Catalog, scale: float | None) -> str:
    facts = known.type(group.instance_type) if group.instance_type else None
    cpus = group.cpus or facts.vcpus
    gpus = facts.gpus if group.gpus is None and facts else group.gpus or 0
    cpus = max(round(cpus * (scale or 1)), 1)
    return f"{group.name}={group.hosts}x{cpus}" + (f"x{gpus}" if gpus else "")


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
