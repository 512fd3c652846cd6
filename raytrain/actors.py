"""The actors of a run: two on the driver's host, and a sampler on every host."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from raytrain.cluster.sampler import Sampler, Timeline
from raytrain.record import POINTS
from raytrain.watching import Machine, machines

if TYPE_CHECKING:
    from raytrain.data.order import StreamSpec
    from raytrain.data.pipeline import Pipeline
    from raytrain.job import Run

ASK_EVERY_S = 10.0  # so much of a lost host's last words may be lost with it


def start_feed(this: Run, pipeline: Pipeline, spec: StreamSpec) -> Any:
    """Feeds the ranks."""
    import ray

    from raytrain.data.feed import Feed
    from raytrain.data.stream import FeedOptions, Stored

    options = FeedOptions(
        slots=this.placed.slots,
        task_args=this.placed.task_args,
        batches_per_task=pipeline.batches_per_task,
        max_corrupt_share=pipeline.max_corrupt_share,
    )
    actor = ray.remote(num_cpus=0, max_restarts=3, max_concurrency=2 * this.topology.world_size + 8)(Feed)
    splits = Stored.put(this.opened.pickled_splits())
    return actor.options(label_selector=_here()).remote(spec, splits, options)


def start_keeper(this: Run, attempt: str) -> Any:
    """Keeps the checkpoints."""
    import ray

    from raytrain.train.keeper import Keeper

    actor = ray.remote(num_cpus=0, max_restarts=3, max_task_retries=3)(Keeper)
    folder = str(this.folder.checkpoints.absolute())
    keep, world_size = this.job.training.checkpoint.keep, this.topology.world_size
    return actor.options(label_selector=_here()).remote(folder, attempt, keep, world_size)


class Samplers:
    """How busy the machines of a run are. Nobody waits for a sampler, and one that is lost is not missed: what it had
    said remains.

    They are started when the ranks have begun, since before that every ready process and every CPU is one that the
    first step waits for.

    Attributes:
        timelines: of each machine, as far as it is known here.
    """

    def __init__(self) -> None:
        self.timelines: dict[Machine, Timeline] = {}
        self._actors: dict[Machine, Any] = {}
        self._asked: dict[Machine, Any] = {}
        self._heard: set[Machine] = set()
        self._ask_at = 0.0

    def look(self, this: Run) -> None:
        """Start them when it is time, take what they have answered, ask now and then. Never waits."""
        if not self.timelines and this.status.get("attempts"):
            self._actors = start_samplers(this)
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


def start_samplers(this: Run) -> dict[Machine, Any]:
    """One for each machine of the cluster."""
    import ray

    actor = ray.remote(num_cpus=0, max_restarts=0, enable_task_events=False)(Sampler)
    found = {}
    for machine in machines(this.topology, this.cluster.attached):
        where = {"ray.io/node-id": machine.node_id} if machine.node_id else _here()
        found[machine] = actor.options(label_selector=where).remote(2 * POINTS)
    return found


def _here() -> dict[str, str]:
    """The driver's own node, as a label selector."""
    import ray

    return {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
