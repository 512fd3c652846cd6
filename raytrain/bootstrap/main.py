"""The same program on every host of a job: Ray on all of them, the user's program once, one exit status for all."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path

from raytrain.bootstrap import prometheus
from raytrain.bootstrap import roster as rosters
from raytrain.bootstrap.head import lead
from raytrain.bootstrap.host import Options, Outcome, ThisHost
from raytrain.bootstrap.member import follow
from raytrain.bootstrap.program import command
from raytrain.bootstrap.roster import Roster
from raytrain.cluster import environment
from raytrain.errors import ClusterError, ConfigError, RaytrainError


def run(options: Options) -> int:
    """Live this host's part of the job and return its exit status, which is the program's on every host.

    Raises:
        RaytrainError: something is wrong with what was asked for; the failure file says it too.
    """
    heard: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: heard.append(number))
    try:
        roster, reader = read_roster(options.head_group)
        command(options.program, options.connect)
        if not roster.others:
            prometheus.check(options)
        token = _token(options, roster)
        environment.prepare_environment()
        environment.prepare_own_cluster()
        outcome = asyncio.run(_live(options, roster, token, reader, heard))
    except Exception as error:
        tell_failure(str(error) if isinstance(error, RaytrainError) else f"{type(error).__name__}: {error}")
        raise
    if outcome.status:
        tell_failure(outcome.failure or f"exit status {outcome.status}")
    return outcome.status


def tell_failure(text: str) -> None:
    """Write the failure file; a full or read-only disk changes nothing about how the job ended."""
    try:
        environment.write_failure(text)
    except OSError as error:
        print(f"raytrain: the failure file cannot be written: {error}", file=sys.stderr)  # noqa: T201


def read_roster(head_group: str | None = None) -> tuple[Roster, str | None]:
    """The hosts of the SageMaker job that this container belongs to, and who read them; else this machine alone."""
    found = environment.read_resource_config()
    if found is None:
        return rosters.local(socket.gethostname(), head_group), None
    config, reader = found
    return rosters.from_resource_config(config, head_group), reader


def _token(options: Options, roster: Roster) -> str:
    """The job's token; a single host makes its own, since nobody else has to know it.

    Raises:
        ConfigError: several hosts and no token.
    """
    if options.insecure:
        return ""
    token = environment.read_token(options.token_file)
    if token is None and roster.others:
        raise ConfigError(
            "this job has several hosts and no token for Ray's authentication: give each the same by --token-file, "
            f"the input channel {environment.TOKEN_CHANNEL!r} or RAY_AUTH_TOKEN, or run without any by --insecure"
        )
    return token or environment.new_token()


async def _live(options: Options, roster: Roster, token: str, reader: str | None, heard: list[int]) -> Outcome:
    try:
        folder = Path(tempfile.mkdtemp(prefix="raytrain-"))  # for this user alone
    except OSError as error:
        raise ClusterError(f"no folder for temporary files on {roster.me.name}: {error}") from None
    here = ThisHost(options, roster, token, folder)
    try:
        if reader is not None:
            here.say(f"{len(roster.members)} hosts, head {roster.head}; resource config read by {reader}")
        if not token:
            here.say("--insecure: whoever reaches this host's ports can run code here")
        await here.begin(heard)
        return await (lead(here) if roster.am_head else follow(here))
    finally:
        await here.end()
        shutil.rmtree(folder, ignore_errors=True)
