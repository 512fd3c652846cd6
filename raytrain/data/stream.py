"""The stream: one run of the Ray Data pipeline from a position to the end, and who gets which batch of it.

One streaming execution carries the whole run (every epoch, and the validation passes between them), so that workers
stay warm and the next epoch is being prepared while this one ends.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from raytrain.data.order import Split, StreamPlan
from raytrain.data.produce import StreamWork, produce
from raytrain.errors import RaytrainError, TrainingError

BATCHES_A_LEG = 16_384  # of one Ray Data execution; a plan block costs the executor about 0.3 ms
MAX_BATCHES_A_TASK = 32
ABANDON_TIMEOUT_S = 10.0
LEG_TRIES = 3


@dataclass(frozen=True)
class FeedOptions:
    """How the feed runs the CPU stages.

    Attributes:
        slots: CPUs that run them.
        task_args: Ray task options that say where (see cluster.placement).
        batches_per_task: None to choose.
        ready_per_rank: batches kept ready for each rank beside what Ray Data buffers.
        max_corrupt: samples of a split that may fail.
    """

    slots: int
    task_args: dict[str, Any]
    batches_per_task: int | None
    max_corrupt: dict[Split, int]
    ready_per_rank: int = 2


def task_places(plan: StreamPlan, slots: int, batches_per_task: int | None) -> list[list[np.ndarray]]:
    """Which batches each task prepares: legs of tasks, a task an int64 array (n, 2) of (segment, batch).

    Tasks that run side by side take every `slots`-th batch of a window, so that batches come out nearly in plan
    order whatever the number of hosts, and a task is still long enough (seconds) to hide its scheduling.
    """
    total = plan.total_batches
    if total == 0:
        return []
    places = np.concatenate(
        [
            np.stack([np.full(s.num_batches, s.number), np.arange(s.num_batches)], axis=1)
            for s in plan.segments
            if s.num_batches
        ]
    )
    size = batches_per_task or int(np.clip(-(-total // (2 * slots)), 1, MAX_BATCHES_A_TASK))
    legs = []
    for leg in range(0, total, BATCHES_A_LEG):
        rows = places[leg : leg + BATCHES_A_LEG]
        windows = (rows[first : first + slots * size] for first in range(0, len(rows), slots * size))
        legs.append([task for window in windows for task in (window[j::slots] for j in range(slots)) if len(task)])
    return legs


class Router:
    """Decides which rank gets which batch. Pure: no Ray, no clock, no threads.

    Within a segment, batches go round the ranks in order of arrival, full ones before the last, smaller round.
    Batches of later segments wait until the segment before them has been given out.
    """

    def __init__(self, plan: StreamPlan):
        self._plan = plan
        self.queues: list[deque] = [deque() for _ in range(plan.world_size)]
        self._waiting: dict[int, list[tuple[int, Any]]] = {}
        self._open = 0
        self._given = 0
        self._skip_empty_segments()

    @property
    def done(self) -> bool:
        """Whether every batch of the plan has been given out."""
        return self._open == len(self._plan.segments)

    @property
    def num_waiting(self) -> int:
        """Batches that came before their turn."""
        return sum(map(len, self._waiting.values()))

    def arrive(self, segment: int, batch: int, reference: Any) -> None:
        self._waiting.setdefault(segment, []).append((batch, reference))
        self._give()

    def _give(self) -> None:
        while not self.done:
            part = self._plan.segments[self._open]
            waiting = self._waiting.get(self._open, [])
            num_full = part.num_batches - self._plan.world_size
            ready = [w for w in waiting if w[0] < num_full or self._given >= num_full]
            if not ready:
                return
            batch, reference = ready[0]
            waiting.remove(ready[0])
            self.queues[self._given % self._plan.world_size].append((self._open, batch, reference))
            self._given += 1
            if self._given == part.num_batches:
                self._waiting.pop(self._open, None)
                self._open, self._given = self._open + 1, 0
                self._skip_empty_segments()

    def _skip_empty_segments(self) -> None:
        while not self.done and self._plan.segments[self._open].num_batches == 0:
            self._open += 1


class Stream:
    """One run of the pipeline from a position to the end, on its own thread."""

    def __init__(
        self,
        plan: StreamPlan,
        splits_pickle: bytes,
        options: FeedOptions,
        changed: threading.Condition,
        after: Stream | None = None,
    ):
        self.plan, self.router = plan, Router(plan)
        self.taken = [0] * plan.world_size
        self.error: Exception | None = None
        self.abandoned = False
        self.first_ready_at: float | None = None
        self._options, self._changed, self._splits_pickle, self._after = options, changed, splits_pickle, after
        self._thread = threading.Thread(target=self._run, name="raytrain-stream", daemon=True)
        self._thread.start()

    @property
    def num_ready(self) -> int:
        return sum(len(queue) for queue in self.router.queues)

    def _run(self) -> None:
        import ray

        try:
            if self._after is not None:
                self._after.join()
                self._after = None
            work_ref = ray.put(StreamWork(self.plan, self._splits_pickle))
            for tasks in task_places(self.plan, self._options.slots, self._options.batches_per_task):
                self._run_whole_leg(tasks, work_ref)
                if self.abandoned:
                    return
        except Exception as error:  # noqa: BLE001 - handed to whoever takes next, and from there to the user
            with self._changed:
                self.error = _cause(error)
                self._changed.notify_all()

    def join(self) -> None:
        """Wait until the thread has let go of its Ray Data execution."""
        self._thread.join(ABANDON_TIMEOUT_S)

    def _run_whole_leg(self, tasks: list[np.ndarray], work_ref: Any) -> None:
        """Run tasks, and again what went missing: a task that Ray cancels ends early and is not reported as failed.

        (Seen when an execution is abandoned: its cancellation can hit the next task of the same worker.)
        """
        tries = 0
        while tasks and not self.abandoned:
            before = sum(map(len, tasks))
            tasks = self._run_leg(tasks, work_ref)
            tries = tries + 1 if sum(map(len, tasks)) == before else 0
            if tries == LEG_TRIES:
                raise TrainingError(
                    f"Ray Data lost the same batches {LEG_TRIES} times; see its log in the Ray session folder"
                )

    def _run_leg(self, tasks: list[np.ndarray], work_ref: Any) -> list[np.ndarray]:
        """One Ray Data execution. Returns the tasks, or ends of tasks, whose batches did not come.

        It is broken off when a batch of the open segment stays away while later segments pile up: what is missing is
        then prepared first, and memory stays bounded.
        """
        yielded = [0] * len(tasks)
        most_waiting = self.router.num_waiting + 4 * self._options.slots * max(map(len, tasks)) + 64
        for bundle in _dataset(tasks, work_ref, self._options.task_args).iter_internal_ref_bundles():
            for entry in bundle.blocks:
                # Task i of the execution runs plan block i, and its blocks come in the order of its places.
                task = entry.metadata.exec_stats.task_idx
                segment, batch = tasks[task][yielded[task]]
                yielded[task] += 1
                with self._changed:
                    self.first_ready_at = self.first_ready_at or time.time()
                    self.router.arrive(int(segment), int(batch), entry.ref)
                    self._changed.notify_all()
            with self._changed:
                self._changed.wait_for(lambda: self.abandoned or self._has_room())
            if self.abandoned or self.router.num_waiting > most_waiting:
                break
        return [task[came:] for task, came in zip(tasks, yielded, strict=True) if came < len(task)]

    def _has_room(self) -> bool:
        return min(len(queue) for queue in self.router.queues) < self._options.ready_per_rank


def _dataset(tasks: list[np.ndarray], work_ref: Any, task_args: dict[str, Any]) -> Any:
    """The Ray Data pipeline: places in, ready batches out, one batch a block."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = 1  # a block has one row; this makes every row a block of its own, at once
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    with ray.data.DataContext.current(context):
        blocks = [pa.table({"segment": task[:, 0], "batch": task[:, 1]}) for task in tasks]
        return ray.data.from_arrow(blocks).map_batches(
            produce,
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            num_cpus=1,
            fn_kwargs={"work_ref": [work_ref]},
            **task_args,
        )


def _cause(error: BaseException) -> Exception:
    """The error of ours below Ray's wrappers, or one line about the innermost."""
    inner = error
    while (below := getattr(inner, "cause", None) or inner.__cause__) is not None:
        inner = below
    if isinstance(inner, RaytrainError):
        return type(inner)(str(inner).splitlines()[0])  # Ray Data adds lines of its own
    lines = [line for line in str(inner).splitlines() if line.strip()] or [""]
    return TrainingError(f"preprocessing failed: {type(inner).__name__}: {lines[-1].strip()}")
