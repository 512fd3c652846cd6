"""From a job to the CreateTrainingJob request. Pure: nothing is read, asked or sent."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from raytrain.cluster.environment import ML_FOLDER, TOKEN_CHANNEL
from raytrain.config.job import Job
from raytrain.config.sagemaker import Channel, Checkpoints, SageMaker
from raytrain.errors import ConfigError

Request = dict[str, Any]

CODE_CHANNEL, DRIVERS_CHANNEL = "code", "sm_drivers"  # as the SageMaker Python SDK names them
MANAGED_CHANNELS = (CODE_CHANNEL, DRIVERS_CHANNEL, TOKEN_CHANNEL)
CODE_FOLDER = f"{ML_FOLDER}/input/data/{CODE_CHANNEL}"
START_SCRIPT = f"{ML_FOLDER}/input/data/{DRIVERS_CHANNEL}/sm_train.sh"
ENTRYPOINT = ["/bin/bash"]
ARGUMENTS = ["-c", f"chmod +x {START_SCRIPT} && {START_SCRIPT}"]  # bash 5.1 and newer: becomes the script, no child

NAME_CHARACTERS = 63
STAMP = "%Y%m%d%H%M%S"

# What the lines of a training log say, as CloudWatch metrics; SageMaker takes the group's number. tests hold them to
# the lines that report.live writes.
METRICS = {
    "raytrain:samples_per_s": r"([0-9.]+) samples/s",
    "raytrain:wait_percent": r"waiting ([0-9.]+)%",
    "raytrain:loss": r"(?:^|  )loss ([0-9.]+)",
    "raytrain:validation_loss": r"validation loss ([0-9.]+)",
    "raytrain:validation_accuracy": r"validation accuracy ([0-9.]+)",
}


@dataclass(frozen=True)
class Places:
    """Where a training job's things lie in S3. Laid out as the SageMaker Python SDK does.

    Attributes:
        base: what the names of a job's launches have in common.
        name: of the training job.
        token_id: the last part of where the token lies; not the job's name, which the SDK settles late.
    """

    bucket: str
    prefix: str
    base: str
    name: str
    token_id: str = ""

    @property
    def root(self) -> str:
        return "/".join(part for part in (f"s3://{self.bucket}", self.prefix.strip("/"), self.base) if part)

    def input(self, channel: str) -> str:
        return f"{self.root}/{self.name}/input/{channel}"

    @property
    def token(self) -> str:
        return f"{self.root}/tokens/{self.token_id}"

    @property
    def checkpoints(self) -> str:
        return f"{self.root}/{self.name}/checkpoints"


@dataclass(frozen=True)
class Group:
    """An instance group of a request."""

    name: str
    instance_type: str
    hosts: int


def base_name(job: Job) -> str:
    """The job's name in the characters that SageMaker takes, with room for a time behind it."""
    base = re.sub(r"[^A-Za-z0-9]+", "-", job.name).strip("-") or "raytrain"
    return base[: NAME_CHARACTERS - len("-20261231235959")].rstrip("-")


def timed_name(base: str, now: datetime) -> str:
    """`digits-20261122130455`, as the SDK makes them."""
    return f"{base}-{now.strftime(STAMP)}"


def settings(job: Job) -> SageMaker:
    """The job's `sagemaker` section.

    Raises:
        ConfigError: it has none.
    """
    if job.sagemaker is None:
        raise ConfigError("the job file has no `sagemaker` section; `sagemaker: {role: …}` is the least it takes")
    return job.sagemaker


def build(job: Job, places: Places, *, image: str, role: str, token: str = "") -> Request:
    """The request.

    Args:
        token: of Ray's authentication, for a job that sends it in the environment.

    Raises:
        ConfigError: the job has no `sagemaker` section, no instance groups, or a group without an instance type.
    """
    asked = settings(job)
    request: Request = {
        "TrainingJobName": places.name,
        "AlgorithmSpecification": {
            "TrainingImage": image,
            "TrainingInputMode": "File",
            "MetricDefinitions": [{"Name": n, "Regex": r} for n, r in metrics(asked).items()],
            "ContainerEntrypoint": list(ENTRYPOINT),
            "ContainerArguments": list(ARGUMENTS),
        },
        "RoleArn": role,
        "HyperParameters": {},
        "InputDataConfig": _channels(job, places),
        "OutputDataConfig": _output(asked, places),
        "ResourceConfig": _resources(job),
        "StoppingCondition": stopping(asked),
        "Environment": environment(asked, token),
    }
    if asked.checkpoints is not None:
        where = asked.checkpoints.uri or places.checkpoints
        request["CheckpointConfig"] = {"S3Uri": where, "LocalPath": checkpoint_path(asked.checkpoints)}
    if asked.spot:
        request["EnableManagedSpotTraining"] = True
    if asked.vpc is not None:
        request["VpcConfig"] = {
            "SecurityGroupIds": list(asked.vpc.security_groups),
            "Subnets": list(asked.vpc.subnets),
        }
    if asked.encrypt_traffic:
        request["EnableInterContainerTrafficEncryption"] = True
    if asked.network_isolation:
        request["EnableNetworkIsolation"] = True
    if asked.tags:
        request["Tags"] = [{"Key": key, "Value": value} for key, value in asked.tags.items()]
    if asked.retries is not None:
        request["RetryStrategy"] = {"MaximumRetryAttempts": asked.retries}
    if asked.remote_debug:
        request["RemoteDebugConfig"] = {"EnableRemoteDebug": True}
    return request


def command(asked: SageMaker) -> str:
    """What every host runs in the code folder. `exec`, so that SIGTERM reaches the bootstrap."""
    words = ["python3", "-m", "raytrain", "bootstrap", *asked.bootstrap, "--", *asked.program]
    return f"exec {shlex.join(words)}"


def metrics(asked: SageMaker) -> dict[str, str]:
    return {**METRICS, **asked.metrics}


def environment(asked: SageMaker, token: str) -> dict[str, str]:
    """The raytrain that was packed comes before any that the image has; the user's own variables stay."""
    path = ":".join(filter(None, (CODE_FOLDER, asked.environment.get("PYTHONPATH"))))
    own = {"RAY_AUTH_TOKEN": token} if asked.token == "environment" else {}
    quiet = {"PIP_QUIET": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}  # else a line for every package that is there
    return {**quiet, **asked.environment, "PYTHONPATH": path, **own}


def stopping(asked: SageMaker) -> dict[str, int]:
    found = {"MaxRuntimeInSeconds": asked.max_run_s}
    if asked.max_wait_s is not None or asked.spot:
        found["MaxWaitTimeInSeconds"] = asked.max_wait_s or 2 * asked.max_run_s
    if asked.max_pending_s is not None:
        found["MaxPendingTimeInSeconds"] = asked.max_pending_s
    return found


def checkpoint_path(kept: Checkpoints) -> str:
    """Where the containers keep them."""
    return kept.path or f"{ML_FOLDER}/checkpoints"


def bound(asked: SageMaker) -> bool:
    """Whether the job's channels name groups."""
    return any(channel.groups for channel in asked.channels.values())


def homogeneous(job: Job) -> bool:
    """One group that no channel names is sent as one instance type and count."""
    return len(job.cluster.groups) == 1 and not bound(settings(job))


def managed_groups(job: Job) -> list[str]:
    """What the channels of ours are bound to: all groups, if the user's are bound; else nothing."""
    return [group.name for group in job.cluster.groups] if bound(settings(job)) else []


def s3_channel(name: str, uri: str, groups: list[str] | tuple[str, ...], channel: Channel | None = None) -> Request:
    source: Request = {
        "S3DataType": "S3Prefix",
        "S3Uri": uri,
        "S3DataDistributionType": channel.distribution if channel else "FullyReplicated",
    }
    if groups:
        source["InstanceGroupNames"] = list(groups)
    found = {"ChannelName": name, "DataSource": {"S3DataSource": source}}
    if channel is not None and channel.content_type:
        found["ContentType"] = channel.content_type
    return {**found, "InputMode": channel.mode if channel else "File"}


def groups_of(request: Mapping[str, Any]) -> list[Group]:
    """The instance groups of a request or description; one type and count are one group.

    Raises:
        ConfigError: the job has no instances of its own.
    """
    resources = request.get("ResourceConfig", {})
    if resources.get("InstanceGroups"):
        return [
            Group(g["InstanceGroupName"], g["InstanceType"], g["InstanceCount"]) for g in resources["InstanceGroups"]
        ]
    if "InstanceType" not in resources:
        raise ConfigError(f"the job {request['TrainingJobName']} has no instances of its own")
    return [Group("homogeneousCluster", resources["InstanceType"], resources["InstanceCount"])]


def _channels(job: Job, places: Places) -> list[Request]:
    asked, ours = settings(job), managed_groups(job)
    found = [s3_channel(name, channel.uri, channel.groups, channel) for name, channel in asked.channels.items()]
    if asked.token == "channel":
        found.append(s3_channel(TOKEN_CHANNEL, places.token, ours))
    return found + [s3_channel(name, places.input(name), ours) for name in (CODE_CHANNEL, DRIVERS_CHANNEL)]


def _output(asked: SageMaker, places: Places) -> Request:
    found = {"S3OutputPath": asked.output or places.root, "CompressionType": "GZIP"}
    return {**found, "KmsKeyId": asked.kms.output} if asked.kms.output else found


def _resources(job: Job) -> Request:
    asked = settings(job)
    if not job.cluster.groups:
        raise ConfigError("the job file has no `cluster.groups`: name at least one, with its instance_type")
    for group in job.cluster.groups:
        if group.instance_type is None:
            raise ConfigError(f"cluster.groups: group {group.name!r} has no instance_type, such as ml.g5.xlarge")
    if homogeneous(job):
        group = job.cluster.groups[0]
        found: Request = {"InstanceType": group.instance_type, "InstanceCount": group.hosts}
    else:
        found = {
            "InstanceGroups": [
                {"InstanceType": g.instance_type, "InstanceCount": g.hosts, "InstanceGroupName": g.name}
                for g in job.cluster.groups
            ]
        }
    found["VolumeSizeInGB"] = asked.volume_gb
    if asked.kms.volume:
        found["VolumeKmsKeyId"] = asked.kms.volume
    if asked.keep_alive_s is not None:
        found["KeepAlivePeriodInSeconds"] = asked.keep_alive_s
    return found
