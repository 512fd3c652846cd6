"""The account that this machine may use: clients, who we are, what exists, and AWS's errors on one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from raytrain.config.sagemaker import Image, SageMaker
from raytrain.errors import CloudError, CloudUnreachable, ConfigError, one_line

TRIES = 8  # of a SageMaker request that is throttled, with growing pauses; about 20 s in all
TRIES_ELSEWHERE = 3  # boto3's own
CONNECT_TIMEOUT_S = 10
CONSOLES = {"aws-cn": "console.amazonaws.cn", "aws-us-gov": "console.amazonaws-us-gov.com"}

EXPIRED = ("ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired")
WRONG_KEYS = ("InvalidClientTokenId", "UnrecognizedClientException", "SignatureDoesNotMatch", "InvalidAccessKeyId")
DENIED = ("AccessDenied", "AccessDeniedException", "403", "Forbidden", "UnauthorizedOperation")
THROTTLED = ("Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequestsException", "SlowDown")
MISSING = ("404", "NoSuchKey", "NotFound", "NoSuchEntity", "ResourceNotFoundException", "ResourceNotFound")


def code_of(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


@contextlib.contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turn what boto3 raises into one line that says what was being done and what to do.

    Raises:
        CloudUnreachable: AWS cannot be reached, throttles or fails by itself.
        CloudError: it refused.
    """
    from boto3.exceptions import S3UploadFailedError
    from botocore import exceptions as botocore

    try:
        yield
    except (botocore.NoCredentialsError, botocore.PartialCredentialsError):
        raise CloudError(f"{doing}: no AWS credentials found; run `aws configure` or `aws sso login`") from None
    except (botocore.SSOTokenLoadError, botocore.UnauthorizedSSOTokenError, botocore.TokenRetrievalError):
        raise CloudError(f"{doing}: the AWS credentials have expired; run `aws sso login` again") from None
    except botocore.NoRegionError:
        raise CloudError(f"{doing}: no AWS region; set sagemaker.region or AWS_DEFAULT_REGION") from None
    except botocore.ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 400)
        kind = CloudUnreachable if code_of(error) in THROTTLED or status >= 500 else CloudError
        raise kind(f"{doing}: {_refusal(error)}") from None
    except (botocore.HTTPClientError, botocore.ConnectionError) as error:
        raise CloudUnreachable(f"{doing}: AWS cannot be reached: {one_line(error, 300)}") from None
    except S3UploadFailedError as error:
        raise CloudError(f"{doing}: {one_line(error, 300)}") from None
    except botocore.BotoCoreError as error:
        raise CloudError(f"{doing}: {one_line(error, 300)}") from None


def _refusal(error: Any) -> str:
    code, text = code_of(error), one_line(Exception(error.response.get("Error", {}).get("Message", "")), 400)
    if code in EXPIRED:
        return "the AWS credentials have expired; log in again"
    if code in WRONG_KEYS:
        return f"AWS does not know these credentials ({code}); run `aws configure` or `aws sso login`"
    if code == "ResourceLimitExceeded":
        return f"a quota of this account is too small: {text} Ask for more in the Service Quotas console"
    if code in DENIED:
        return f"not allowed: {text or code}"
    if code in THROTTLED:
        return f"AWS goes on throttling after {TRIES} tries; try again in a minute"
    if code == "NoSuchBucket":
        return f"there is no bucket {error.response.get('Error', {}).get('BucketName', '')}".rstrip()
    return f"{code}: {text}"


@dataclass(frozen=True)
class Account:
    """A session of boto3 and the region it works in.

    Attributes:
        session: a boto3.Session; its region is the job's.
    """

    session: Any

    @property
    def region(self) -> str:
        return self.session.region_name

    def client(self, service: str) -> Any:
        from botocore.config import Config

        config = Config(
            retries={"mode": "standard", "total_max_attempts": TRIES if service == "sagemaker" else TRIES_ELSEWHERE},
            connect_timeout=CONNECT_TIMEOUT_S,
            user_agent_extra="raytrain",
        )
        with explained(f"reaching {service}"):
            return self.session.client(service, config=config)

    @cached_property
    def sagemaker(self) -> Any:
        return self.client("sagemaker")

    @cached_property
    def s3(self) -> Any:
        return self.client("s3")

    @cached_property
    def number(self) -> str:
        """The account's twelve digits, from STS."""
        with explained("asking AWS who you are"):
            return self.client("sts").get_caller_identity()["Account"]

    @property
    def console(self) -> str:
        """Where a person looks at it."""
        partition = self.session.get_partition_for_region(self.region)
        domain = CONSOLES.get(partition, f"{self.region}.console.aws.amazon.com")
        return f"https://{domain}/sagemaker/home?region={self.region}#/jobs/"


def account(region: str | None = None) -> Account:
    """The account of this machine's AWS configuration.

    Raises:
        ConfigError: boto3 is not installed, its configuration cannot be used, or no region is known.
    """
    try:
        import boto3
        from botocore.exceptions import BotoCoreError
    except ImportError:
        raise ConfigError("this needs boto3: pip install 'raytrain[sagemaker]'") from None
    try:
        session = boto3.Session(region_name=region or None)
    except BotoCoreError as error:  # no such profile, a damaged file
        raise ConfigError(f"the AWS configuration cannot be used: {one_line(error)}") from None
    if not session.region_name:
        raise ConfigError("no AWS region is known; set sagemaker.region in the job file, or AWS_DEFAULT_REGION")
    return Account(session)


def asked_role(asked: SageMaker) -> str:
    """The role as the job file has it.

    Raises:
        ConfigError: none is given.
    """
    if asked.role is None:
        raise ConfigError("no role: set sagemaker.role to the ARN or name of a role that SageMaker may assume")
    return asked.role


def role_arn(asked: SageMaker, known: Account) -> str:
    """The role by its ARN, looked up if the job gives its name.

    Raises:
        ConfigError: none is given.
        CloudError: there is no such role.
    """
    from botocore.exceptions import ClientError

    name = asked_role(asked).rpartition("/")[2]
    with explained(f"looking up the role {name}"):
        try:
            found = known.client("iam").get_role(RoleName=name)["Role"]["Arn"]
        except ClientError as error:
            if code_of(error) in MISSING:
                raise CloudError(f"there is no role {asked.role}; create it, or correct sagemaker.role") from None
            if code_of(error) in DENIED and asked.role.startswith("arn:"):
                return asked.role  # one may use a role that one may not look at
            raise
    if asked.role.startswith("arn:") and asked.role != found:
        raise CloudError(f"there is no role {asked.role} in this account, but {found}; correct sagemaker.role")
    return found


def default_bucket(region: str, account_number: str) -> str:
    """As the SageMaker Python SDK names it."""
    return f"sagemaker-{region}-{account_number}"


def bucket_of(asked: SageMaker, known: Account) -> str:
    """Name of the job's bucket, whether it exists or not."""
    return asked.bucket or default_bucket(known.region, known.number)


def check_bucket(bucket: str, known: Account, owner: str | None = None) -> None:
    """Look at a bucket that the job reads and writes.

    Args:
        owner: the account that must own it, of a bucket whose name anybody could have taken first.

    Raises:
        CloudError: it does not exist, lies in another region, may not be used, or belongs to somebody else.
    """
    from botocore.exceptions import ClientError

    with explained(f"looking at the bucket {bucket}"):
        try:
            found = known.s3.head_bucket(Bucket=bucket, **({"ExpectedBucketOwner": owner} if owner else {}))
        except ClientError as error:
            if code_of(error) in MISSING:
                raise CloudError(
                    f"there is no bucket {bucket}; create it in {known.region}, or name yours in sagemaker.bucket"
                ) from None
            raise
    region = found.get("BucketRegion", known.region)
    if region != known.region:
        raise CloudError(f"the bucket {bucket} is in {region}, the job in {known.region}; SageMaker wants both in one")


def check_channels(asked: SageMaker, known: Account) -> list[str]:
    """Look at every channel; what could not be looked at is returned as notes.

    Raises:
        CloudError: nothing lies where a channel points.
    """
    from botocore.exceptions import ClientError

    notes = []
    for name, channel in asked.channels.items():
        bucket, key = split(channel.uri)
        with explained(f"channel {name!r} ({channel.uri})"):
            try:
                found = known.s3.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)
            except ClientError as error:
                if code_of(error) not in DENIED:
                    raise
                notes.append(f"channel {name}: you may not look into {channel.uri}; the role must be able to")
                continue
        if not found.get("KeyCount"):
            raise CloudError(f"channel {name!r}: there is nothing at {channel.uri}")
    return notes


def split(uri: str) -> tuple[str, str]:
    """`s3://bucket/key` -> (bucket, key)."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def image_uri(asked: SageMaker, region: str, *, gpus: bool) -> str:
    """The user's own image, or the AWS deep-learning container for this region; one image serves all groups.

    Raises:
        ConfigError: there is no such container, or the SageMaker SDK, which knows them, is not installed.
    """
    if isinstance(asked.image, str):
        return asked.image
    wanted: Image = asked.image
    try:
        from sagemaker.core import image_uris
    except ImportError:
        raise ConfigError(
            "sagemaker.image: give an address, or pip install 'raytrain[sagemaker]': its SDK knows AWS's"
        ) from None
    try:
        return image_uris.retrieve(
            wanted.framework,
            region,
            version=wanted.version,
            py_version=wanted.python,
            instance_type="ml.g5.xlarge" if gpus else "ml.c5.xlarge",  # only chooses the GPU or the CPU build
            image_scope="training",
        )
    except (ValueError, KeyError) as error:
        raise ConfigError(f"sagemaker.image: {one_line(error, 400)}") from None
