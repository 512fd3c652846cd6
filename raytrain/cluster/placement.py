"""Where CPU stages and training ranks run: the one place that decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from raytrain.cluster.topology import GROUP_LABEL, UNLABELLED, Topology
from raytrain.config.cluster import Group, Placement, reserved_cpus
from raytrain.errors import ClusterError

RANK_MEMORY_BYTES = 1 << 20  # a training rank without a GPU must ask for something, and must not ask for a CPU


@dataclass(frozen=True)
class PlacedStages:
    """Ray task options for the CPU stages, and how many CPUs they can fill. Ray Data spreads tasks by itself.

    Attributes:
        groups: whose hosts the options ask for, at first or at all; none for those of every group.
    """

    task_args: dict[str, Any]
    slots: int
    groups: tuple[str, ...] = ()


def place_stages(topology: Topology, placement: Placement, reserved: int | None = 0) -> PlacedStages:
    """Turn a placement into label selectors.

    Args:
        reserved: CPUs of a training host to leave alone by running fewer tasks at a time; None for the default, as
            `reserved_cpus` has it.

    Raises:
        ClusterError: `cpu-groups-only` on a cluster without CPU groups.
    """
    groups = topology.cpu_groups
    spared = sum(
        reserved_cpus(int(host.cpus), int(host.gpus), reserved)
        for host in topology.hosts
        if host.group == topology.training_group and host.cpus >= 1
    )
    everywhere = max(topology.cpu_slots() - spared, 1)
    cap = {"concurrency": everywhere} if spared else {}
    if not topology.cpu_slots(groups) and placement != "cpu-groups-only":
        return PlacedStages(cap, everywhere)
    if placement in ("auto", "anywhere") and not spared:  # else the CPUs to be spared are those of a training host
        return PlacedStages({}, everywhere)
    if topology.cpu_slots(groups) < 1:
        raise ClusterError(
            "cluster.placement is cpu-groups-only, but every host belongs to the training group; "
            "add a CPU group (--nodes gpu=1x2,cpu=1x2) or use placement: anywhere"
        )
    selector = {GROUP_LABEL: f"in({','.join(groups)})"}
    if placement == "cpu-groups-only":
        return PlacedStages({"label_selector": selector}, topology.cpu_slots(groups), groups)
    rest = {"label_selector": {GROUP_LABEL: topology.training_group}}
    return PlacedStages({"label_selector": selector, "fallback_strategy": [rest], **cap}, everywhere, groups)


def placements(topology: Topology, reserved: int | None = None) -> dict[int, PlacedStages]:
    """By how many of the training hosts' CPUs prepare, from the fewest that there can be to all, or to all but those
    that are `reserved` of each host."""
    others = topology.cpu_slots(topology.cpu_groups)
    everywhere = place_stages(topology, "anywhere", reserved or 0)
    some = place_stages(topology, "cpu-groups-first") if others else everywhere
    most = everywhere.slots - others
    found = {0: place_stages(topology, "cpu-groups-only")} if others else {}
    for cpus in range(1, most + 1):
        slots = others + cpus
        found[cpus] = replace(some, task_args={**some.task_args, "concurrency": slots}, slots=slots)
    return found


def check_reserve(groups: Sequence[Group], reserved: int | None) -> None:
    """Of nodes that are yet to be started.

    Raises:
        ConfigError: a training host would have no CPU left for the stages.
    """
    training = [group for group in groups if group.gpus] or groups[:1]
    for group in training:
        reserved_cpus(group.cpus or 1, group.gpus or 0, reserved)


def check_free_gpus(topology: Topology, free: float) -> None:
    """Ray would wait for ever for a GPU that somebody else holds.

    Raises:
        ClusterError: fewer GPUs are free than the cluster has.
    """
    if free < topology.num_gpus:
        raise ClusterError(
            f"only {free:g} of the cluster's {topology.num_gpus} GPUs are free; wait for the job that holds the others"
        )


def rank_resources(topology: Topology) -> dict[str, float]:
    """What a training rank reserves: its GPU, or a little memory; never a CPU slot."""
    return {topology.gpu_resource: 1} if topology.num_gpus else {"memory": RANK_MEMORY_BYTES}


def rank_selector(topology: Topology) -> dict[str, str] | None:
    """Keeps a CPU rank in the training group; a GPU rank finds its place by its GPU."""
    labelled = any(host.group != UNLABELLED for host in topology.hosts)
    return {GROUP_LABEL: topology.training_group} if labelled and not topology.num_gpus else None
