"""Whether there is still a place for every rank, and whether a host of theirs is about to go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from typing import Any

from raytrain.cluster.environment import public_ray
from raytrain.cluster.topology import GROUP_LABEL, Topology
from raytrain.errors import TrainingError
from raytrain.ray_internals.draining import draining
from raytrain.record.status import RankProcess

ASK_EVERY_S = 1.0
WAIT_S = 120.0  # for another host in place of one that held ranks


class RankHosts:
    """Ray would wait for ever for a host that never comes.

    Args:
        topology: with which the run began.
        nodes: `ray.nodes`.
        draining: ids of the nodes that are about to go.
        told: called with what happens, in a line.
        patience_s: how long another host is waited for.

    Attributes:
        lacking: so many ranks have no place.
    """

    def __init__(
        self,
        topology: Topology,
        nodes: Callable[[], Sequence[Mapping[str, Any]]],
        draining: Callable[[], Set[str]],
        told: Callable[[str], None],
        patience_s: float,
    ):
        self.lacking = 0
        self._topology, self._nodes, self._draining = topology, nodes, draining
        self._told, self._patience_s = told, patience_s
        self._asked_s, self._lacks_since = float("-inf"), 0.0
        self._left: set[str] = set()

    @classmethod
    def of(cls, topology: Topology, told: Callable[[str], None]) -> RankHosts:
        """Of the cluster that this process is connected to."""
        import ray

        return cls(topology, ray.nodes, partial(draining, public_ray()), told, WAIT_S)

    def look(self, processes: Mapping[int, RankProcess], now_s: float) -> list[str]:
        """Node ids that the ranks should leave, each once.

        Args:
            processes: of the ranks at work.
            now_s: by a clock that only goes forward.

        Raises:
            TrainingError: there has been no place for all ranks for too long.
        """
        if now_s - self._asked_s < ASK_EVERY_S:
            return []
        self._asked_s = now_s
        alive = {node["NodeID"]: node for node in self._nodes() if node.get("Alive")}
        going = alive.keys() & self._draining()
        leaving = sorted({process.node for process in processes.values()} & going - self._left)
        self._left |= set(leaving)
        for node_id in leaving:
            self._told(f"{self._name(node_id)} is about to go; the ranks begin anew after the step in flight")
        self._count(alive, going, now_s)
        return leaving

    def _count(self, alive: Mapping[str, Any], going: Set[str], now_s: float) -> None:
        total = self._topology.world_size
        lacking = max(total - sum(self._places(node) for id_, node in alive.items() if id_ not in going), 0)
        before, self.lacking = self.lacking, lacking
        if not lacking:
            if before:
                self._told("there is a place for every rank again")
            return
        what = f"{self._who_lacks(alive, going)}: {lacking} of {total} ranks have no place"
        if not before:
            self._lacks_since = now_s
            self._told(f"{what}; waiting {self._patience_s:.0f} s for another host")
        elif now_s - self._lacks_since >= self._patience_s:
            raise TrainingError(
                f"{what}, and no other host has come for {self._patience_s:.0f} s; go on with --resume on other hosts, "
                "or on those that are left"
            )

    def _places(self, node: Mapping[str, Any]) -> int:
        topology = self._topology
        if topology.num_gpus:
            return int(node.get("Resources", {}).get(topology.gpu_resource, 0))
        label = (node.get("Labels") or {}).get(GROUP_LABEL)
        return int(label in (None, topology.training_group))

    def _who_lacks(self, alive: Mapping[str, Any], going: Set[str]) -> str:
        """Of the hosts that there were at first; of one that came later there is no name."""
        topology = self._topology
        training = [host for host in topology.hosts if host.gpus or host.group == topology.training_group]
        lost = [host.name for host in training if host.node_id not in alive]
        leaving = [host.name for host in training if host.node_id in going]
        told = [f"{' and '.join(names)} {what}" for names, what in ((lost, "lost"), (leaving, "about to go")) if names]
        return ", ".join(told) or "a host lost"

    def _name(self, node_id: str) -> str:
        return next((host.name for host in self._topology.hosts if host.node_id == node_id), node_id)
