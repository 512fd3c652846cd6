"""The section `sagemaker`: how the job becomes a training job in the cloud."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raytrain.config.section import PositiveInt, Section

S3Uri = Annotated[str, Field(pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^\x00-\x1f\x7f]*)?$", max_length=1024)]


class Image(Section):
    """An AWS deep-learning container, by what is in it."""

    framework: Literal["pytorch"] = Field("pytorch", description="whose container")
    version: str = Field("2.9.0", description="of PyTorch")
    python: str | None = Field(None, description="such as py312; default: the only one there is")


class Channel(Section):
    """Input data that SageMaker puts into a folder of this name on every host."""

    uri: S3Uri = Field(description="folder in S3")
    groups: tuple[str, ...] = Field((), description="whose hosts get it; all channels name groups, or none does")
    mode: Literal["File", "FastFile"] = Field(
        "File", description="copied before the job starts, or read from S3 where a file is opened"
    )
    distribution: Literal["FullyReplicated", "ShardedByS3Key"] = Field(
        "FullyReplicated", description="everything on every host, or a part of the files on each"
    )
    content_type: str | None = Field(None, description="MIME type, as SageMaker is told")


class Checkpoints(Section):
    """Kept in S3 while the job runs; a spot job that was interrupted goes on from them."""

    uri: S3Uri | None = Field(None, description="default: `<bucket>/<prefix>/<name>/checkpoints`, each job its own")
    path: str | None = Field(None, description="in the containers; default: the folder checkpoints of SageMaker's")


class Vpc(Section):
    """A private network that the hosts are in."""

    subnets: Annotated[tuple[str, ...], Field(min_length=1, max_length=16)] = Field(description="1 to 16 ids")
    security_groups: Annotated[tuple[str, ...], Field(min_length=1, max_length=5)] = Field(description="1 to 5 ids")


class Kms(Section):
    """Keys by id or ARN; `output` also by alias."""

    volume: str | None = Field(None, description="of the hosts' disks")
    output: str | None = Field(None, description="of results, and of what is staged in S3")


class SageMaker(Section):
    """How the job becomes a SageMaker training job; `cluster.groups` says on which hosts."""

    region: str | None = Field(None, description="default: of your AWS configuration")
    role: str | None = Field(None, description="ARN or name of the role that the job assumes")
    bucket: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")] | None = Field(
        None, description="for code and results; default: `sagemaker-<region>-<account>`"
    )
    prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9!_.*'()/-]*$")] = Field(
        "raytrain", description="folder in the bucket"
    )
    image: str | Image = Field(Image(), description="address of a container's image, or one of AWS's by what is in it")
    source_dir: str = Field("source_dir", description="folder of your code")
    program: tuple[str, ...] = Field(("train.py", "job.yaml"), description="run on the head; job.yaml is this job")
    bootstrap: tuple[str, ...] = Field((), description="options of `raytrain bootstrap`")
    channels: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")], Channel] = {}
    output: S3Uri | None = Field(None, description="of results; default: `<bucket>/<prefix>/<name>`")
    checkpoints: Checkpoints | None = Checkpoints()
    spot: bool = Field(False, description="cheaper hosts that AWS may take away at any time")
    max_run_s: PositiveInt = Field(86_400, description="seconds after which SageMaker stops the job")
    max_wait_s: PositiveInt | None = Field(
        None, description="seconds of a spot job, with its waits; default: twice max_run_s"
    )
    max_pending_s: Annotated[int, Field(ge=1800, le=2_419_200)] | None = Field(
        None, description="seconds that the job may wait for hosts; default: SageMaker's"
    )
    volume_gb: PositiveInt = Field(30, description="disk of a host, GB")
    vpc: Vpc | None = None
    kms: Kms = Kms()
    encrypt_traffic: bool = Field(False, description="between the hosts")
    network_isolation: bool = Field(False, description="hosts without any network but each other's")
    tags: dict[str, str] = Field({}, description="of the job, in your account")
    environment: dict[str, str] = Field({}, description="variables of the containers")
    keep_alive_s: PositiveInt | None = Field(None, description="warm pool: seconds that hosts wait for the next job")
    remote_debug: bool = Field(False, description="allow a shell in the containers (SSM)")
    retries: Annotated[int, Field(ge=1, le=30)] | None = Field(None, description="after failures of SageMaker's own")
    metrics: dict[str, str] = Field({}, description="more CloudWatch metrics: name -> regular expression with a group")
    token: Literal["channel", "environment"] = Field(
        "channel", description="how Ray's token travels; whoever may describe the job can read its environment"
    )
    max_usd_per_hour: Annotated[float, Field(gt=0)] | None = Field(None, description="refuse to launch above it")
