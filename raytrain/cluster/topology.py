"""Which hosts there are, in which groups. A value: built from a description or read off a running Ray cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raytrain.errors import ClusterError
from raytrain.ray_internals.node import HEAD_RESOURCE

GROUP_LABEL = "raytrain-group"
INSTANCE_TYPE_LABEL = "raytrain-instance-type"
HOST_LABEL = "raytrain-host"
UNLABELLED = "default"  # the group of nodes without that label
EMULATED_LABEL = "raytrain-emulated"
EMULATED_GPU = "raytrain-emulated-gpu"  # a Ray resource of its own: Ray would hand out real devices for its `GPU`


@dataclass(frozen=True)
class Host:
    """One machine, or one Ray node that stands for one.

    Attributes:
        cpus: that the CPU stages may use.
        emulated: the node shares this machine with others, and its GPUs, if any, are only declared.
    """

    name: str
    group: str
    cpus: float
    gpus: float
    address: str = ""
    node_id: str = ""
    instance_type: str | None = None
    emulated: bool = False
    is_head: bool = False


@dataclass(frozen=True)
class Topology:
    """All hosts of a cluster; a single machine is a cluster of one."""

    hosts: tuple[Host, ...]

    @property
    def num_gpus(self) -> int:
        return int(sum(host.gpus for host in self.hosts))

    @property
    def world_size(self) -> int:
        """Training ranks: one a GPU, or a single CPU rank when there are none."""
        return max(self.num_gpus, 1)

    @property
    def training_group(self) -> str:
        """The group that trains: the first with GPUs, or the head's; never one that only coordinates."""
        with_gpus = [host.group for host in self.hosts if host.gpus]
        working = [host.group for host in self.hosts if host.cpus]
        heads = [host.group for host in self.hosts if host.is_head and host.group in working]
        return (with_gpus or heads or working)[0]

    @property
    def is_labelled(self) -> bool:
        """Whether tasks can be sent to one group or another, where there are several."""
        return not self.cpu_groups or all(host.group != UNLABELLED for host in self.hosts)

    @property
    def emulated_gpus(self) -> bool:
        return any(host.emulated and host.gpus for host in self.hosts)

    @property
    def has_real_gpus(self) -> bool:
        return self.num_gpus > 0 and not self.emulated_gpus

    @property
    def gpu_resource(self) -> str:
        """What Ray calls the GPUs of this cluster."""
        return EMULATED_GPU if self.emulated_gpus else "GPU"

    def cpu_slots(self, groups: Sequence[str] | None = None) -> int:
        """CPUs for the stages, of some groups or of all."""
        return int(sum(host.cpus for host in self.hosts if groups is None or host.group in groups))

    @property
    def cpu_groups(self) -> tuple[str, ...]:
        """The groups that do not train."""
        return tuple(dict.fromkeys(h.group for h in self.hosts if h.group != self.training_group))


def from_ray(nodes: Sequence[dict[str, Any]], head_node_id: str = "") -> Topology:
    """Read the topology off `ray.nodes()`. Nodes without our label are one group, `default`.

    Raises:
        ClusterError: no living node, or none with a CPU.
    """
    hosts, numbers = [], Counter()
    for node in nodes:
        if not node.get("Alive"):
            continue
        resources, labels = node.get("Resources", {}), node.get("Labels") or {}
        group = labels.get(GROUP_LABEL, UNLABELLED)
        numbers[group] += 1
        hosts.append(
            Host(
                name=labels.get(HOST_LABEL) or f"{group}-{numbers[group]}",
                group=group,
                cpus=resources.get("CPU", 0.0),
                gpus=resources.get("GPU", 0.0) or resources.get(EMULATED_GPU, 0.0),
                address=node.get("NodeManagerAddress", ""),
                node_id=node["NodeID"],
                instance_type=labels.get(INSTANCE_TYPE_LABEL),
                emulated=labels.get(EMULATED_LABEL) == "true",
                is_head=HEAD_RESOURCE in resources or node["NodeID"] == head_node_id,
            )
        )
    if not hosts:
        raise ClusterError("the Ray cluster has no living node")
    if sum(host.cpus for host in hosts) < 1:
        raise ClusterError("the Ray cluster has no CPU for the preprocessing; start a node with --num-cpus")
    return Topology(tuple(sorted(hosts, key=lambda h: (not h.is_head, h.group, h.name))))
