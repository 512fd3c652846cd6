"""A training job that runs: its state, its logs, its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from raytrain.errors import CloudError, CloudUnreachable
from raytrain.sagemaker import aws
from raytrain.sagemaker.request import groups_of
from raytrain.sagemaker.submit import Say, describe

LOG_GROUP = "/aws/sagemaker/TrainingJobs"
ENDED = ("Completed", "Failed", "Stopped")
EXIT_CODES = {"Completed": 0, "Failed": 1, "Stopped": 143}  # as the bootstrap's: a stop is no success
POLL_S = 5.0
PATIENCE_S = 600.0  # with a connection that is gone: a laptop may sleep


@dataclass(frozen=True)
class Line:
    """One line of a host's log.

    Attributes:
        at_ms: since 1970, when the service got it.
    """

    host: str
    at_ms: int
    text: str


@dataclass
class Logs:
    """Reads the streams of a job, each from where it was left."""

    name: str
    known: aws.Account
    _tokens: dict[str, str] = field(default_factory=dict)
    _unseen: list[Line] = field(default_factory=list)

    def new(self) -> list[Line]:
        """What came since the last call, by time. What was read before an error comes with the next call.

        Raises:
            CloudUnreachable: CloudWatch cannot be reached for now.
            CloudError: it refuses.
        """
        with aws.explained(f"reading the logs of {self.name}"):
            for stream in self._streams():
                self._read(stream)
        found, self._unseen = sorted(self._unseen, key=lambda line: line.at_ms), []
        return found

    @property
    def _client(self) -> Any:
        if not hasattr(self, "_made"):
            self._made = self.known.client("logs")
        return self._made

    def _streams(self) -> list[str]:
        pages = self._client.get_paginator("describe_log_streams")
        try:
            found = pages.paginate(logGroupName=LOG_GROUP, logStreamNamePrefix=f"{self.name}/")
            return [stream["logStreamName"] for page in found for stream in page["logStreams"]]
        except self._client.exceptions.ResourceNotFoundException:
            return []  # the first training job of an account makes the group

    def _read(self, stream: str) -> None:
        """To its end, which is where the token does not change any more; a page on the way there may be empty."""
        host = stream.partition("/")[2].rpartition("-")[0] or stream  # algo-1-1700000000
        while True:
            token = self._tokens.get(stream)
            more = {"nextToken": token} if token else {}
            page = self._client.get_log_events(logGroupName=LOG_GROUP, logStreamName=stream, startFromHead=True, **more)
            self._unseen += [Line(host, event["timestamp"], event["message"]) for event in page["events"]]
            self._tokens[stream] = page["nextForwardToken"]
            if page["nextForwardToken"] == token:
                return


def follow(
    name: str,
    known: aws.Account,
    show: Callable[[Line], None],
    say: Say = lambda text: None,
    poll_s: float = POLL_S,
) -> dict[str, Any]:
    """Show the log and the changes of state until the job has ended; returns its last description.

    Raises:
        CloudError: there is no such job, or AWS has not been reached for ten minutes.
    """
    logs, state, silent_since, ended = Logs(name, known), "", None, False
    while True:
        try:
            described = describe(name, known)
            lines = logs.new()
            silent_since = None
        except CloudUnreachable as error:
            silent_since = silent_since or time.monotonic()
            if time.monotonic() - silent_since > PATIENCE_S:
                raise CloudError(f"{error}; the job may go on: raytrain logs {name} --follow") from None
            time.sleep(poll_s)
            continue
        now = state_of(described)
        if now != state:
            state = now
            say(now)
        for line in lines:
            show(line)
        if ended:
            return described
        ended = described["TrainingJobStatus"] in ENDED  # the last lines arrive later than the end: look once more
        time.sleep(poll_s)


def state_of(described: dict[str, Any]) -> str:
    """`InProgress: Downloading`, with the service's own message when there is one."""
    status, more = described["TrainingJobStatus"], described.get("SecondaryStatus")
    steps = described.get("SecondaryStatusTransitions") or [{}]
    message = steps[-1].get("StatusMessage") if status not in ENDED else described.get("FailureReason")
    text = status if more in (None, status) else f"{status}: {more}"
    return f"{text} ({message})" if message else text


def stop(name: str, known: aws.Account) -> None:
    """Ask for the job's end: SIGTERM to every host, SIGKILL two minutes later.

    Raises:
        CloudError: there is no such job, or it has ended.
    """
    status = describe(name, known)["TrainingJobStatus"]
    if status in ENDED:
        raise CloudError(f"the job {name} has ended already: {status}")
    with aws.explained(f"stopping {name}"):
        known.sagemaker.stop_training_job(TrainingJobName=name)


def jobs(known: aws.Account, contains: str = "", limit: int = 20) -> list[dict[str, Any]]:
    """The latest training jobs, newest first.

    Raises:
        CloudError: the account cannot be reached.
    """
    words = {"NameContains": contains} if contains else {}
    with aws.explained("listing the training jobs"):
        pages = known.sagemaker.get_paginator("list_training_jobs").paginate(
            SortBy="CreationTime",
            SortOrder="Descending",
            PaginationConfig={"MaxItems": limit},
            **words,
        )
        return [summary for page in pages for summary in page["TrainingJobSummaries"]]


def billable_s(described: dict[str, Any]) -> dict[str, float]:
    """Billable instance seconds of every group: hosts times the job's own, since each host is billed until its end.

    BillableTimeInSeconds is of one instance (of a spot job, after the discount), so that it must be multiplied.
    """
    seconds = described.get("BillableTimeInSeconds") or 0
    return {group.name: group.hosts * seconds for group in groups_of(described)}
