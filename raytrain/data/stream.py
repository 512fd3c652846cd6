"""The stream: everything that is prepared from a position to the end of the run.

After a short execution that shows what a batch costs, one carries the whole run (every epoch, and the validation passes
between them), so that workers stay warm and the next epoch is being prepared while this one ends.
"""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from raytrain.cluster.placement import PlacedStages
from raytrain.data.order import Split, StreamPlan
from raytrain.data.pace import Pace, batches_of_tasks, cut_blocks, deal_tasks, num_batches
from raytrain.data.placement.decider import TRIALS, Choice, Decider
from raytrain.data.placement.hosts import WAIT_S, Hosts, HostsLost
from raytrain.data.producer import StreamWork
from raytrain.data.router import Router
from raytrain.data.samples.block import UNCUT
from raytrain.data.stock import Stock, stock_bytes
from raytrain.data.worker.task import produce
from raytrain.errors import RaytrainError, TrainingError
from raytrain.ray_internals.data import Block, TaskWork, cause, run_tasks
from raytrain.record.status import Decision, Failure, Spent

TASKS_A_LEG = 16_384  # of one Ray Data execution; a task costs the executor about 0.3 ms to plan
TASKS_UNDECIDED = 16  # a CPU, of the leg that the first decision is likely to break off
FIRST_BLOCKS = 2  # a task of the first, short leg, which shows what a batch costs
ABANDON_TIMEOUT_S = 10.0
LEG_TRIES = 3
LOST_WITHIN_S = 15.0  # after a task has failed, its host may be found to be gone
Told = Callable[[], Mapping[int, Spent]]
"""What the ranks have told, by rank; asked for with the lock held."""
RAYS_ADVICE = ("Failed to ", "To change retry attempts", "This looks like an AWS S3 permissions error")


@dataclass(frozen=True)
class FeedOptions:
    """How the feed runs the CPU stages.

    Attributes:
        slots: CPUs that run them.
        task_args: Ray task options that say where (see cluster.placement).
        batches_per_task: None to choose.
        ready_per_rank: batches kept ready for each rank beside what Ray Data buffers.
        groups: whose hosts they are for (see cluster.placement); none for every host.
        choice: where else the stages may run, in place of that; None where it is settled.
        max_corrupt_share: of a split's samples that may fail (see `most_corrupt`).
        public_ray: through Ray's public API alone, which is slower.
        stage_timeout_s: that a stage, or reading, may be at one sample; None for as long as it likes.
    """

    slots: int
    task_args: dict[str, Any]
    batches_per_task: int | None
    max_corrupt_share: float
    ready_per_rank: int = 2
    public_ray: bool = False
    groups: tuple[str, ...] = ()
    choice: Choice | None = None
    stage_timeout_s: float | None = None


def most_corrupt(share: float, num_samples: int) -> int:
    """Samples that may fail: a share of them, and at least one where the share is not 0, since one bad file of a small
    data set is as little a reason to stop as a few of a large one."""
    return max(int(share * num_samples + 1e-9), int(share > 0))  # 0.29 * 100 is a little less than 29


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
        told: Told = dict,
        decided: Callable[[Decision], None] = lambda decision: None,
        warn: Callable[[str], None] = lambda text: None,
        killers: Sequence[tuple[Split, Failure]] = (),
    ):
        self.plan, self.router = plan, Router(plan)
        self.taken = [0] * plan.world_size
        self.error: Exception | None = None
        self.abandoned = False
        self.first_ready_at: float | None = None
        self._costs: dict[int, tuple[float, float]] = {}  # seconds and bytes of a batch, by cut
        self._told, self._warn = told, warn
        self._awaited: Hosts | None = None  # through all executions
        self._placed_anew = False  # while an execution was under way
        choice = options.choice
        self._decider = None if choice is None else Decider(choice, decided)
        self._pace = Pace()
        self._left_out: dict[Split, dict[int, Failure]] = {}
        self._knows_more = False  # than the tasks under way
        self.leave_out(killers)
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
            places, first, work_ref = self.plan.places(), True, None
            while len(places) and not self.abandoned:
                if work_ref is None or self._knows_more:
                    work_ref = ray.put(self._work())
                tasks, taken = self._leg(places, first)
                left = self._run_whole_leg(tasks, work_ref)
                places, first = np.concatenate([batches_of_tasks(left), places[taken:]]), False
        except Exception as error:  # noqa: BLE001 - handed to whoever takes next, and from there to the user
            with self._changed:
                self.error = _cause(error)
                self._changed.notify_all()

    def _work(self) -> StreamWork:
        splits, options = self._splits_pickle, self._options
        with self._changed:
            left_out, self._knows_more = {split: dict(each) for split, each in self._left_out.items()}, False
        return StreamWork(
            self.plan,
            splits if isinstance(splits, bytes) else splits.get(),
            options.stage_timeout_s,
            left_out,
            options.public_ray,
        )

    def leave_out(self, killers: Iterable[tuple[Split, Failure]]) -> None:
        """Do not try these samples again: workers have died of them. An execution under way that has them once more is
        broken off, so that the next one knows; with the lock held."""
        for split, failure in killers:
            if failure.id not in self._left_out.setdefault(split, {}):
                self._left_out[split][failure.id] = failure
                self._knows_more |= any(part.split == split for part in self.plan.segments[self.router.open + 1 :])

    def _leg(self, places: np.ndarray, first: bool) -> tuple[list[np.ndarray], int]:
        """The tasks of the next Ray Data execution, and how many batches they hold; settles the pace."""
        decider, fixed = self._decider, self._options.batches_per_task
        slots = self._placed.slots
        first = first or not self._costs  # as nothing came of the first
        if first and (fixed is None or decider is not None):  # what comes next depends on what these cost
            most = FIRST_BLOCKS * slots
            if decider is not None:
                most = max(most, 2 * TRIALS * self.plan.world_size)
            blocks = self._cut(cut_blocks(places[:most], 1), first)
            return [blocks[number::slots] for number in range(min(slots, len(blocks)))], len(blocks)
        pace = self._pace = Pace(1, fixed, fixed) if fixed else Pace.of(*self._cost)
        group = min(pace.batches_per_block, max(len(places) // (4 * slots), 1))  # so that no CPU is left without
        tasks = TASKS_A_LEG if decider is None or decider.has_decided else TASKS_UNDECIDED * slots
        # where every batch waits for the one before it, a slow host's task holds up the others' for as long as it lasts
        longest = pace.least_blocks if self.plan.spec.is_global else pace.blocks_per_task
        blocks = self._cut(cut_blocks(places, group)[: tasks * longest], first)
        return deal_tasks(blocks, slots, longest, pace.least_blocks), int(blocks[:, 2].sum())

    def _cut(self, blocks: np.ndarray, first: bool) -> np.ndarray:
        """With a column that says how many stages the workers run of each."""
        if self._decider is None:
            cuts = np.full(len(blocks), UNCUT)
        else:
            splits = [self.plan.segments[segment].split for segment in blocks[:, 0].tolist()]
            cuts = self._decider.cuts(splits, self.plan.world_size, trial=first)
        return np.column_stack([blocks, cuts])

    @property
    def _placed(self) -> PlacedStages:
        if self._decider is not None:
            return self._decider.placed
        options = self._options
        return PlacedStages(options.task_args, options.slots, options.groups)

    @property
    def _cost(self) -> tuple[float, float]:
        """Seconds and bytes of a batch, as they are cut now."""
        if self._decider is None:
            return self._costs.get(UNCUT, (float("inf"), 0.0))
        placing = self._decider.placing
        of_cut, of_other = (self._costs.get(cut) for cut in (placing.cut, placing.other))
        dearest = max(self._costs.values(), default=(float("inf"), 0.0))
        (cut_s, cut_bytes), (other_s, other_bytes) = of_cut or dearest, of_other or of_cut or dearest
        share = placing.share
        return (1 - share) * cut_s + share * other_s, (1 - share) * cut_bytes + share * other_bytes

    def join(self) -> None:
        """Wait until the thread has let go of its Ray Data execution."""
        self._thread.join(ABANDON_TIMEOUT_S)

    def _look(self) -> bool:
        """Whether the stages are to run elsewhere, or to know what to leave out, at once; with the lock held."""
        return self._knows_more or self._decider is not None and self._decider.look(self._told(), time.monotonic())

    def _run_whole_leg(self, tasks: list[np.ndarray], work_ref: Any) -> list[np.ndarray]:
        """Run tasks, and again what went missing: a task that Ray cancels ends early and is not reported as failed.
        Returns those that are to be cut anew.

        (Seen when an execution is abandoned: its cancellation can hit the next task of the same worker.)
        """
        tries, self._placed_anew = 0, False
        while tasks and not self.abandoned and not self._placed_anew:
            before = num_batches(tasks)
            tasks = self._run_leg(tasks, work_ref)
            tries = tries + 1 if num_batches(tasks) == before else 0
            if tries == LEG_TRIES:
                raise TrainingError(f"Ray lost the same batches {LEG_TRIES} times; see the logs in its session folder")
        return tasks

    def _run_leg(self, tasks: list[np.ndarray], work_ref: Any) -> list[np.ndarray]:
        """One Ray Data execution. Returns what did not come, as tasks.

        It is broken off when a batch of the open segment stays away while later segments pile up: what is missing is
        then prepared first, and memory stays bounded. And when the stages are to run elsewhere, or have to, since the
        last of the CPU hosts that they were to run on is gone.
        """
        missing = [np.ones(len(task), dtype=bool) for task in tasks]
        longest = max(int(task[:, 2].sum()) for task in tasks)
        most_waiting = self.router.num_waiting + 4 * self._placed.slots * longest + 64
        blocks = [pa.table(dict(zip(("segment", "batch", "count", "cut"), task.T, strict=True))) for task in tasks]
        hosts = self._hosts()
        work = self._task_work(work_ref, hosts)
        try:
            for block in run_tasks(work, blocks, self._options.public_ray):
                segment, batch, count, cut = map(int, tasks[block.task][block.number])
                missing[block.task][block.number] = False
                self._learn(block, count, cut)
                with self._changed:
                    self.first_ready_at = self.first_ready_at or time.time()
                    for index in range(count):
                        self.router.arrive(segment, batch + index, (block.reference, index), cut)
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self.abandoned or self._has_room())
                    self._placed_anew = self._look()
                if self.abandoned or self._placed_anew or self.router.num_waiting > most_waiting:
                    break
        except Exception as error:  # noqa: BLE001 - Ray has several words for a host that is gone
            if isinstance(cause(error), RaytrainError) or not _are_gone(hosts):
                raise
        rest = [task[left] for task, left in zip(tasks, missing, strict=True) if left.any()]
        if rest and hosts is not None and hosts.lost():
            if self._decider is None:
                raise HostsLost(
                    f"all hosts of {self._groups_told} are lost, no other has come for {WAIT_S:.0f} s, and "
                    "cluster.placement: cpu-groups-only lets the stages run nowhere else; go on with --resume on other "
                    "hosts, or with cluster.placement=auto"
                )
            self._decider.lose_cpu_hosts()
            self._placed_anew = True
        return rest

    @property
    def _groups_told(self) -> str:
        return " and ".join(self._placed.groups)

    def _learn(self, block: Block, count: int, cut: int) -> None:
        """What a batch costs: the cheapest seen, since a worker's first also pays for its imports."""
        before = self._costs.get(cut, (float("inf"), 0.0))
        self._costs[cut] = min(before[0], block.wall_s / count), block.num_bytes / count

    def _task_work(self, work_ref: Any, hosts: Hosts | None) -> TaskWork:
        import ray

        placed, ahead = self._placed, self._pace.blocks_ahead
        most = stock_bytes(ray.nodes(), placed.groups)
        return TaskWork(
            produce,
            {"work_ref": [work_ref]},
            lanes=placed.slots,
            task_args=placed.task_args,
            blocks_ahead=ahead,
            stock=None if most is None else Stock(most, ahead),
            lost=None if hosts is None else hosts.lost,
        )

    def _hosts(self) -> Hosts | None:
        """Those that the stages cannot do without."""
        import ray

        placed = self._placed
        if self._decider is not None:  # which can do without them after all
            return Hosts(placed.groups, ray.nodes) if self._decider.placing.host_cores == 0 else None
        if not placed.groups or "fallback_strategy" in placed.task_args:
            return None
        if self._awaited is not None:
            return self._awaited
        text = (
            f"all hosts of {self._groups_told} are lost, and cluster.placement: cpu-groups-only lets the stages run "
            f"nowhere else; waiting {WAIT_S:.0f} s for another"
        )
        self._awaited = Hosts(placed.groups, ray.nodes, WAIT_S, lambda: self._warn(text))
        return self._awaited

    def _has_room(self) -> bool:
        return min(len(queue) for queue in self.router.queues) < self._options.ready_per_rank


def _are_gone(hosts: Hosts | None) -> bool:
    """Whether none is left, which Ray may find out a little later than that a task has failed."""
    until = time.monotonic() + LOST_WITHIN_S
    while hosts is not None:
        if hosts.gone():
            return True
        if time.monotonic() >= until:
            break
        time.sleep(0.5)
    return False


def _cause(error: BaseException) -> Exception:
    """The error of ours below Ray's wrappers, or one line about the innermost."""
    inner = cause(error)
    if isinstance(inner, RaytrainError):
        return type(inner)(str(inner).splitlines()[0])  # Ray Data adds lines of its own
    lines = [line for line in str(inner).splitlines() if line.strip() and not line.startswith(RAYS_ADVICE)] or [""]
    return TrainingError(f"preprocessing failed: {type(inner).__name__}: {lines[-1].strip()}")
