"""The feed: one actor that runs the Ray Data pipeline and hands its batches to the ranks.

One streaming execution carries the whole run (every epoch, and the validation passes between them), so that workers
stay warm and the next epoch is being prepared while this one ends. Batches arrive in any order; the feed keeps the
segments apart, gives every rank the same number of batches of each, and stops everyone at the same step.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from raytrain.data.batch import Failure
from raytrain.data.order import Position, Split, StreamPlan, StreamSpec
from raytrain.data.produce import StreamWork, produce
from raytrain.errors import DataError, RaytrainError, TrainingError

BATCHES_A_LEG = 16_384  # of one Ray Data execution; a plan block costs the executor about 0.3 ms
MAX_BATCHES_A_TASK = 32
TAKE_TIMEOUT_S = 5.0
ABANDON_TIMEOUT_S = 10.0
LEG_TRIES = 3

logger = logging.getLogger(__name__)


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


@dataclass
class Taken:
    """An answer to a rank: batches as (segment, batch, reference), and whether there is more."""

    batches: list[tuple[int, int, Any]] = field(default_factory=list)
    end: bool = False
    stop: bool = False
    error: Exception | None = None


def task_places(plan: StreamPlan, slots: int, batches_per_task: int | None) -> list[list[np.ndarray]]:
    """Which batches each task prepares: legs of tasks, a task an int64 array (n, 2) of (segment, batch).

    Tasks that run side by side take every `slots`-th batch of a window, so that batches come out nearly in plan
    order whatever the number of hosts, and a task is still long enough (seconds) to hide its scheduling.
    """
    total = sum(segment.num_batches for segment in plan.segments)
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


class _Stream:
    """One run of the pipeline from a position to the end, on its own thread."""

    def __init__(
        self,
        plan: StreamPlan,
        splits_pickle: bytes,
        options: FeedOptions,
        changed: threading.Condition,
        after: _Stream | None = None,
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
        for _ in range(LEG_TRIES):
            tasks = self._run_leg(tasks, work_ref)
            if self.abandoned or not tasks:
                return
            logger.warning("%d batches went missing; preparing them again", sum(map(len, tasks)))
        raise TrainingError(f"Ray Data lost the same batches {LEG_TRIES} times; see its log in the Ray session folder")

    def _run_leg(self, tasks: list[np.ndarray], work_ref: Any) -> list[np.ndarray]:
        """One Ray Data execution. Returns the tasks, or ends of tasks, whose batches did not come."""
        yielded = [0] * len(tasks)
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
            if self.abandoned:
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


class Feed:
    """The actor. Its methods are called by the driver and by every rank; each is safe to call at any time."""

    def __init__(self, spec: StreamSpec, splits_pickle: bytes, options: FeedOptions):
        import ray.data  # noqa: F401 - a second, spent while the rest of the run is still starting

        self._spec, self._splits_pickle, self._options = spec, splits_pickle, options
        self._changed = threading.Condition()
        self._stream: _Stream | None = None
        self._attempt = ""
        self._stop_at: int | None = None
        self._stop_requested = False
        self._fatal: Exception | None = None
        self._failures: dict[tuple[Split, int], Failure] = {}
        self._progress: dict[int, dict[str, Any]] = {}
        self._results: dict[int, dict[str, Any]] = {}
        self._attempts = 0

    def begin(self, attempt: str, position: Position, world_size: int, steps_done: int) -> StreamPlan | Exception:
        """Start the stream at `position`, or adopt the running one when it is just that and untouched.

        Returns the plan, which the ranks count along with, or the error that ended an earlier attempt.
        """
        with self._changed:
            if self._fatal is not None:
                return self._fatal
            plan = StreamPlan(self._spec, position, world_size, steps_done)
            running = self._stream
            if running is None or any(running.taken) or running.error or not _same_start(running.plan, plan):
                if running is not None:
                    running.abandoned = True
                    self._changed.notify_all()
                self._stream = _Stream(plan, self._splits_pickle, self._options, self._changed, after=running)
            self._attempt, self._stop_at = attempt, None
            self._results.clear()
            self._attempts += attempt != ""
            return self._stream.plan

    def take(self, attempt: str, rank: int, most: int) -> Taken:
        """Up to `most` batches for a rank; waits for the first, at most TAKE_TIMEOUT_S."""
        with self._changed:
            stream = self._stream
            if attempt != self._attempt or stream is None:
                return Taken(end=True, error=TrainingError("this worker belongs to an earlier attempt"))
            self._changed.wait_for(lambda: self._answerable(stream, rank), timeout=TAKE_TIMEOUT_S)
            if self._fatal or stream.error:
                return Taken(error=self._fatal or stream.error)
            if self._stop_requested and self._stop_at is None:
                self._stop_at = max(stream.taken)  # nobody has gone further, and everyone can get there
            queue = stream.router.queues[rank]
            most = most if self._stop_at is None else min(most, self._stop_at - stream.taken[rank])
            batches = [queue.popleft() for _ in range(min(most, len(queue)))]
            stream.taken[rank] += len(batches)
            self._changed.notify_all()
            return Taken(
                batches,
                end=stream.router.done and not queue,
                stop=self._stop_at is not None and stream.taken[rank] >= self._stop_at,
            )

    def _answerable(self, stream: _Stream, rank: int) -> bool:
        router = stream.router
        return bool(router.queues[rank] or router.done or stream.error or self._fatal or self._stop_requested)

    def failures(self, split: Split, failures: list[Failure]) -> None:
        """Count samples that could not be prepared; past the limit the run ends with an error that names some."""
        with self._changed:
            for failure in failures:
                self._failures[split, failure.id] = failure
            bad = [failure for (where, _), failure in self._failures.items() if where == split]
            limit = self._options.max_corrupt[split]
            if len(bad) > limit and self._fatal is None:
                total = self._spec.num_train if split == "train" else self._spec.num_validation
                some = "; ".join(f"{failure.where} ({failure.reason})" for failure in bad[:3])
                self._fatal = DataError(
                    f"{len(bad)} of {total} {split} samples could not be prepared, more than data.max_corrupt_share "
                    f"allows ({limit}): {some}{'; …' if len(bad) > 3 else ''}"
                )
            self._changed.notify_all()

    def fail(self, error: Exception) -> None:
        """End the run: no rank gets another batch, and a restarted one is told at once."""
        with self._changed:
            self._fatal = self._fatal or error
            self._changed.notify_all()

    def request_stop(self) -> None:
        """Every rank stops after the same step, the next that all can reach."""
        with self._changed:
            self._stop_requested = True
            self._changed.notify_all()

    def progress(self, rank: int, figures: dict[str, Any]) -> bool:
        """Note a rank's figures for the live panel; the answer is whether a stop has been requested."""
        with self._changed:
            self._progress[rank] = figures
            return self._stop_requested

    def finish(self, attempt: str, rank: int, result: dict[str, Any]) -> None:
        with self._changed:
            if attempt == self._attempt:
                self._results[rank] = result

    def status(self) -> dict[str, Any]:
        """What the driver shows and, at the end, records."""
        with self._changed:
            stream = self._stream
            return {
                "progress": dict(self._progress),
                "results": dict(self._results),
                "num_ready": stream.num_ready if stream else 0,
                "first_ready_at": stream.first_ready_at if stream else None,
                "attempts": self._attempts,
                "failures": [(split, failure) for (split, _), failure in self._failures.items()],
                "fatal": self._fatal,
            }


def _same_start(one: StreamPlan, other: StreamPlan) -> bool:
    first, second = one.position, other.position
    if (one.world_size, one.total_steps, first.epoch) != (other.world_size, other.total_steps, second.epoch):
        return False
    if first.consumed is None or second.consumed is None:
        return first.consumed is second.consumed
    return bool(np.array_equal(first.consumed, second.consumed))
