"""A twin from a job file, or from a job that SageMaker knows."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raytrain.cluster.environment import TOKEN_CHANNEL
from raytrain.config.job import Job
from raytrain.cost.instances import catalog
from raytrain.errors import ConfigError, nearest
from raytrain.sagemaker import aws, submit
from raytrain.sagemaker.parcel import pack
from raytrain.sagemaker.request import CODE_CHANNEL, DRIVERS_CHANNEL, Request
from raytrain.sagemaker.twin.store import Store
from raytrain.sagemaker.twin.twin import TwinJob, TwinOptions

SOMEONE = f"arn:aws:iam::{submit.NO_ACCOUNT}:role/twin"  # a twin assumes no role
SOMEWHERE = "us-east-1"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the user wants of a twin.

    Attributes:
        name: None for the job's own.
        channels: `NAME=FOLDER` words, for what lies in S3.
        checkpoints: what an earlier twin kept.
        folder: the twin's own is one below it.
        prices: a file with more instance types.
        show: called with a host's name and a line of its log.
        say: called with what happens to the job.
    """

    name: str | None
    channels: Sequence[str]
    checkpoints: Path | None
    folder: Path
    prices: Path | None
    options: TwinOptions
    show: Callable[[str, str], None]
    say: submit.Say

    def run(self, request: Request, store: Store) -> dict[str, Any]:
        folder = self.folder.absolute() / request["TrainingJobName"]
        return TwinJob(request, folder, store, catalog(self.prices), self.options, self.show, self.say).run()


def twin_of_file(job: Job, wanted: Asked) -> dict[str, Any]:
    """Stage a job file and run it without asking any account, but for channels that nobody gave a folder for.

    Raises:
        RaytrainError: the job file is wrong, or the twin cannot run it.
    """
    asked = submit.settings(job)
    made_up = {"role": asked.role or SOMEONE, "region": asked.region or SOMEWHERE}
    job = job.model_copy(update={"sagemaker": asked.model_copy(update=made_up)})
    prepared = submit.prepare(job, None, name=wanted.name, prices=wanted.prices, priced=False, capped=False)
    local = _given(wanted, prepared.request)
    missing = [n for n, c in asked.channels.items() if c.uri not in local]
    known = aws.account(asked.region) if missing else None
    with tempfile.TemporaryDirectory(prefix="raytrain-twin-") as temporary:
        parcel = pack(job, Path(temporary) / "parcel")
        token = Path(temporary) / "token"
        token.touch(mode=0o600)
        token.write_text(prepared.token)
        own = {
            prepared.places.input(CODE_CHANNEL): parcel.code,
            prepared.places.input(DRIVERS_CHANNEL): parcel.drivers,
            prepared.places.token: token,
        }
        store = Store({**own, **local}, known, frozenset({prepared.places.checkpoints}))
        return wanted.run(prepared.request, store)


def twin_of_description(described: str, region: str | None, wanted: Asked) -> dict[str, Any]:
    """Run what DescribeTrainingJob says of a job, with what lies in S3.

    Raises:
        RaytrainError: there is no such job, or the twin cannot run it.
    """
    known = aws.account(region)
    request = as_request(submit.describe(described, known))
    if wanted.name is not None:
        request["TrainingJobName"] = wanted.name
    store = Store(_given(wanted, request), known)
    return wanted.run(request, store)


def as_request(described: dict[str, Any]) -> Request:
    """The part of a description that was the request."""
    import botocore.session

    model = botocore.session.get_session().get_service_model("sagemaker")
    members = model.operation_model("CreateTrainingJob").input_shape.members
    return {key: value for key, value in described.items() if key in members}


def _given(wanted: Asked, request: Request) -> dict[str, Path]:
    """`NAME=FOLDER` words and the folder of checkpoints, by the address that each stands for."""
    sources = {c["ChannelName"]: c["DataSource"].get("S3DataSource", {}) for c in request.get("InputDataConfig", [])}
    uris = {name: source["S3Uri"] for name, source in sources.items() if source}
    users = [n for n in uris if n not in (CODE_CHANNEL, DRIVERS_CHANNEL, TOKEN_CHANNEL)]
    found = {}
    checkpoints = wanted.checkpoints
    if checkpoints is not None:
        if "CheckpointConfig" not in request:
            raise ConfigError("--checkpoints: the job keeps no checkpoints")
        if not checkpoints.is_dir():
            raise ConfigError(f"--checkpoints: there is no folder {checkpoints}")
        found[request["CheckpointConfig"]["S3Uri"]] = checkpoints
    for word in wanted.channels:
        name, equals, where = word.partition("=")
        if not equals:
            raise ConfigError(f"--channel {word!r} must look like NAME=FOLDER")
        if name not in uris:
            raise ConfigError(f"--channel: the job has no channel {name!r}{nearest(name, users)}")
        if not where or not Path(where).exists():
            raise ConfigError(f"--channel {name}: there is nothing at {where}")
        found[uris[name]] = Path(where)
    return found
