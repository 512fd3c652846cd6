"""The other door: the same job as a ModelTrainer of the SageMaker Python SDK, for those who work with it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raytrain.cluster.environment import TOKEN_CHANNEL
from raytrain.config.job import Job
from raytrain.config.sagemaker import Channel
from raytrain.sagemaker import aws, submit
from raytrain.sagemaker.drivers import REQUIREMENTS
from raytrain.sagemaker.parcel import pack
from raytrain.sagemaker.request import (
    Places,
    checkpoint_path,
    command,
    environment,
    homogeneous,
    managed_groups,
    metrics,
    settings,
    stopping,
)


@contextlib.contextmanager
def trainer_for(job: Job, *, known: aws.Account | None = None) -> Iterator[Any]:
    """A sagemaker.train.ModelTrainer for the job, ready for `train()`: everything is looked at and packed as
    `raytrain launch` does it, and the job's token lies in S3.

    Raises:
        ConfigError: the job file is wrong, or SageMaker would refuse the request.
        CloudError: something does not exist in the account, or the account cannot be reached.
    """
    from botocore.exceptions import HTTPClientError

    known = known or aws.account(settings(job).region)
    launch = submit.prepare(job, known, priced=settings(job).max_usd_per_hour is not None)
    uploaded: list[tuple[str, str]] = []
    trainer = None
    with tempfile.TemporaryDirectory() as folder:
        parcel = pack(job, Path(folder) / "parcel")
        try:
            submit.upload(launch, None, known, uploaded)
            algorithm = launch.request["AlgorithmSpecification"]
            trainer = model_trainer(
                job,
                parcel.code,
                launch.places,
                image=algorithm["TrainingImage"],
                role=launch.request["RoleArn"],
                session=known.session,
                token=launch.token,
            )
            yield trainer
        except (HTTPClientError, KeyboardInterrupt):
            if trainer is None:
                submit.take_back(uploaded, known)
            raise  # else the request may have arrived, and the job would need the token
        except BaseException:
            _take_back_unused(trainer, uploaded, known)
            raise
        else:
            _take_back_unused(trainer, uploaded, known)


def _take_back_unused(trainer: Any, uploaded: list[tuple[str, str]], known: aws.Account) -> None:
    if trainer is None or trainer._latest_training_job is None:  # no job of it exists that needs the token
        submit.take_back(uploaded, known)


def model_trainer(job: Job, code: Path, places: Places, *, image: str, role: str, session: Any, token: str = "") -> Any:
    """A ModelTrainer whose `train()` sends the request of `request.build`, under a name of the SDK's making.

    The token must lie at `places.token` already (`submit.upload`). `train()` uploads `code` itself.

    Args:
        code: the packed folder, such as `parcel.pack` makes; the SDK packs it as its `code` channel.
        session: a boto3 session.
        token: of Ray's authentication, for a job that sends it in the environment.
    """
    from sagemaker.core.helper.session_helper import Session
    from sagemaker.core.training import configs
    from sagemaker.train import ModelTrainer

    asked = settings(job)
    times = stopping(asked)
    output = {"kms_key_id": asked.kms.output} if asked.kms.output else {}
    trainer = ModelTrainer(
        sagemaker_session=Session(
            session, default_bucket=places.bucket, default_bucket_prefix=places.prefix.strip("/") or None
        ),
        base_job_name=places.base,
        role=role,
        training_image=image,
        compute=_compute(job),
        source_code=configs.SourceCode(
            source_dir=str(code), requirements=REQUIREMENTS, command=command(asked), ignore_patterns=None
        ),
        input_data_config=_channels(job, places),
        output_data_config=configs.OutputDataConfig(s3_output_path=asked.output or places.root, **output),
        stopping_condition=configs.StoppingCondition(
            max_runtime_in_seconds=times["MaxRuntimeInSeconds"],
            max_wait_time_in_seconds=times.get("MaxWaitTimeInSeconds"),
            max_pending_time_in_seconds=times.get("MaxPendingTimeInSeconds"),
        ),
        networking=configs.Networking(
            subnets=list(asked.vpc.subnets) if asked.vpc else None,
            security_group_ids=list(asked.vpc.security_groups) if asked.vpc else None,
            enable_network_isolation=asked.network_isolation or None,
            enable_inter_container_traffic_encryption=asked.encrypt_traffic or None,
        ),
        environment=environment(asked, token),
        tags=[configs.Tag(key=key, value=value) for key, value in asked.tags.items()] or None,
    )
    if asked.checkpoints is not None:
        where = {"s3_uri": asked.checkpoints.uri} if asked.checkpoints.uri else {}
        trainer.with_checkpoint_config(configs.CheckpointConfig(local_path=checkpoint_path(asked.checkpoints), **where))
    trainer.with_metric_definitions([configs.MetricDefinition(name=n, regex=r) for n, r in metrics(asked).items()])
    if asked.retries is not None:
        trainer.with_retry_strategy(configs.RetryStrategy(maximum_retry_attempts=asked.retries))
    if asked.remote_debug:
        trainer.with_remote_debug_config(configs.RemoteDebugConfig(enable_remote_debug=True))
    return trainer


def _compute(job: Job) -> Any:
    from sagemaker.core.training.configs import Compute, InstanceGroup

    asked, groups = settings(job), job.cluster.groups
    if homogeneous(job):
        where: dict[str, Any] = {"instance_type": groups[0].instance_type, "instance_count": groups[0].hosts}
    else:
        where = {
            "instance_groups": [
                InstanceGroup(instance_group_name=g.name, instance_type=g.instance_type, instance_count=g.hosts)
                for g in groups
            ]
        }
    return Compute(
        **where,
        volume_size_in_gb=asked.volume_gb,
        volume_kms_key_id=asked.kms.volume,
        keep_alive_period_in_seconds=asked.keep_alive_s,
        enable_managed_spot_training=asked.spot or None,
    )


def _channels(job: Job, places: Places) -> list[Any]:
    """The user's channels and the token's; the SDK adds its own two."""
    asked = settings(job)
    found = [_channel(name, c.uri, list(c.groups), c) for name, c in asked.channels.items()]
    if asked.token == "channel":
        found.append(_channel(TOKEN_CHANNEL, places.token, managed_groups(job)))
    return found


def _channel(name: str, uri: str, groups: list[str], channel: Channel | None = None) -> Any:
    from sagemaker.core.training import configs

    bound = {"instance_group_names": groups} if groups else {}
    more = {"content_type": channel.content_type} if channel and channel.content_type else {}
    return configs.Channel(
        channel_name=name,
        data_source=configs.DataSource(
            s3_data_source=configs.S3DataSource(
                s3_data_type="S3Prefix",
                s3_uri=uri,
                s3_data_distribution_type=channel.distribution if channel else "FullyReplicated",
                **bound,
            )
        ),
        input_mode=channel.mode if channel else "File",
        **more,
    )
