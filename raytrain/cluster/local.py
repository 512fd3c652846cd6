"""Ray clusters that raytrain starts itself: this machine as one node, or several nodes that share it."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil

from raytrain.cluster import guardian, hardware
from raytrain.cluster.environment import (
    native_log_of_crashes,
    own_token,
    prepare_emulated_cluster,
    public_ray,
    ray_address,
    started_with,
)
from raytrain.cluster.finding import find, no_native_log
from raytrain.cluster.logs import forward_worker_output
from raytrain.cluster.network import collective_settings, interface_of
from raytrain.cluster.topology import EMULATED_GPU, EMULATED_LABEL, GROUP_LABEL, INSTANCE_TYPE_LABEL, Topology, from_ray
from raytrain.config.cluster import Group
from raytrain.errors import ClusterError, one_line
from raytrain.ray_internals.devices import usable_gpus
from raytrain.ray_internals.entry import TOKEN, read_token_again
from raytrain.ray_internals.logs import leave_output_to_ray
from raytrain.ray_internals.loopback import LOOPBACK, localhost_kept
from raytrain.ray_internals.node import LocalNodes
from raytrain.ray_internals.sigterm import sigterm_left_alone

OBJECT_STORE_SHARE = 0.3  # of the memory that is there, over all nodes, as Ray itself takes
LOCAL_GROUP = "local"


@dataclass
class RunningCluster:
    """A connection to a Ray cluster; `close` ends what was started for it and nothing else.

    Attributes:
        attached: the cluster was there before.
        joined: so was this process's connection to it, which stays.
    """

    topology: Topology
    address: str
    attached: bool
    joined: bool = False
    _nodes: LocalNodes | None = field(default=None, repr=False)
    _guardian: Any = field(default=None, repr=False)
    _held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack, repr=False)

    def close(self) -> None:
        import ray

        if self.joined:
            return
        ray.shutdown()
        leave_output_to_ray()
        if self._nodes is not None:
            _end_nodes(self._nodes)
            guardian.dismiss(self._guardian)
            self._nodes = None
        self._held.close()


def _end_nodes(nodes: LocalNodes) -> None:
    """Kill every process of the nodes, by process id, and wait for them.

    A graceful end drains for seconds and nothing is left to drain; agents outlive a raylet that is killed alone.
    """
    guardian.kill(guardian.family(nodes.pids()), wait_s=10)
    nodes.forget()


def connect(groups: Sequence[Group], address: str | None, meanwhile: Callable[[], None]) -> RunningCluster:
    """The cluster that this process is connected to, the one at `address`, the one it was started on, or a new one.

    Args:
        meanwhile: imports what will be needed, in a thread.

    Raises:
        ClusterError: there is none, or another than was asked for.
    """
    import ray  # noqa: F401 - whole before a thread imports parts of it

    if (joined := join()) is not None:
        if groups or (address and address not in ("auto", joined.address)):
            raise ClusterError(
                f"this process is connected to the Ray cluster at {joined.address} already; call ray.shutdown() first, "
                "or leave nodes and address out"
            )
        threading.Thread(target=meanwhile).start()
        return joined
    address = address or (None if groups else ray_address())
    if address:
        address = find(address)  # before much is imported, since this may be all there is to say
    # a process that ends waits for it: one that is torn down while torch is being imported crashes
    threading.Thread(target=meanwhile).start()
    with sigterm_left_alone(public_ray()):
        return attach(address) if address else start(groups)


def attach(address: str) -> RunningCluster:
    """Connect to the cluster that was found.

    Raises:
        ClusterError: it runs another Ray or Python version, or is gone.
    """
    import ray

    try:
        _connect(address)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ClusterError(f"cannot attach to the Ray cluster at {address!r}: {one_line(error, 300)}") from None
    forward_worker_output()
    return RunningCluster(from_ray(ray.nodes()), address, attached=True)


def join() -> RunningCluster | None:
    """The cluster that this process is connected to already, if it is. What its workers print is left to Ray."""
    import ray

    if not ray.is_initialized():
        return None
    address = ray.get_runtime_context().gcs_address
    return RunningCluster(from_ray(ray.nodes()), address, attached=True, joined=True)


def _connect(address: str) -> None:
    import ray

    with native_log_of_crashes(), no_native_log(), localhost_kept(public_ray()):
        ray.init(address=address, logging_level="warning", log_to_driver=True)


def start(groups: Sequence[Group]) -> RunningCluster:
    """Start the nodes of `groups` on this machine, or this machine as one node when there are none.

    The first group that declares GPUs (else the first) is the training group and holds the head. All of it, and what
    ranks say to each other, stays on the loopback interface, and Ray asks for a token.

    Raises:
        ClusterError: Ray did not start.
    """
    import ray

    prepare_emulated_cluster()
    logging.getLogger("ray").setLevel(logging.WARNING)
    groups = _head_first(groups)
    plan = [group for group in groups for _ in range(group.hosts)]
    held = _with_a_token()
    nodes = LocalNodes(public_ray())
    try:
        with started_with(collective_settings(interface_of(LOOPBACK), "auto", {}) if nodes.on_loopback else {}):
            for group in plan or [None]:
                nodes.add(**_node(group, max(len(plan), 1)))
        guarded = guardian.start(nodes.pids())
        _connect(nodes.address)
        if len(plan) > 1:
            nodes.cluster.wait_for_nodes(timeout=60)
    except BaseException as error:  # Ctrl-C too
        _end_nodes(nodes)
        held.close()
        if isinstance(error, ConnectionError | RuntimeError | TimeoutError | OSError | ValueError):
            raise ClusterError(f"Ray did not start on this machine: {one_line(error, 300)}") from None
        raise
    forward_worker_output()
    return RunningCluster(
        from_ray(ray.nodes()), nodes.address, attached=False, _nodes=nodes, _guardian=guarded, _held=held
    )


def _with_a_token() -> contextlib.ExitStack:
    """Until it is closed, what this process starts of Ray asks for a token, and this process has it."""
    held = contextlib.ExitStack()
    if TOKEN.holds(public_ray()):
        held.callback(read_token_again)
        held.enter_context(started_with(own_token()))
        read_token_again()
    return held


def _head_first(groups: Sequence[Group]) -> tuple[Group, ...]:
    return tuple(sorted(groups, key=lambda group: group.gpus == 0))


def _node(group: Group | None, num_nodes: int) -> dict[str, Any]:
    """Arguments of one Ray node. Without a group: all of this machine, its GPUs included."""
    store = int(hardware.memory_bytes() * OBJECT_STORE_SHARE / num_nodes)
    shared = psutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else store
    arguments: dict[str, Any] = {"object_store_memory": max(min(store, int(shared * 0.8 / num_nodes)), 100 << 20)}
    if group is None:
        cpus, gpus = hardware.usable_cpus(), usable_gpus(public_ray())
        arguments |= {"num_gpus": gpus, "labels": {GROUP_LABEL: LOCAL_GROUP}}
    else:
        cpus, gpus = group.cpus, group.gpus
        labels = {GROUP_LABEL: group.name, EMULATED_LABEL: "true"}
        if group.instance_type:
            labels[INSTANCE_TYPE_LABEL] = group.instance_type
        arguments |= {"num_gpus": 0, "resources": {EMULATED_GPU: gpus} if gpus else {}, "labels": labels}
    return {**arguments, "num_cpus": cpus}
