"""Ray nodes: one of this host in a process of raytrain's own, or several light ones that share this machine."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from raytrain.ray_internals.contract import Contract, standing_in
from raytrain.ray_internals.loopback import LOOPBACK, OFF_THE_NETWORK
from raytrain.ray_internals.train import RANK_CLASSES

HEAD_RESOURCE = "node:__internal_head__"  # Ray gives it to the head's node
REGISTERED_WITHIN_S = 100.0
ASK_EVERY_S = 0.2

HOST_NODE = Contract(
    does="this host's node",
    needs=(
        "ray._private.parameter:RayParams with node_ip_address node_name num_cpus num_gpus memory resources labels "
        "include_dashboard dashboard_host dashboard_port no_monitor",
        "ray._private.parameter:RayParams.gcs_server_port",
        "ray._private.parameter:RayParams.gcs_address",
        "ray._private.node:Node with head shutdown_at_exit connect_only",
        "ray._private.node:Node.start_api_server with include_dashboard raise_on_failure",
        "ray._private.node:Node._webui_url",
        "ray._private.node:Node.node_id",
        "ray._private.node:Node.get_resource_and_label_spec",
        "ray._private.node:Node.dead_processes",
        "ray._private.services:_get_gcs_client_options with gcs_server_address",
        "ray._private.state:GlobalState._initialize_global_state",
        "ray._private.state:GlobalState.node_table",
        "ray._private.state:GlobalState.actor_table with actor_state_name",
    ),
    looked_up={"ray._private.node:Node.start_api_server": "ray._private.node"},
    buys="two to three seconds less to the first training process (the head's server comes later), no driver on every "
    "host, and the name of the Ray process that died",
    instead="`ray start --block`, and a connection to the cluster on every host",
)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A node to start.

    Attributes:
        address: this host's own.
        head_address: `host:port` of the head; this host's own when it is the head.
        memory: bytes that Ray may hand out; None for what the host has.
        dashboard: `host:port` to serve it at, on the head; None for none.
    """

    head: bool
    address: str
    head_address: str
    name: str
    cpus: float
    gpus: float
    memory: int | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    dashboard: str | None = None


class HostNode:
    """A node of this host that runs, and what can be asked about its cluster."""

    def facts(self) -> dict[str, Any]:
        """`node_id`, and how many `cpus` and `gpus` Ray may hand out."""
        raise NotImplementedError

    def serve(self, dashboard: str | None) -> str | None:
        """Start the head's server and tell where its dashboard is, if any; call it from a thread that stays.

        Ray Train asks it, with a dashboard or without, whether its controller is alive, and waits twelve seconds at the
        end of a run when there is none.
        """
        raise NotImplementedError

    def dead(self) -> list[tuple[str, int]]:
        """The node's processes that have ended, by Ray's names for them, with their exit codes."""
        raise NotImplementedError

    def nodes(self) -> list[dict[str, Any]]:
        """As `ray.nodes()` has them."""
        raise NotImplementedError

    def ranks(self) -> Counter[str]:
        """Node id -> living training ranks of Ray Train on it."""
        raise NotImplementedError


def prepare_node(public: bool) -> None:
    """Import what `start_node` needs, which is the slow part of it."""
    HOST_NODE.holds(public)


def start_node(wanted: Wanted, public: bool) -> HostNode:
    """
    Raises:
        Exception: Ray did not start.
    """
    return _OwnedNode(wanted) if HOST_NODE.holds(public) else _StartedNode(wanted)


class _OwnedNode(HostNode):
    """Its processes are this process's own children."""

    def __init__(self, wanted: Wanted):
        from ray._private.node import Node
        from ray._private.parameter import RayParams

        class Head(Node):
            """Its server takes seconds, and nothing but a person waits for it: `serve` starts it."""

            def start_api_server(self, **_: Any) -> None:
                self._webui_url = ""

        host, _, port = (wanted.dashboard or "127.0.0.1:0").rpartition(":")
        parameters = RayParams(
            node_ip_address=wanted.address,
            node_name=wanted.name,
            num_cpus=wanted.cpus,
            num_gpus=wanted.gpus,
            memory=wanted.memory,
            resources=dict(wanted.resources),
            labels=dict(wanted.labels),
            include_dashboard=wanted.dashboard is not None,
            dashboard_host=host,
            dashboard_port=int(port) or None,
            no_monitor=True,  # there is nothing to scale; Ray Client has no port either unless asked for
        )
        if wanted.head:
            parameters.gcs_server_port = int(wanted.head_address.rpartition(":")[2])
            self._node = Head(parameters, head=True, shutdown_at_exit=False)
        else:
            parameters.gcs_address = wanted.head_address
            self._node = Node(parameters, head=False, shutdown_at_exit=False, connect_only=False)
        self._address, self._known = wanted.head_address, None

    def facts(self) -> dict[str, Any]:
        spec = self._node.get_resource_and_label_spec()
        return {"node_id": self._node.node_id, "cpus": spec.num_cpus, "gpus": spec.num_gpus}

    def serve(self, dashboard: str | None) -> str | None:
        from ray._private.node import Node

        wanted = dashboard is not None
        Node.start_api_server(self._node, include_dashboard=wanted, raise_on_failure=wanted)
        return dashboard

    def dead(self) -> list[tuple[str, int]]:
        with contextlib.suppress(RuntimeError):  # the server is being added to them
            return [(kind, process.returncode) for kind, process in self._node.dead_processes()]
        return []

    def nodes(self) -> list[dict[str, Any]]:
        return self._state().node_table()

    def ranks(self) -> Counter[str]:
        actors = self._state().actor_table(None, actor_state_name="ALIVE").values()
        return Counter(a["Address"]["NodeID"] for a in actors if a["ActorClassName"] in RANK_CLASSES)

    def _state(self) -> Any:
        if self._known is None:
            from ray._private.services import _get_gcs_client_options
            from ray._private.state import GlobalState

            self._known = GlobalState()
            self._known._initialize_global_state(_get_gcs_client_options(self._address))
        return self._known


class _StartedNode(HostNode):
    """By Ray's command line; this process is a driver of the cluster besides, which runs nothing."""

    def __init__(self, wanted: Wanted):
        import ray

        self._wanted = wanted
        self._process = subprocess.Popen([sys.executable, "-m", "ray.scripts.scripts", *start_command(wanted)])
        until = time.monotonic() + REGISTERED_WITHIN_S
        while not ray.is_initialized():
            self._check_alive(until, "nothing")
            try:
                ray.init(address=wanted.head_address, log_to_driver=False, logging_level="error")
            except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
                self._check_alive(until, error)
                time.sleep(ASK_EVERY_S)
        while (node := self._own()) is None:
            self._check_alive(until, "its node is not on Ray's list")
            time.sleep(ASK_EVERY_S)
        self._node_id, self._resources = node["NodeID"], node["Resources"]

    def _check_alive(self, until: float, last: object) -> None:
        if (code := self._process.poll()) is not None:
            raise RuntimeError(f"`ray start` ended with code {code}")
        if time.monotonic() > until:
            raise RuntimeError(f"`ray start` did not start a node within {REGISTERED_WITHIN_S:g} s: {last}")

    def _own(self) -> dict[str, Any] | None:
        found = [node for node in self.nodes() if node["Alive"] and node["NodeManagerAddress"] == self._wanted.address]
        return next((node for node in found if node.get("Labels", {}).items() >= self._wanted.labels.items()), None)

    def facts(self) -> dict[str, Any]:
        cpus, gpus = self._resources.get("CPU", 0.0), self._resources.get("GPU", 0.0)
        return {"node_id": self._node_id, "cpus": cpus, "gpus": gpus}

    def serve(self, dashboard: str | None) -> str | None:
        return dashboard  # it came with the head

    def dead(self) -> list[tuple[str, int]]:
        code = self._process.poll()
        return [] if code is None else [("raylet", code)]  # it ends as soon as one of the node's processes does

    def nodes(self) -> list[dict[str, Any]]:
        import ray

        return ray.nodes()

    def ranks(self) -> Counter[str]:
        """By the placement groups, since Ray's list of actors wants its dashboard."""
        from ray.util import placement_group_table

        groups = [group for group in placement_group_table().values() if group["state"] == "CREATED"]
        return Counter(node_id for group in groups for node_id in group["bundles_to_node_id"].values())


def start_command(wanted: Wanted) -> list[str]:
    """Arguments of Ray's command line."""
    command = ["start", "--block", "--node-ip-address", wanted.address, "--node-name", wanted.name]
    command += ["--num-cpus", f"{wanted.cpus:g}", "--num-gpus", f"{wanted.gpus:g}"]
    command += ["--resources", json.dumps(dict(wanted.resources))]
    if wanted.labels:
        command += ["--labels", ",".join(f"{name}={value}" for name, value in wanted.labels.items())]
    if wanted.memory is not None:
        command += ["--memory", str(wanted.memory)]
    if not wanted.head:
        return [*command, "--address", wanted.head_address]
    command += ["--head", "--port", wanted.head_address.rpartition(":")[2]]
    if wanted.dashboard is None:
        return [*command, "--include-dashboard", "false"]
    host, _, port = wanted.dashboard.rpartition(":")
    return [*command, "--include-dashboard", "true", "--dashboard-host", host, "--dashboard-port", port]


LIGHT_NODES = Contract(
    does="starting nodes on this machine",
    needs=(
        "ray._private.parameter:RayParams with include_dashboard no_monitor dashboard_agent_listen_port",
        "ray._private.node:Node.start_api_server",
        "ray._private.node:Node._webui_url",
        "ray._private.node:Node.all_processes",
        "ray._private.node:Node.kill_all_processes with check_alive allow_graceful wait",
        "ray.cluster_utils:Cluster.add_node with wait",
    ),
    looked_up={
        "ray._private.node:Node.start_api_server": "ray._private.node",
        "ray._private.utils:get_dashboard_dependency_error": "ray._private.services",
        "ray._private.utils:write_ray_address": "ray.cluster_utils",
        "ray._private.services:ConsolePopen": "ray._private.services",
    },
    buys="a second a node (no agents, no API server), the machine's current cluster stays the user's, and a signal to "
    "the driver's process group leaves the nodes alone",
    instead="nodes with their agents, of which Ray names the last as this machine's current cluster",
)


class LocalNodes:
    """Several Ray nodes on this machine, or one.

    Attributes:
        cluster: ray.cluster_utils.Cluster.
        address: HOST:PORT of the first.
        on_loopback: they listen on the loopback interface and nowhere else.
    """

    def __init__(self, public: bool):
        from ray.cluster_utils import Cluster

        self._light = LIGHT_NODES.holds(public)
        # not where Ray names it as this machine's current cluster: the user's own `ray.init()` could not connect to it
        self.on_loopback = self._light and OFF_THE_NETWORK.holds(public)
        self._children: list[int] = []
        self.cluster = Cluster(shutdown_at_exit=True)

    @property
    def address(self) -> str:
        return self.cluster.address

    def add(self, **resources: Any) -> None:
        """A node with what Cluster.add_node takes: num_cpus, num_gpus, resources, labels, object_store_memory."""
        if not self._light:
            before = _children()
            try:
                self.cluster.add_node(wait=False, include_dashboard=False, **resources)
            finally:
                self._children += _children() - before
            return
        where = {"node_ip_address": LOOPBACK} if self.on_loopback else {}
        with _light_nodes():
            self.cluster.add_node(
                wait=False,
                include_dashboard=False,
                no_monitor=True,  # there is nothing to scale
                dashboard_agent_listen_port=0,  # its fixed port is another node's on this machine: 3.5 s of retries
                **where,
                **resources,
            )

    def pids(self) -> list[int]:
        """Of all processes that the nodes are."""
        if self._light:
            infos = [info for node in self._nodes() for infos in node.all_processes.values() for info in infos]
            return [info.process.pid for info in infos]
        return list(self._children)

    def forget(self) -> None:
        """Their processes have been killed."""
        if self._light:
            for node in self._nodes():
                node.kill_all_processes(check_alive=False, allow_graceful=False, wait=False)

    def _nodes(self) -> list[Any]:
        return [node for node in (*self.cluster.worker_nodes, self.cluster.head_node) if node is not None]


def _children() -> set[int]:
    import psutil

    found = set()
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if any("ray" in word for word in child.cmdline()[:3]):  # not what another thread may start meanwhile
                found.add(child.pid)
    return found


def _light_nodes() -> contextlib.AbstractContextManager[None]:
    """Nodes as where Ray is installed without its dashboard, for nobody asks it anything here.

    Otherwise Ray starts an API server, waits a second for it, and gives every node an agent that serves its pages. And
    it would name this cluster as the machine's current one, though it is only ours and soon gone: the user's own
    `ray.init()` and `ray status` would look for it. Its processes are a group of their own, so that a signal to the
    driver's group (`timeout`'s, a service manager's) reaches the driver alone, which still needs them to stop in order.
    """
    from ray._private import services, utils
    from ray._private.node import Node

    return standing_in(
        (Node, "start_api_server", lambda node, **_: setattr(node, "_webui_url", "")),
        (utils, "get_dashboard_dependency_error", lambda: ImportError("left out")),
        (utils, "write_ray_address", lambda *_: None),
        (services, "ConsolePopen", partial(services.ConsolePopen, process_group=0)),
    )
