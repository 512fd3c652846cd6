"""A training job's request, run on simulated hosts of this machine.

Every host gets the files, variables and command that SageMaker would give its container; the job ends as SageMaker
would end it, and what it leaves is collected. docs/sagemaker.md lists what is not the same.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from raytrain.cluster.environment import EMULATED_GPUS, FAILURE_CHARACTERS, ML_FOLDER, container_environment
from raytrain.cost.instances import Catalog
from raytrain.errors import CloudError, ClusterError, ConfigError, Stopped
from raytrain.sagemaker.request import Group, Request, groups_of
from raytrain.sagemaker.submit import Say
from raytrain.sagemaker.twin.collect import collect, keep_logs
from raytrain.sagemaker.twin.load import LoadMeter
from raytrain.sagemaker.twin.store import Store
from raytrain.simulate.hosts import SimulatedHost, SimulatedHosts, unavailable

KILL_AFTER_S = 120.0  # SageMaker's, between SIGTERM and SIGKILL
WATCH_EVERY_S = 0.05
MIN_CPUS = 0.1


@dataclass(frozen=True, kw_only=True)
class TwinOptions:
    """How this machine plays the hosts.

    Attributes:
        scale: CPUs of a host as a share of its instance type's vCPUs, enforced by a quota; None for no quota.
        gpus: to emulate on every host of a type that has some; None for as many as it has.
        stop_after_s: as if the user stopped the job then; None for never.
        kill_after_s: between SIGTERM and SIGKILL.
    """

    scale: float | None = None
    gpus: int | None = None
    stop_after_s: float | None = None
    kill_after_s: float = KILL_AFTER_S


@dataclass
class TwinJob:
    """A request on simulated hosts.

    Attributes:
        request: as for CreateTrainingJob, or as DescribeTrainingJob returned it.
        folder: of this job alone; must not exist.
        asked_to_stop: the reason of the end, once there is one: what SageMaker calls it.
    """

    request: Request
    folder: Path
    store: Store
    catalog: Catalog
    options: TwinOptions = field(default_factory=TwinOptions)
    show: Callable[[str, str], None] = lambda host, line: None
    say: Say = lambda text: None
    started_at: float = 0.0
    ended_at: float = 0.0
    asked_to_stop: str | None = None
    _kill_at: float | None = None

    @property
    def name(self) -> str:
        return self.request["TrainingJobName"]

    def run(self) -> dict[str, Any]:
        """Run it to its end and return its description, in the form of DescribeTrainingJob.

        Raises:
            ConfigError: the twin cannot play this request.
            ClusterError: this machine cannot simulate hosts.
        """
        self._check()
        reason = unavailable()
        if reason:
            raise ClusterError(f"the twin cannot run here: {reason}")
        placed = place(self.request)
        with SimulatedHosts(list(placed), self.folder / "hosts", self._quotas(placed)) as hosts:
            try:
                with self._interruptible():
                    return self._run(hosts, placed)
            finally:
                keep_logs(self.folder, list(hosts.hosts.values()))
                if not self.started_at:  # nothing ran: the same name can be tried again
                    shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, hosts: SimulatedHosts, placed: Mapping[str, Group]) -> dict[str, Any]:
        members: dict[str, list[str]] = {group.name: [] for group in groups_of(self.request)}
        for name, group in placed.items():
            members[group.name].append(name)
        hosts.place({g.name: (g.instance_type, members[g.name]) for g in groups_of(self.request)})
        for name, group in placed.items():
            self._furnish(hosts[name], group, placed)
        self.say(f"{self.name}: {', '.join(f'{n} is {g.name} ({g.instance_type})' for n, g in placed.items())}")
        with LoadMeter(hosts.hosts) as meter:
            self.started_at = time.time()
            for name, group in placed.items():
                self._start(hosts, name, group)
            self._watch(hosts)
            self.ended_at = time.time()
        described = self._describe(hosts, placed, meter.loads())
        (self.folder / "description.json").write_text(json.dumps(described, indent=1) + "\n")
        return described

    def _check(self) -> None:
        if not self.request["AlgorithmSpecification"].get("ContainerEntrypoint"):
            raise ConfigError(
                "the request has no ContainerEntrypoint, and the twin has no image whose own it could run"
            )
        for channel in self.request.get("InputDataConfig", []):
            source = channel["DataSource"].get("S3DataSource")
            if source is None or source["S3DataType"] != "S3Prefix" or channel.get("InputMode") == "Pipe":
                raise ConfigError(
                    f"channel {channel['ChannelName']!r}: the twin knows S3 prefixes in File or FastFile mode alone"
                )
        local = self.request.get("CheckpointConfig", {}).get("LocalPath", ML_FOLDER)
        if not Path(local).is_relative_to(ML_FOLDER):
            raise ConfigError(f"checkpoints: the twin keeps those under {ML_FOLDER} alone, not {local}")
        if self.options.scale is not None and self.options.scale <= 0:
            raise ConfigError("--scale must be more than 0")
        if self.folder.exists():
            raise ConfigError(f"{self.folder} exists already; choose another name, or remove it")

    def _quotas(self, placed: Mapping[str, Group]) -> dict[str, float]:
        if self.options.scale is None:
            return {}
        return {
            name: max(self.catalog.type(group.instance_type).vcpus * self.options.scale, MIN_CPUS)
            for name, group in placed.items()
        }

    def _furnish(self, host: SimulatedHost, group: Group, placed: Mapping[str, Group]) -> None:
        """The container's files, but for resourceconfig.json."""
        inputs = {}
        for channel in self.request.get("InputDataConfig", []):
            source = channel["DataSource"]["S3DataSource"]
            receivers = [n for n, g in placed.items() if g.name in source.get("InstanceGroupNames", [g.name])]
            if host.name not in receivers:
                continue
            sharded = source.get("S3DataDistributionType") == "ShardedByS3Key"
            shard = (sorted(receivers).index(host.name), len(receivers)) if sharded else (0, 1)
            found = self.store.fetch(source["S3Uri"], host.ml / "input/data" / channel["ChannelName"], shard=shard)
            if not found and not sharded:
                raise CloudError(f"channel {channel['ChannelName']!r}: there is nothing at {source['S3Uri']}")
            inputs[channel["ChannelName"]] = {
                "ContentType": channel.get("ContentType", ""),
                "TrainingInputMode": channel.get("InputMode", "File"),
                "S3DistributionType": source.get("S3DataDistributionType", "FullyReplicated"),
                "RecordWrapperType": channel.get("RecordWrapperType", "None"),
            }
        host.configure("inputdataconfig.json", inputs)
        host.configure("hyperparameters.json", self.request.get("HyperParameters", {}))
        for part in ("model", "output/data"):
            (host.ml / part).mkdir(parents=True, exist_ok=True)
        if checkpoints := self._checkpoints(host):
            checkpoints.mkdir(parents=True, exist_ok=True)
            if self.store.answers(self.request["CheckpointConfig"]["S3Uri"]):
                self.store.fetch(self.request["CheckpointConfig"]["S3Uri"], checkpoints)

    def _checkpoints(self, host: SimulatedHost) -> Path | None:
        local = self.request.get("CheckpointConfig", {}).get("LocalPath", f"{ML_FOLDER}/checkpoints")
        return host.ml / Path(local).relative_to(ML_FOLDER) if "CheckpointConfig" in self.request else None

    def _start(self, hosts: SimulatedHosts, name: str, group: Group) -> None:
        algorithm = self.request["AlgorithmSpecification"]
        kind = self.catalog.type(group.instance_type)
        gpus = kind.gpus if self.options.gpus is None else min(self.options.gpus, kind.gpus)
        environment = {
            **self.request.get("Environment", {}),
            "TRAINING_JOB_NAME": self.name,
            "TRAINING_JOB_ARN": arn(self.request),
            **({EMULATED_GPUS: str(gpus)} if gpus else {}),
        }
        command = [*algorithm["ContainerEntrypoint"], *algorithm.get("ContainerArguments", [])]
        hosts.start(name, command, container_environment(environment), folder=Path("/"), inherit=False)

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """The first Ctrl-C or SIGTERM is StopTrainingJob, a second one kills; before the start it ends it all."""

        def heard(number: int, _frame: Any) -> None:
            if not self.started_at:
                raise Stopped("stopped; nothing was started", number)
            if self.asked_to_stop is None:
                self.asked_to_stop = "Stopped"
            else:
                self._kill_at = 0.0

        before = {}
        with contextlib.suppress(ValueError):  # not the main thread
            before = {n: signal.signal(n, heard) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _watch(self, hosts: SimulatedHosts) -> None:
        """Until every container has ended: show what they say, and end the job where SageMaker would."""
        limit = self.started_at + self.request.get("StoppingCondition", {}).get("MaxRuntimeInSeconds", float("inf"))
        stop_at = self.started_at + (float("inf") if self.options.stop_after_s is None else self.options.stop_after_s)
        tails = {name: _Tail(host.log) for name, host in hosts.hosts.items()}
        while True:
            running = [host for host in hosts.hosts.values() if host.process.poll() is None]
            for name, host in hosts.hosts.items():
                if host.ended_at is None and host not in running:
                    host.ended_at = time.monotonic()
                for line in tails[name].new(final=host not in running):
                    self.show(name, line)
            if not running:
                return
            if self.asked_to_stop is None:
                if any(h.process.returncode for h in hosts.hosts.values() if h not in running):
                    self.asked_to_stop = "Failed"
                elif time.time() > limit:
                    self.asked_to_stop = "MaxRuntimeExceeded"
                elif time.time() > stop_at:
                    self.asked_to_stop = "Stopped"
            self._end(running)
            time.sleep(WATCH_EVERY_S)

    def _end(self, running: list[SimulatedHost]) -> None:
        """SIGTERM to what still runs once the job has to end, SIGKILL two minutes later."""
        if self.asked_to_stop is None:
            return
        if self._kill_at is None:
            self.say(f"{self.asked_to_stop}: SIGTERM to {', '.join(host.name for host in running)}")
            self._kill_at = time.monotonic() + self.options.kill_after_s
            for host in running:
                with contextlib.suppress(ClusterError):
                    host.signal(signal.SIGTERM)
        elif time.monotonic() > self._kill_at:
            for host in running:
                with contextlib.suppress(ClusterError):
                    host.kill()

    def _describe(self, hosts: SimulatedHosts, placed: Mapping[str, Group], loads: list[dict[str, Any]]) -> Request:
        codes = {name: 137 if h.killed else _code(h.process.returncode) for name, h in hosts.hosts.items()}
        order = sorted(hosts.hosts.values(), key=lambda h: h.ended_at)
        failed = next((host for host in order if codes[host.name]), None)
        status, secondary = self._outcome(failed)
        seconds = max(int(self.ended_at - self.started_at + 0.5), 1)
        described: Request = {
            **self.request,
            "TrainingJobArn": arn(self.request),
            "TrainingJobStatus": status,
            "SecondaryStatus": secondary,
            "CreationTime": _iso(self.started_at),
            "TrainingStartTime": _iso(self.started_at),
            "TrainingEndTime": _iso(self.ended_at),
            "TrainingTimeInSeconds": seconds,
            "BillableTimeInSeconds": seconds,
            "Twin": {
                "ExitCodes": codes,
                "Groups": {name: group.name for name, group in placed.items()},
                "Loads": loads,
                "Scale": self.options.scale,
                "Artifacts": collect(self.folder, list(hosts.hosts.values()), self._checkpoints, status, self.say),
            },
        }
        if status == "Failed":
            text = (failed.failure or "").strip() or f"no failure file on {failed.name}"
            described["FailureReason"] = f"AlgorithmError: {text[:FAILURE_CHARACTERS]}, exit code: {codes[failed.name]}"
        return described

    def _outcome(self, failed: SimulatedHost | None) -> tuple[str, str]:
        if self.asked_to_stop in ("Stopped", "MaxRuntimeExceeded"):
            return "Stopped", self.asked_to_stop
        return ("Failed", "Failed") if failed is not None else ("Completed", "Completed")


class _Tail:
    """The new lines of a file that grows."""

    def __init__(self, path: Path):
        self._path, self._at, self._rest = path, 0, b""

    def new(self, *, final: bool = False) -> list[str]:
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._at)
                data = file.read()
            self._at += len(data)
            self._rest += data
        *lines, self._rest = self._rest.split(b"\n")
        if final and self._rest:
            lines, self._rest = [*lines, self._rest], b""
        return [line.decode(errors="replace") for line in lines]


def place(request: Request) -> dict[str, Group]:
    """Which group each host is in. SageMaker promises no order, so that the twin deals them out by the job's name."""
    groups = [group for group in groups_of(request) for _ in range(group.hosts)]
    random.Random(request["TrainingJobName"]).shuffle(groups)
    return {f"algo-{number}": group for number, group in enumerate(groups, start=1)}


def arn(request: Request) -> str:
    account = request["RoleArn"].split(":")[4]
    return (
        request.get("TrainingJobArn") or f"arn:aws:sagemaker:twin:{account}:training-job/{request['TrainingJobName']}"
    )


def _code(status: int) -> int:
    return 128 - status if status < 0 else status


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
