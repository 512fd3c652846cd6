"""The stream: one run of the Ray Data pipeline from a position to the end, and who gets which batch of it.

After a short execution that shows what a batch costs, one carries the whole run (every epoch, and the validation passes
between them), so that workers stay warm and the next epoch is being prepared while this one ends.
"""

from __future__ import annotations

import logging
import pickle
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from raytrain.data.order import StreamPlan
from raytrain.data.produce import StreamWork, produce
from raytrain.data.stock import BoundedStock, stock_bytes
from raytrain.errors import RaytrainError, TrainingError

TASKS_A_LEG = 16_384  # of one Ray Data execution; a task costs the executor about 0.3 ms to plan
FIRST_BLOCKS = 2  # a task of the first, short leg, which shows what a batch costs
BLOCK_S, BLOCK_BYTES = 0.1, 16 << 20  # of several small batches in one block
AHEAD_S, AHEAD_BYTES = 0.35, 256 << 20
TASK_S, SHORT_TASK_S = 30.0, 5.0  # hides the 0.2 s between two tasks on a CPU
MAX_BATCHES_A_BLOCK = 64
MAX_BLOCKS_A_TASK = 256
ABANDON_TIMEOUT_S = 10.0
LEG_TRIES = 3
RAYS_ADVICE = ("Failed to ", "To change retry attempts", "This looks like an AWS S3 permissions error")


@dataclass(frozen=True)
class FeedOptions:
    """How the feed runs the CPU stages.

    Attributes:
        slots: CPUs that run them.
        task_args: Ray task options that say where (see cluster.placement).
        batches_per_task: None to choose.
        ready_per_rank: batches kept ready for each rank beside what Ray Data buffers.
        max_corrupt_share: of a split's samples that may fail (see `most_corrupt`).
    """

    slots: int
    task_args: dict[str, Any]
    batches_per_task: int | None
    max_corrupt_share: float
    ready_per_rank: int = 2


def most_corrupt(share: float, num_samples: int) -> int:
    """Samples that may fail: a share of them, and at least one where the share is not 0, since one bad file of a small
    data set is as little a reason to stop as a few of a large one."""
    return max(int(share * num_samples + 1e-9), int(share > 0))  # 0.29 * 100 is a little less than 29


@dataclass(frozen=True)
class Pace:
    """How the batches are cut into blocks and tasks, from what a batch costs.

    Attributes:
        batches_per_block: ready batches of one block; more than one where they cost less than handing a block over.
        blocks_per_task: at most; fewer towards the end, so that all CPUs end together.
        least_blocks: of a task, but for what does not fill one.
        blocks_ahead: that a task may be ahead of Ray Data, which collects ten times a second.
    """

    batches_per_block: int = 1
    blocks_per_task: int = MAX_BLOCKS_A_TASK
    least_blocks: int = 1
    blocks_ahead: int = 2

    @classmethod
    def of(cls, batch_s: float, batch_bytes: float) -> Pace:
        """For batches that take `batch_s` seconds of a CPU and `batch_bytes` in the object store."""
        group = min(BLOCK_S / max(batch_s, 1e-6), BLOCK_BYTES / max(batch_bytes, 1))
        group = int(np.clip(group, 1, MAX_BATCHES_A_BLOCK))
        block_s, block_bytes = max(batch_s * group, 1e-6), max(batch_bytes * group, 1)
        ahead = min(AHEAD_S / block_s, AHEAD_BYTES / block_bytes)
        longest = int(np.clip(TASK_S / block_s, 1, MAX_BLOCKS_A_TASK))
        least = int(np.clip(SHORT_TASK_S / block_s, 1, longest))
        return cls(group, longest, least, int(np.clip(ahead, 2, 16)))


def cut_blocks(places: np.ndarray, batches_per_block: int) -> np.ndarray:
    """Runs of batches as blocks, int64 (num_blocks, 3) of (segment, first batch, count); none crosses a segment.

    The blocks of a run are as nearly equal as they can be, so that the tasks that share them are too. `places` is int64
    (num_batches, 2) of (segment, batch), in order.
    """
    if not len(places):
        return np.zeros((0, 3), dtype=np.int64)
    follows = (np.diff(places[:, 0]) == 0) & (np.diff(places[:, 1]) == 1)
    starts = np.concatenate([[0], np.flatnonzero(~follows) + 1])
    sizes = np.diff(np.append(starts, len(places)))
    numbers = -(-sizes // batches_per_block)  # blocks of each run
    runs = zip(starts, sizes, numbers, strict=True)
    firsts = np.concatenate([start + np.arange(number) * size // number for start, size, number in runs])
    counts = np.diff(np.append(firsts, len(places)))
    return np.column_stack([places[firsts], counts])


def deal_tasks(blocks: np.ndarray, slots: int, blocks_per_task: int, least: int = 1) -> list[np.ndarray]:
    """Which blocks each task prepares: rows of `blocks`.

    Tasks that run side by side take every `slots`-th block of a window, so that batches come out nearly in plan order
    whatever the number of hosts. A window is at most half of what is left: the last tasks are short, and no CPU waits
    long for another at the end.
    """
    tasks, first = [], 0
    while first < len(blocks):
        size = int(np.clip(-(-(len(blocks) - first) // (2 * slots)), least, blocks_per_task))
        window = blocks[first : first + slots * size]
        tasks += [window[number::slots] for number in range(slots) if len(window[number::slots])]
        first += slots * size
    return tasks


class Router:
    """Decides which rank gets which batch. Pure: no Ray, no clock, no threads.

    Within a segment, batches go round the ranks in order of arrival: the full ones first, then round by round the
    smaller ones, so that every step has the samples that the plan gives it. Batches of later segments wait until the
    segment before them has been given out.
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

    def arrive(self, segment: int, batch: int, where: Any) -> None:
        """`where` is handed on with the batch."""
        self._waiting.setdefault(segment, []).append((batch, where))
        self._give()

    def _give(self) -> None:
        world_size = self._plan.world_size
        while not self.done:
            part = self._plan.segments[self._open]
            waiting = self._waiting.get(self._open, [])
            limit = part.num_alike // world_size * world_size
            if self._given >= limit:
                limit = (self._given // world_size + 1) * world_size
            ready = [w for w in waiting if w[0] < limit]
            if not ready:
                return
            batch, where = ready[0]
            waiting.remove(ready[0])
            self.queues[self._given % world_size].append((self._open, batch, where))
            self._given += 1
            if self._given == part.num_batches:
                self._waiting.pop(self._open, None)
                self._open, self._given = self._open + 1, 0
                self._skip_empty_segments()

    def _skip_empty_segments(self) -> None:
        while not self.done and self._plan.segments[self._open].num_batches == 0:
            self._open += 1


@dataclass(frozen=True)
class Stored:
    """Bytes in Ray's object store for as long as the run, which is what a pickled reference does.

    Of any other argument that lies there, and of an actor that may start again, Ray's C++ warns on standard error.
    """

    reference_pickle: bytes

    @classmethod
    def put(cls, data: bytes) -> Stored:
        import ray

        return cls(ray.cloudpickle.dumps(ray.put(data)))

    def get(self) -> bytes:
        import ray

        return ray.get(pickle.loads(self.reference_pickle))


class Stream:
    """One run of the pipeline from a position to the end, on its own thread."""

    def __init__(
        self,
        plan: StreamPlan,
        splits_pickle: bytes | Stored,
        options: FeedOptions,
        changed: threading.Condition,
        after: Stream | None = None,
    ):
        self.plan, self.router = plan, Router(plan)
        self.taken = [0] * plan.world_size
        self.error: Exception | None = None
        self.abandoned = False
        self.first_ready_at: float | None = None
        self._cost = (float("inf"), 0.0)  # seconds and bytes of a batch
        self._pace = Pace()
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
            splits = self._splits_pickle
            work_ref = ray.put(StreamWork(self.plan, splits if isinstance(splits, bytes) else splits.get()))
            places, first = self.plan.places(), True
            while len(places) and not self.abandoned:
                tasks, taken = self._leg(places, first)
                self._run_whole_leg(tasks, work_ref)
                places, first = places[taken:], False
        except Exception as error:  # noqa: BLE001 - handed to whoever takes next, and from there to the user
            with self._changed:
                self.error = _cause(error)
                self._changed.notify_all()

    def _leg(self, places: np.ndarray, first: bool) -> tuple[list[np.ndarray], int]:
        """The tasks of the next Ray Data execution, and how many batches they hold; settles the pace."""
        slots, fixed = self._options.slots, self._options.batches_per_task
        if fixed is None and first:  # what comes next depends on what these cost
            taken = min(FIRST_BLOCKS * slots, len(places))
            blocks = cut_blocks(places[:taken], 1)
            return [blocks[number::slots] for number in range(min(slots, taken))], taken
        pace = self._pace = Pace(1, fixed, fixed) if fixed else Pace.of(*self._cost)
        group = min(pace.batches_per_block, max(len(places) // (4 * slots), 1))  # so that no CPU is left without
        blocks = cut_blocks(places, group)[: TASKS_A_LEG * pace.blocks_per_task]
        return deal_tasks(blocks, slots, pace.blocks_per_task, pace.least_blocks), int(blocks[:, 2].sum())

    def join(self) -> None:
        """Wait until the thread has let go of its Ray Data execution."""
        self._thread.join(ABANDON_TIMEOUT_S)

    def _run_whole_leg(self, tasks: list[np.ndarray], work_ref: Any) -> None:
        """Run tasks, and again what went missing: a task that Ray cancels ends early and is not reported as failed.

        (Seen when an execution is abandoned: its cancellation can hit the next task of the same worker.)
        """
        tries = 0
        while tasks and not self.abandoned:
            before = num_batches(tasks)
            tasks = self._run_leg(tasks, work_ref)
            tries = tries + 1 if num_batches(tasks) == before else 0
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
        longest = max(int(task[:, 2].sum()) for task in tasks)
        most_waiting = self.router.num_waiting + 4 * self._options.slots * longest + 64
        dataset = _dataset(tasks, work_ref, self._options.task_args, self._pace.blocks_ahead)
        for bundle in dataset.iter_internal_ref_bundles():
            for entry in bundle.blocks:
                # Task i of the execution runs plan block i, and its blocks come in the order of its places.
                task = entry.metadata.exec_stats.task_idx
                segment, batch, count = map(int, tasks[task][yielded[task]])
                yielded[task] += 1
                self._learn(entry.metadata, count)
                with self._changed:
                    self.first_ready_at = self.first_ready_at or time.time()
                    for index in range(count):
                        self.router.arrive(segment, batch + index, (entry.ref, index))
                    self._changed.notify_all()
            with self._changed:
                self._changed.wait_for(lambda: self.abandoned or self._has_room())
            if self.abandoned or self.router.num_waiting > most_waiting:
                break
        return [task[came:] for task, came in zip(tasks, yielded, strict=True) if came < len(task)]

    def _learn(self, metadata: Any, count: int) -> None:
        """What a batch costs: the cheapest seen, since a worker's first also pays for its imports."""
        seconds = (metadata.exec_stats.block_transform_time_s or 0.0) / count
        self._cost = (min(self._cost[0], seconds), metadata.size_bytes / count)

    def _has_room(self) -> bool:
        return min(len(queue) for queue in self.router.queues) < self._options.ready_per_rank


def num_batches(tasks: list[np.ndarray]) -> int:
    return sum(int(task[:, 2].sum()) for task in tasks)


def _dataset(tasks: list[np.ndarray], work_ref: Any, task_args: dict[str, Any], blocks_ahead: int) -> Any:
    """The Ray Data pipeline: places in, blocks of ready batches out."""
    import ray.data
    from ray.data._internal.execution import backpressure_policy as policies

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = 1  # a block has one row; this makes every row a block of its own, at once
    context._max_num_blocks_in_streaming_gen_buffer = blocks_ahead
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    if (most := stock_bytes(ray.nodes(), task_args.get("label_selector"))) is not None:
        enabled = [*policies.ENABLED_BACKPRESSURE_POLICIES, BoundedStock(most, blocks_ahead)]
        context.set_config(policies.ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, enabled)
    with ray.data.DataContext.current(context):
        blocks = [pa.table(dict(zip(("segment", "batch", "count"), task.T, strict=True))) for task in tasks]
        return ray.data.from_blocks(blocks).map_batches(  # from_arrow would ask tasks what it knows
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
    lines = [line for line in str(inner).splitlines() if line.strip() and not line.startswith(RAYS_ADVICE)] or [""]
    return TrainingError(f"preprocessing failed: {type(inner).__name__}: {lines[-1].strip()}")
