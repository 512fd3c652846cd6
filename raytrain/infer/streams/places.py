"""Where the streams of a run are, with which cores or share of a GPU, and where samples are prepared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raytrain.cluster.environment import child_environment
from raytrain.cluster.placement import place_stages
from raytrain.cluster.topology import Host, Topology
from raytrain.config.cluster import Cluster
from raytrain.config.inference import Inference, Streams
from raytrain.errors import ClusterError, ConfigError
from raytrain.infer.contract import StreamShape
from raytrain.infer.streams.allocators import environment
from raytrain.infer.streams.gpus import share_gpus
from raytrain.infer.streams.shapes import left_over, plan_streams
from raytrain.infer.streams.topology import CpuTopology, read_topology


@dataclass(frozen=True)
class Lane:
    """Streams of one kind on a host.

    Attributes:
        takes: size classes.
        streams: how many, and with how many cores.
    """

    takes: tuple[int, ...]
    streams: Streams


@dataclass(frozen=True)
class OnHost:
    """What a host has for streams, as it says itself.

    Attributes:
        shapes: of its streams, with the size classes that each takes.
        variables: of the environment, by number of threads.
        rest: CPUs that no stream has; empty where that is no matter.
    """

    shapes: tuple[tuple[tuple[int, ...], StreamShape], ...]
    variables: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    rest: tuple[int, ...] = ()


@dataclass(frozen=True)
class StreamPlace:
    """One stream.

    Attributes:
        takes: size classes.
        cpus, gpus: that Ray counts for it.
    """

    host: Host
    shape: StreamShape
    takes: tuple[int, ...]
    device: str
    variables: Mapping[str, str] = field(default_factory=dict)
    cpus: float = 0.0
    gpus: float = 0.0


@dataclass(frozen=True)
class Places:
    """
    Attributes:
        slots: CPUs that prepare.
        queued: tasks beyond them that may wait; none where CPUs are to be spared, since Ray knows nothing of it.
        task_args: Ray's, of the tasks that do.
        groups: whose hosts these ask for; none for those of every group.
        rest: by Ray node id, the CPUs that they keep to.
    """

    streams: tuple[StreamPlace, ...]
    slots: int
    queued: int
    task_args: Mapping[str, Any]
    groups: tuple[str, ...]
    rest: Mapping[str, tuple[int, ...]]


def hosts_of_streams(topology: Topology, inference: Inference) -> tuple[list[Host], bool]:
    """The hosts that predict, and whether on GPUs: all that have some, or those of the training group.

    Raises:
        ClusterError: it is to be on GPUs, and there are none.
    """
    if inference.device != "cpu" and topology.num_gpus:
        return [host for host in topology.hosts if host.gpus], True
    if inference.device == "gpu":
        raise ClusterError("inference.device is gpu, and no host of the cluster has one; leave it out for CPUs")
    return [host for host in topology.hosts if host.group == topology.training_group and host.cpus], False


def lanes_of(inference: Inference, cores: int) -> list[Lane]:
    """Those of size classes with streams of their own, and one for the others.

    Args:
        cores: of the host, which are shared out evenly where nothing else is said.
    """
    if inference.buckets is None:
        return [Lane((0,), inference.streams)]
    classes = inference.buckets.classes
    shared = tuple(number for number, each in enumerate(classes) if each.streams is None)
    own = sum(each.streams or 0 for each in classes)
    even = max(cores // (own + (inference.streams.count or 1 if shared else 0)), 1) if own else None
    lanes = []
    for number, each in enumerate(classes):
        if each.streams is not None:
            said = {"count": each.streams, "cores": each.cores or even}
            lanes.append(Lane((number,), inference.streams.model_copy(update=said)))
    if shared:
        count = inference.streams.count or (1 if own else None)
        said = {"count": count, "cores": inference.streams.cores or (even if own else None)}
        lanes.append(Lane(shared, inference.streams.model_copy(update=said)))
    return lanes


def survey(inference: Inference, spare: bool, topology: CpuTopology | None = None) -> OnHost:
    """On the host that it is about.

    Args:
        spare: leave a core to the tasks that prepare, where the job does not say how many the streams have.

    Raises:
        ConfigError: they do not fit, or the allocator is not installed.
    """
    whole = left = topology or read_topology()
    before = child_environment({})
    found: list[tuple[tuple[int, ...], StreamShape]] = []
    for lane in lanes_of(inference, len(whole.cores)):
        open_ended = lane.streams.count is None and lane.streams.cores is None
        usable = min(len(left.cores), whole.quota or len(left.cores))
        shapes = plan_streams(left, lane.streams, inference.objective, int(spare and open_ended and usable > 1))
        found += [(lane.takes, shape) for shape in shapes]
        left = left.without({cpu for shape in shapes for cpu in shape.cpus})
    threads = {shape.threads for _, shape in found}
    variables = {each: environment(inference.streams, each, before) for each in threads}
    return OnHost(tuple(found), variables, left_over(whole, [shape for _, shape in found]))


def emulated(host: Host, inference: Inference) -> OnHost:
    """Of a node that shares its machine: threads and no cores of its own.

    Raises:
        ConfigError: there are more streams than CPUs.
    """
    shapes = []
    for lane in lanes_of(inference, int(host.cpus)):
        count = lane.streams.count or 1
        cores = lane.streams.cores or max(int(host.cpus) // count, 1)
        shapes += [(lane.takes, StreamShape((), cores))] * count
    asked = sum(shape.threads for _, shape in shapes)
    if asked > max(host.cpus, 1):
        raise ConfigError(
            f"inference.streams: {len(shapes)} streams want {asked} cores, and host {host.name} has {host.cpus:g}"
        )
    return OnHost(tuple(shapes))


def place(topology: Topology, inference: Inference, cluster: Cluster, surveys: Mapping[str, OnHost]) -> Places:
    """
    Args:
        surveys: by Ray node id, of the hosts that predict; none where that is done on GPUs.

    Raises:
        ClusterError: `cpu-groups-only` on a cluster without CPU groups.
    """
    hosts, on_gpus = hosts_of_streams(topology, inference)
    placed = place_stages(topology, cluster.placement, cluster.reserved_cpus if on_gpus else 0)
    task_args = {name: value for name, value in placed.task_args.items() if name != "concurrency"}
    if on_gpus:
        streams = [each for host in hosts for each in _on_gpus(host, inference, topology.has_real_gpus)]
        queued = 0 if "concurrency" in placed.task_args else placed.slots
        return Places(tuple(streams), placed.slots, queued, task_args, placed.groups, {})
    elsewhere = topology.cpu_slots() - sum(int(host.cpus) for host in hosts)
    found: list[StreamPlace] = []
    taken = 0.0
    for host in hosts:
        own = _on_cpus(host, surveys[host.node_id], keep=0 if elsewhere >= 1 else 1)
        taken += sum(each.cpus for each in own)
        found += own
    slots = placed.slots - (0 if cluster.placement == "cpu-groups-only" else int(taken))
    rest = {node: each.rest for node, each in surveys.items() if each.rest}
    slots = max(slots, 1)
    return Places(tuple(found), slots, slots, task_args, placed.groups, rest)


def _on_gpus(host: Host, inference: Inference, real: bool) -> list[StreamPlace]:
    """Every task takes every size class."""
    takes = tuple(range(len(inference.buckets.classes) if inference.buckets else 1))
    share = share_gpus(inference.tasks_per_gpu, int(host.gpus), int(host.cpus))
    shape = StreamShape((), max(int(share.cpus), 1))
    device = "cuda" if real else "cpu"
    return [StreamPlace(host, shape, takes, device, gpus=share.gpus)] * share.count


def _on_cpus(host: Host, here: OnHost, keep: int) -> list[StreamPlace]:
    """With the CPUs that Ray is to count for each: all hardware threads of its cores, since those that it does not use
    are nobody's, but for the CPUs to be kept for the tasks that prepare."""
    wanted = [float(shape.threads) for _, shape in here.shapes]
    used = {cpu for _, shape in here.shapes for cpu in shape.cpus}
    taken = sum(wanted)
    if here.rest and used.isdisjoint(here.rest):
        taken = max(taken, host.cpus - len(here.rest))
    scale = min(taken, max(host.cpus - keep, 0.0)) / sum(wanted)
    found = []
    for (takes, shape), cpus in zip(here.shapes, wanted, strict=True):
        own = cpus * scale
        counted = float(int(own)) if own >= 1 else round(own, 2)  # Ray takes whole CPUs, or less than one
        found.append(StreamPlace(host, shape, takes, "cpu", here.variables.get(shape.threads, {}), counted))
    return found


def surveys_of(topology: Topology, inference: Inference, ask: Any) -> dict[str, OnHost]:
    """By Ray node id, of the hosts that predict on CPUs.

    Args:
        ask: of hosts and whether they spare a core, what each says, by node id.
    """
    hosts, on_gpus = hosts_of_streams(topology, inference)
    if on_gpus:
        return {}
    alone = topology.cpu_slots() == sum(int(host.cpus) for host in hosts)
    real: Sequence[Host] = [host for host in hosts if not host.emulated]
    return {**{h.node_id: emulated(h, inference) for h in hosts if h.emulated}, **(ask(real, alone) if real else {})}
