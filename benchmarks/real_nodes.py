"""Real Ray nodes on chosen cores of this machine, with the GPU that it really has: `fit(nodes=...)` emulates GPUs."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from raytrain.cluster import guardian, local
from raytrain.cluster.environment import prepare_environment, prepare_own_cluster
from raytrain.cluster.topology import GROUP_LABEL
from raytrain.errors import ClusterError

STARTING_TIMEOUT_S = 90.0


@dataclass(frozen=True)
class Node:
    """One Ray node.

    Attributes:
        group: as raytrain names it.
        cores: that its processes run on.
        cpus, gpus: that Ray may hand out.
    """

    group: str
    cores: Sequence[int]
    cpus: int
    gpus: int = 0


@contextlib.contextmanager
def ray_cluster(nodes: Sequence[Node], folder: Path) -> Iterator[str]:
    """Start `nodes`, the first as the head, and yield the cluster's address; logs go to `folder`, a short path.

    Authentication is as RAY_AUTH_MODE and RAY_AUTH_TOKEN say; they must be the same for the driver, which should run
    on the head's cores.
    """
    prepare_environment()
    prepare_own_cluster()
    address = f"127.0.0.1:{free_port()}"
    environment = {**os.environ, "RAY_ADDRESS": address}  # so that no actor looks for another cluster of this machine
    started: list[subprocess.Popen[bytes]] = []
    guarded = None
    try:
        for node in nodes:
            command = _command(node, address, folder, head=node is nodes[0])
            with on_cores(node.cores), (folder / f"{node.group}.log").open("wb") as log:
                process = subprocess.Popen(
                    command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
            started.append(process)
        guarded = guardian.start([process.pid for process in started])  # in case this process is killed
        import ray.train.torch  # noqa: F401 - takes seconds, and the nodes do too

        _wait_for(started, address)
        yield address
    finally:
        guardian.kill(guardian.family([process.pid for process in started]), wait_s=10)
        if guarded is not None:
            guardian.dismiss(guarded)


def _command(node: Node, address: str, folder: Path, *, head: bool) -> list[str]:
    command = [
        str(Path(sys.executable).with_name("ray")),
        "start",
        "--block",
        "--node-ip-address=127.0.0.1",
        f"--num-cpus={node.cpus}",
        f"--num-gpus={node.gpus}",
        f"--labels={GROUP_LABEL}={node.group}",
        f"--dashboard-agent-listen-port={free_port()}",  # the usual one belongs to the first node of a machine
    ]
    if not head:
        return [*command, f"--address={address}", "--include-log-monitor=false"]
    return [
        *command,
        "--head",
        f"--port={address.rpartition(':')[2]}",
        "--include-dashboard=false",
        f"--dashboard-port={free_port()}",  # a small server runs all the same
        f"--ray-client-server-port={free_port()}",
        f"--temp-dir={folder}/ray",
    ]


def _wait_for(started: Sequence[subprocess.Popen[bytes]], address: str) -> None:
    deadline = time.monotonic() + STARTING_TIMEOUT_S
    last = "a node ended"
    while time.monotonic() < deadline and all(process.poll() is None for process in started):
        try:
            cluster = local.attach(address)
            num_hosts = len(cluster.topology.hosts)
            cluster.close()
            if num_hosts == len(started):
                return
            last = f"{num_hosts} of {len(started)} nodes are in"
        except ClusterError as error:
            last = str(error)
        time.sleep(0.5)
    raise SystemExit(f"the Ray nodes did not start: {last}")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextlib.contextmanager
def on_cores(cores: Sequence[int]) -> Iterator[None]:
    """What this thread starts within runs on `cores` and nowhere else, and so does all that it starts in turn."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
