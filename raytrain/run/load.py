"""The samplers of a run: how busy its machines are."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from raytrain.cluster.environment import public_ray
from raytrain.cluster.load import Sampler
from raytrain.cluster.topology import Topology
from raytrain.record.rows import Timeline
from raytrain.record.schema import POINTS
from raytrain.record.timeline import Machine

THIS_MACHINE = "this machine"
ASK_EVERY_S = 10.0  # so much of a lost host's last words may be lost with it


def machines(topology: Topology, attached: bool) -> list[Machine]:
    """Each machine once, however many Ray nodes it has.

    Nodes that the run has started itself are emulated on this machine. In a cluster that it attached to, so are those
    that share an address; a simulated host has one of its own, and is a machine, although its GPUs are emulated.
    """
    nodes_at = Counter(host.address for host in topology.hosts)
    found: dict[str, Machine] = {}
    for host in topology.hosts:
        if host.emulated and (not attached or nodes_at[host.address] > 1):
            found.setdefault(THIS_MACHINE, Machine(THIS_MACHINE, None, ""))
        else:
            found.setdefault(host.address or host.node_id, Machine(host.name, host.group, host.node_id))
    return list(found.values())


class Samplers:
    """How busy the machines of a run are. Nobody waits for a sampler, and one that is lost is not missed: what it had
    said remains.

    They are started when the ranks have begun, since before that every ready process and every CPU is one that the
    first step waits for.

    Attributes:
        timelines: of each machine, as far as it is known here.
    """

    def __init__(self, machines: Sequence[Machine]) -> None:
        self._machines = machines
        self.timelines: dict[Machine, Timeline] = {}
        self._actors: dict[Machine, Any] = {}
        self._asked: dict[Machine, Any] = {}
        self._heard: set[Machine] = set()
        self._ask_at = 0.0

    def look(self, *, training_began: bool) -> None:
        """Start them when it is time, take what they have answered, ask now and then. Never waits."""
        if not self.timelines and training_began:
            self._actors = start_samplers(self._machines)
            self.timelines = {machine: Timeline(2 * POINTS) for machine in self._actors}
        if self._actors and time.monotonic() >= self._ask_at:
            self._ask()
        self._take(0)

    def collect(self, timeout_s: float = 2.0) -> None:
        """Ask for the last time, and wait a moment for those that have ever answered."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            self._take(0)
            self._ask()
            self._take(timeout_s)

    def _ask(self) -> None:
        self._ask_at = time.monotonic() + ASK_EVERY_S
        for machine, actor in self._actors.items():
            if machine not in self._asked:
                timeline = self.timelines[machine]
                self._asked[machine] = actor.rows.remote(timeline.readings_a_row, len(timeline.rows))

    def _take(self, timeout_s: float) -> None:
        import ray

        heard = [answer for machine, answer in self._asked.items() if machine in self._heard]
        if timeout_s and heard:
            ray.wait(heard, num_returns=len(heard), timeout=timeout_s)
        if not self._asked:
            return
        answers = {answer: machine for machine, answer in self._asked.items()}
        ready, _ = ray.wait(list(answers), num_returns=len(answers), timeout=0)
        for machine in map(answers.get, ready):
            try:
                self.timelines[machine].take(ray.get(self._asked.pop(machine)))
                self._heard.add(machine)
            except ray.exceptions.RayError:
                del self._actors[machine]  # it, or its host, is gone


def start_samplers(machines: Sequence[Machine]) -> dict[Machine, Any]:
    """One for each."""
    import ray

    actor = ray.remote(num_cpus=0, max_restarts=0, enable_task_events=False)(Sampler)
    found = {}
    for machine in machines:
        where = {"ray.io/node-id": machine.node_id} if machine.node_id else here()
        found[machine] = actor.options(label_selector=where).remote(2 * POINTS, public_ray=public_ray())
    return found


def here() -> dict[str, str]:
    """The driver's own node, as a label selector."""
    import ray

    return {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
