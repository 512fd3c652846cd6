"""From a job file to a running training job: look, pack, ask, upload, create. Either the job exists at the end, or
nothing of it does."""

from __future__ import annotations

import contextlib
import re
import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from raytrain.cluster.environment import TOKEN_CHANNEL, new_token
from raytrain.config.job import Job
from raytrain.config.masking import masked, secrets_in
from raytrain.config.sagemaker import SageMaker
from raytrain.cost.instances import catalog
from raytrain.errors import CloudError, CloudUnreachable, ConfigError, Stopped
from raytrain.sagemaker import aws
from raytrain.sagemaker.parcel import Parcel
from raytrain.sagemaker.quote import Quote, check_cap, quote
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
    quote: Quote
    places: Places
    token: str
    notes: tuple[str, ...] = ()

    @property
    def request(self) -> Request:
        return self.quote.request

    @property
    def shown(self) -> Request:
        """The request as it may be printed."""
        variables = self.request["Environment"]
        hidden = {"RAY_AUTH_TOKEN": "(made for every launch)"} if variables.get("RAY_AUTH_TOKEN") == self.token else {}
        return {**self.request, "Environment": {**masked(variables), **hidden}}


def prepare(
    job: Job,
    known: aws.Account | None,
    *,
    name: str | None = None,
    prices: Path | None = None,
    priced: bool = True,
    capped: bool = True,
    now: datetime | None = None,
) -> Launch:
    """Build and check the request; everything it points to is looked at, nothing is written.

    Args:
        known: the account; None to ask nobody, for a dry run: the account's number is the role's then.
        name: of the training job; by default the job's with the time behind it.
        prices: a file of the user's, besides the snapshot.
        priced: False to go without prices.
        capped: False not to hold the price against the job's own limit.

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
        aws.check_bucket(bucket, known, owner=None if asked.bucket else known.number)
        notes += aws.check_channels(asked, known)
        check_name_free(name, known)
    types = catalog(prices).types
    gpus = any(types[g.instance_type].gpus for g in job.cluster.groups if g.instance_type in types)
    places = Places(bucket, asked.prefix, base, name, secrets.token_hex(8))
    token = new_token()
    request = build(job, places, image=aws.image_uri(asked, region, gpus=gpus), role=role, token=token)
    check_own_channels(request)
    check(request)
    if asked.token == "environment":
        notes.append("Ray's token is in the job's environment: whoever may describe the job can read it")
    notes += _secrets(job)
    if asked.network_isolation:
        notes.append("with network_isolation the hosts cannot install requirements: the image must have them all")
    quoted = quote(request, job, region, prices, priced=priced)
    if capped:
        check_cap(quoted, asked.max_usd_per_hour)
    return Launch(job, quoted, places, token, tuple(notes))


def _secrets(job: Job) -> list[str]:
    """Where the job's own secrets go."""
    tree = job.model_dump(mode="json", exclude_unset=True)
    described = secrets_in(tree.pop("sagemaker").get("environment", {}))
    return [
        *(f"{key} is in the job's environment: whoever may describe the job can read it" for key in described),
        *(f"{key} goes into S3 with the job file: whoever can read it there has it" for key in secrets_in(tree)),
    ]


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


def submit(launch: Launch, parcel: Parcel, known: aws.Account, say: Say = lambda text: None) -> str:
    """Upload and create; returns the job's ARN.

    Raises:
        CloudError: AWS refused, and what had been uploaded is gone again; or nobody knows whether it did.
        Stopped: Ctrl-C or SIGTERM; the message says whether the job exists.
    """
    uploaded: list[tuple[str, str]] = []
    asked = False
    with _stopped_by_sigterm():
        try:
            say(f"uploading {parcel.num_files} files, {parcel.num_bytes / 1e6:.1f} MB")
            upload(launch, parcel, known, uploaded)
            asked = True
            return _create(launch, known)
        except (CloudUnreachable, KeyboardInterrupt, Stopped) as error:
            number = 2 if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", 2) - 128
            if asked:
                return _after_doubt(launch, known, uploaded, say, error, number)
            take_back(uploaded, known, say)
            if isinstance(error, KeyboardInterrupt):
                raise Stopped("stopped; nothing was started", number) from None
            raise
        except BaseException:
            found = None
            with contextlib.suppress(CloudError):
                found = describe(launch.quote.name, known, missing_ok=True)
            take_back(_not_of_a_job(launch, found, uploaded), known, say)
            raise


def _after_doubt(
    launch: Launch, known: aws.Account, uploaded: list[tuple[str, str]], say: Say, error: BaseException, number: int
) -> str:
    """The request may have arrived or not: look, and only delete what no job points to."""
    name = launch.quote.name
    try:
        found = describe(name, known, missing_ok=True)
    except CloudError:
        raise CloudError(
            f"{error or 'stopped'}; whether the job {name} exists is not known, so that what was uploaded stays: "
            f"see raytrain status {name}"
        ) from None
    if found is None or not _is_ours(found, launch):
        take_back(_not_of_a_job(launch, found, uploaded), known, say)
        raise Stopped("stopped; nothing was started", number) if not isinstance(error, CloudError) else error
    if isinstance(error, CloudError):
        return found["TrainingJobArn"]
    raise Stopped(f"stopped, but the job {name} exists and goes on; end it: raytrain stop {name}", number)


@contextlib.contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM, as a cancelled CI job gets it, cleans up like Ctrl-C."""

    def heard(number: int, _frame: Any) -> None:
        raise Stopped("stopped; nothing was started", number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, heard)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_ours(found: Request, launch: Launch) -> bool:
    """Whether a job was created by this very launch: nobody else has its token, or knows where that lies."""
    variables = found.get("Environment", {})
    uri = _uri(found, TOKEN_CHANNEL)
    return uri == launch.places.token if uri else variables.get("RAY_AUTH_TOKEN") == launch.token


def _not_of_a_job(launch: Launch, found: Request | None, uploaded: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """What may be deleted: not the code that a job of the same name, launched in the same second, points to as well."""
    if found is not None and _uri(found, CODE_CHANNEL) == launch.places.input(CODE_CHANNEL):
        return [place for place in uploaded if "/tokens/" in place[1]]
    return uploaded


def upload(launch: Launch, parcel: Parcel | None, known: aws.Account, uploaded: list[tuple[str, str]]) -> None:
    """Put the code, the drivers and the token where the request says.

    Args:
        parcel: None for the token alone; the SDK uploads the rest itself.
        uploaded: filled with (bucket, key), also when it fails on the way.
    """
    folders = {} if parcel is None else {CODE_CHANNEL: parcel.code, DRIVERS_CHANNEL: parcel.drivers}
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

    with aws.explained(f"creating the training job {launch.quote.name}"):
        try:
            return known.sagemaker.create_training_job(**launch.request)["TrainingJobArn"]
        except ClientError as error:
            if aws.code_of(error) != "ResourceInUse":
                raise
    found = describe(launch.quote.name, known)
    if _is_ours(found, launch):
        return found["TrainingJobArn"]  # the answer to an earlier try was lost
    raise CloudError(f"there is a training job named {launch.quote.name} already; choose another by --name")


def _uri(request: Request, channel: str) -> str | None:
    found = [c for c in request.get("InputDataConfig", []) if c["ChannelName"] == channel]
    return found[0]["DataSource"]["S3DataSource"]["S3Uri"] if found else None


def take_back(uploaded: list[tuple[str, str]], known: aws.Account, say: Say = lambda text: None) -> None:
    """Delete what was uploaded, and name what could not be."""
    if uploaded:
        say("nothing was started; taking back what was uploaded")
    left = []
    for bucket, key in uploaded:
        try:
            known.s3.delete_object(Bucket=bucket, Key=key)
        except Exception:  # noqa: BLE001 - whatever it is, the rest can still be deleted
            left.append(f"s3://{bucket}/{key}")
    if left:
        say(f"could not delete {len(left)} objects, delete them yourself: {', '.join(left[:3])} …")


def _checked_name(name: str) -> str:
    if len(name) > NAME_CHARACTERS or not NAME.fullmatch(name):
        raise ConfigError(
            f"--name {name!r} must be letters, digits and, between them, hyphens, at most {NAME_CHARACTERS}"
        )
    return name


def _offline(asked: SageMaker, notes: list[str]) -> tuple[str, str, str]:
    """Region, role and bucket as far as they are known without asking."""
    role = aws.asked_role(asked)
    named = role.startswith("arn:")
    number = role.split(":")[4] if named and role.count(":") >= 5 else NO_ACCOUNT
    region = aws.account(asked.region).region
    if not named or (asked.bucket is None and number == NO_ACCOUNT):
        notes.append(f"nobody was asked for the account's number: {NO_ACCOUNT} stands for it")
    arn = role if named else f"arn:aws:iam::{number}:role/{role}"
    return region, arn, asked.bucket or aws.default_bucket(region, number)


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
