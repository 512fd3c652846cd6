"""Prometheus on the head: a binary that is there already, told to collect from every node and to send it on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from raytrain.bootstrap.host import Options, ThisHost
from raytrain.cluster.environment import remote_write_password, training_job
from raytrain.cluster.network import port_is_free
from raytrain.cluster.topology import GROUP_LABEL, HOST_LABEL, INSTANCE_TYPE_LABEL
from raytrain.errors import ConfigError, RaytrainError, one_line
from raytrain.ray_internals.loopback import LOOPBACK

PORT = 9090
SCRAPE_EVERY_S = 5
LAST_SEND_S = 2.0  # what Prometheus gets at the end for what it has not sent yet
ON_THE_PATH = "path"
DEBIANS = "+ds"  # in the version; found by looking at what it sends (2.42.0+ds)
LOOK_EVERY_S = 2.0

_LABELS = {"host": HOST_LABEL, "group": GROUP_LABEL, "instance_type": INSTANCE_TYPE_LABEL}
_ERROR = re.compile(r"level=error|level=ERROR|component=remote.*level=warn")
_MANAGED = re.compile(r"^https://aps-workspaces\.([a-z0-9-]+)\.amazonaws\.com(\.cn)?/")


def check(options: Options) -> None:
    """Refuse before anything is started.

    Raises:
        ConfigError: no such binary, a remote address of another kind, or credentials that are not whole.
    """
    wanted = options.prometheus or (ON_THE_PATH if options.remote_write else None)
    if wanted == ON_THE_PATH and shutil.which("prometheus") is None:
        raise ConfigError("no prometheus on this host's PATH; give its binary or release archive with --prometheus")
    if wanted not in (None, ON_THE_PATH) and not Path(wanted).is_file():
        raise ConfigError(f"--prometheus {wanted!r} is not a file; give a binary, a release archive, or path")
    others = (options.remote_write_region, options.remote_write_user, options.remote_write_password_file)
    if options.remote_write is None:
        if any(others):
            raise ConfigError("--remote-write-region, -user and -password-file say how to use --remote-write; give it")
        return
    if not re.match(r"^https?://[^/\s]+", options.remote_write):
        raise ConfigError(f"--remote-write {options.remote_write!r} must be an http:// or https:// address")
    if region(options) and DEBIANS in _version(wanted):
        raise ConfigError(
            "this prometheus is Debian's build, which takes a SigV4 region and sends unsigned all the same; "
            "give the Prometheus project's own release with --prometheus"
        )
    if options.remote_write_user and region(options):
        raise ConfigError("--remote-write signs with a region or with a user and password, not with both")
    password = options.remote_write_password_file
    if options.remote_write_user and not (password or remote_write_password()):
        raise ConfigError("--remote-write-user needs --remote-write-password-file or RAYTRAIN_REMOTE_WRITE_PASSWORD")
    if password is not None and not (options.remote_write_user and password.is_file()):
        raise ConfigError("--remote-write-password-file must be a file, beside --remote-write-user")


def _version(wanted: str) -> str:
    """What the program says of itself; nothing for an archive."""
    program = shutil.which("prometheus") if wanted == ON_THE_PATH else wanted
    if wanted != ON_THE_PATH and (tarfile.is_tarfile(wanted) or not os.access(wanted, os.X_OK)):
        return ""
    try:
        asked = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"--prometheus {program} cannot be run: {one_line(error, 200)}") from None
    return asked.stdout + asked.stderr


def region(options: Options) -> str | None:
    """Where to sign requests for (AWS Signature Version 4): as told, or as Amazon's address says."""
    managed = _MANAGED.match(options.remote_write or "")
    return options.remote_write_region or (managed.group(1) if managed else None)


def configuration(
    options: Options, nodes: Sequence[Mapping[str, Any]], password_file: Path | None, job: str | None
) -> dict[str, Any]:
    """Prometheus's configuration: every node of the cluster, named by host, group and instance type.

    Args:
        nodes: as `ray.nodes()` has them.
    """
    targets = [
        {
            "targets": [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}"],
            "labels": {name: (node.get("Labels") or {}).get(label, "") for name, label in _LABELS.items()},
        }
        for node in nodes
        if node["Alive"]
    ]
    found: dict[str, Any] = {
        "global": {"scrape_interval": f"{SCRAPE_EVERY_S}s", "scrape_timeout": f"{SCRAPE_EVERY_S - 1}s"},
        "scrape_configs": [{"job_name": "ray", "static_configs": targets}],
    }
    if job:
        found["global"]["external_labels"] = {"training_job": job}
    if options.remote_write:
        remote: dict[str, Any] = {"url": options.remote_write, "queue_config": {"batch_send_deadline": "1s"}}
        if region(options):
            remote["sigv4"] = {"region": region(options)}
        elif options.remote_write_user:
            remote["basic_auth"] = {"username": options.remote_write_user, "password_file": str(password_file)}
        found["remote_write"] = [remote]
    return found


async def start(here: ThisHost) -> asyncio.subprocess.Process | None:
    """Start Prometheus if it was asked for. Should it fail, the job goes on without."""
    if here.options.prometheus is None and here.options.remote_write is None:
        return None
    try:
        return await _start(here, await here.node.nodes())
    except (OSError, EOFError, tarfile.TarError, RaytrainError) as error:
        here.say(f"no Prometheus, the job goes on: {one_line(error, 300)}")
        return None


async def _start(here: ThisHost, nodes: Sequence[Mapping[str, Any]]) -> asyncio.subprocess.Process | None:
    options = here.options
    binary = await asyncio.to_thread(_binary, options.prometheus or ON_THE_PATH, here.folder)
    password = options.remote_write_password_file
    if options.remote_write_user and password is None:
        password = here.folder / "remote-write-password"
        with open(password, "x", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(remote_write_password() or "")
    file = here.folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(configuration(options, nodes, password, training_job()[0])))
    if not port_is_free(PORT, LOOPBACK):
        here.say(f"no Prometheus: port {PORT} is taken on this host")
        return None
    with open(here.folder / "prometheus.log", "wb") as log:
        process = await asyncio.create_subprocess_exec(
            str(binary),
            f"--config.file={file}",
            f"--storage.tsdb.path={here.folder / 'prometheus'}",
            f"--web.listen-address={LOOPBACK}:{PORT}",
            env=here.environment(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    here.awaited.add(process.pid)
    here.say(f"Prometheus at http://{LOOPBACK}:{PORT} collects from {len(nodes)} nodes")
    here.background.append(asyncio.create_task(_tell(here, process)))
    return process


async def _tell(here: ThisHost, process: asyncio.subprocess.Process) -> None:
    """Pass on the first error that Prometheus reports, and that it has ended should it end by itself."""
    log, told = here.folder / "prometheus.log", False
    while process.returncode is None:
        await asyncio.sleep(LOOK_EVERY_S)
        lines = log.read_text(errors="replace").strip().splitlines()
        error = next((line for line in lines if _ERROR.search(line)), None)
        if error and not told:
            told = True
            here.say(f"Prometheus: {error[:500]}")
    if process.returncode not in (0, -signal.SIGTERM):
        here.say(f"Prometheus ended with status {process.returncode}, the job goes on: {''.join(lines[-1:])[:300]}")


def _binary(given: str, folder: Path) -> Path:
    """The program itself; out of its release archive, if that is what was given.

    Raises:
        ConfigError: the archive holds none.
    """
    if given == ON_THE_PATH:
        return Path(shutil.which("prometheus") or "prometheus")
    path = Path(given)
    if not tarfile.is_tarfile(path):
        if os.access(path, os.X_OK):
            return path
        copy = folder / "prometheus-program"  # what comes through S3 has lost its mode
        shutil.copy(path, copy)
        copy.chmod(0o700)
        return copy
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isfile() and Path(member.name).name == "prometheus":
                archive.extract(member, folder, filter="data")
                return folder / member.name
    raise ConfigError(f"{path} is an archive without a program `prometheus`")


async def stop(process: asyncio.subprocess.Process | None) -> None:
    """Let it send what it has left, briefly."""
    if process is None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(process.wait(), LAST_SEND_S)
