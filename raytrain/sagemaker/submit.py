"""From a job file to a running training job: look, stage, ask, upload, create. Either the job exists at the end, or
nothing of it does."""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from raytrain.cluster.environ import TOKEN_CHANNEL, new_token
from raytrain.config import Job, SageMaker
from raytrain.errors import CloudError, ConfigError, Stopped
from raytrain.sagemaker import aws
from raytrain.sagemaker.plan import Plan, plan
from raytrain.sagemaker.request import (
    CODE_CHANNEL,
    DRIVERS_CHANNEL,
    NAME_CHARACTERS,
    Places,
    Request,
    base_name,
    build,
    settings,
    timed_name,
)
from raytrain.sagemaker.rules import check, check_own_channels
from raytrain.sagemaker.stage import Staged

NO_ACCOUNT = "000000000000"  # stands for the account's number where nobody was asked
UPLOADS_AT_ONCE = 8
NAME = re.compile(r"[A-Za-z0-9](-*[A-Za-z0-9])*")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Launch:
    """A launch that has not been sent.

    Attributes:
        token: of Ray's authentication, for this job alone.
        notes: what a person should know before.
    """

    job: Job
    plan: Plan
    places: Places
    token: str
    notes: tuple[str, ...] = ()

    @property
    def request(self) -> Request:
        return self.plan.request

    @property
    def shown(self) -> Request:
        """The request as it may be printed."""
        variables = self.request["Environment"]
        hidden = {"RAY_AUTH_TOKEN": "(made for every launch)"} if variables.get("RAY_AUTH_TOKEN") == self.token else {}
        return {**self.request, "Environment": {**variables, **hidden}}


def prepare(
    job: Job,
    known: aws.Account | None,
    *,
    name: str | None = None,
    prices: Path | None = None,
    priced: bool = True,
    now: datetime | None = None,
) -> Launch:
    """Build and check the request; everything it points to is looked at, nothing is written.

    Args:
        known: the account; None to ask nobody, for a dry run: the account's number is the role's then.
        name: of the training job; by default the job's with the time behind it.

    Raises:
        ConfigError: the job file is wrong, or SageMaker would refuse it.
        CloudError: something does not exist in the account, or the account cannot be reached.
    """
    asked = settings(job)
    base = base_name(job)
    name = _checked_name(name) if name else timed_name(base, now or datetime.now())
    notes: list[str] = []
    if known is None:
        region, role, bucket = _offline(asked, notes)
    else:
        region, role, bucket = known.region, aws.role_arn(asked, known), aws.bucket_of(asked, known)
        aws.check_bucket(bucket, known)
        notes += aws.check_channels(asked, known)
        check_name_free(name, known)
    gpus = any(_has_gpus(group.instance_type) for group in job.cluster.groups)
    places = Places(bucket, asked.prefix, base, name, secrets.token_hex(8))
    token = new_token()
    request = build(job, places, image=aws.image_uri(asked, region, gpus=gpus), role=role, token=token)
    check_own_channels(request)
    check(request)
    if asked.token == "environment":
        notes.append("Ray's token is in the job's environment: whoever may describe the job can read it")
    return Launch(job, plan(request, job, region, prices, priced=priced), places, token, tuple(notes))


def check_name_free(name: str, known: aws.Account) -> None:
    """
    Raises:
        CloudError: the account has a training job of this name.
    """
    if describe(name, known, missing_ok=True) is not None:
        raise CloudError(f"there is a training job named {name} already; choose another by --name")


def describe(name: str, known: aws.Account, *, missing_ok: bool = False) -> dict[str, Any] | None:
    """DescribeTrainingJob.

    Raises:
        CloudError: there is no such job (unless `missing_ok`), or the account cannot be reached.
    """
    from botocore.exceptions import ClientError

    with aws.explained(f"looking up the training job {name}"):
        try:
            found = known.sagemaker.describe_training_job(TrainingJobName=name)
        except ClientError as error:
            unknown = re.search(r"not found|could not find", str(error), re.IGNORECASE)
            if aws.code_of(error) not in (*aws.MISSING, "ValidationException", "ResourceNotFound") or not unknown:
                raise
            if missing_ok:
                return None
            raise CloudError(f"there is no training job {name} in {known.region}; see raytrain jobs") from None
    found.pop("ResponseMetadata", None)
    return found


def submit(launch: Launch, staged: Staged, known: aws.Account, say: Say = lambda text: None) -> str:
    """Upload and create; returns the job's ARN.

    Raises:
        CloudError: AWS refused; what had been uploaded is gone again.
    """
    uploaded: list[tuple[str, str]] = []
    try:
        say(f"uploading {staged.num_files} files, {staged.num_bytes / 1e6:.1f} MB")
        upload(launch, staged, known, uploaded)
        return _create(launch, known)
    except BaseException:
        say("nothing was started; taking back what was uploaded")
        take_back(uploaded, known)
        raise


def upload(launch: Launch, staged: Staged | None, known: aws.Account, uploaded: list[tuple[str, str]]) -> None:
    """Put the code, the drivers and the token where the request says.

    Args:
        staged: None for the token alone; the SDK uploads the rest itself.
        uploaded: filled with (bucket, key), also when it fails on the way.
    """
    folders = {} if staged is None else {CODE_CHANNEL: staged.code, DRIVERS_CHANNEL: staged.drivers}
    key = settings(launch.job).kms.output
    more = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key} if key else {}

    def send(path: Path, bucket: str, name: str) -> None:
        uploaded.append((bucket, name))  # before, so that a half-sent one is deleted too
        known.s3.upload_file(str(path), bucket, name, ExtraArgs=more or None)

    with aws.explained(f"uploading to {launch.places.root}"), ThreadPoolExecutor(UPLOADS_AT_ONCE) as pool:
        sending = []
        for channel, folder in folders.items():
            bucket, prefix = aws.split(launch.places.input(channel))
            for path in sorted(p for p in folder.rglob("*") if p.is_file()):
                name = f"{prefix}/{path.relative_to(folder).as_posix()}"
                sending.append(pool.submit(send, path, bucket, name))
        try:
            for sent in sending:
                sent.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        if _sends_token(launch.request):
            bucket, prefix = aws.split(launch.places.token)
            uploaded.append((bucket, f"{prefix}/token"))
            known.s3.put_object(Bucket=bucket, Key=uploaded[-1][1], Body=launch.token.encode(), **more)


def _sends_token(request: Request) -> bool:
    return any(channel["ChannelName"] == TOKEN_CHANNEL for channel in request["InputDataConfig"])


def _create(launch: Launch, known: aws.Account) -> str:
    from botocore.exceptions import ClientError

    with aws.explained(f"creating the training job {launch.plan.name}"):
        try:
            return known.sagemaker.create_training_job(**launch.request)["TrainingJobArn"]
        except ClientError as error:
            if aws.code_of(error) != "ResourceInUse":
                raise
    found = describe(launch.plan.name, known)
    if _code_uri(found) == _code_uri(launch.request) and _token_uri(found) == _token_uri(launch.request):
        return found["TrainingJobArn"]  # ours: the answer to an earlier try was lost
    raise CloudError(f"there is a training job named {launch.plan.name} already; choose another by --name")


def _uri(request: Request, channel: str) -> str | None:
    found = [c for c in request.get("InputDataConfig", []) if c["ChannelName"] == channel]
    return found[0]["DataSource"]["S3DataSource"]["S3Uri"] if found else None


def _code_uri(request: Request) -> str | None:
    return _uri(request, CODE_CHANNEL)


def _token_uri(request: Request) -> str | None:
    return _uri(request, TOKEN_CHANNEL)


def take_back(uploaded: list[tuple[str, str]], known: aws.Account) -> None:
    """Delete what was uploaded, as far as that is possible."""
    for bucket, key in uploaded:
        with contextlib.suppress(CloudError), aws.explained("deleting"):
            known.s3.delete_object(Bucket=bucket, Key=key)


def _checked_name(name: str) -> str:
    if len(name) > NAME_CHARACTERS or not NAME.fullmatch(name):
        raise ConfigError(f"--name {name!r} must be letters, digits and single hyphens, at most {NAME_CHARACTERS}")
    return name


def _offline(asked: SageMaker, notes: list[str]) -> tuple[str, str, str]:
    """Region, role and bucket as far as they are known without asking."""
    if asked.role is None:
        raise ConfigError("no role: set sagemaker.role to the ARN or name of a role that SageMaker may assume")
    named = asked.role.startswith("arn:")
    number = asked.role.split(":")[4] if named and asked.role.count(":") >= 5 else NO_ACCOUNT
    region = aws.account(asked.region).region
    if not named or (asked.bucket is None and number == NO_ACCOUNT):
        notes.append(f"nobody was asked for the account's number: {NO_ACCOUNT} stands for it")
    role = asked.role if named else f"arn:aws:iam::{number}:role/{asked.role}"
    return region, role, asked.bucket or f"sagemaker-{region}-{number}"


def _has_gpus(instance_type: str | None) -> bool:
    return bool(re.match(r"ml\.(p|g|gr)\d", instance_type or ""))


@contextlib.contextmanager
def goes_on(name: str) -> Iterator[None]:
    """Ctrl-C while waiting leaves the job alone and says so.

    Raises:
        Stopped: it was pressed.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(
            f"no longer waiting; the job goes on. See it: raytrain logs {name} --follow; end it: raytrain stop {name}"
        ) from None
