"""The feed: the actor that owns the stream, hands its batches to the ranks, and stops everyone at the same step."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from raytrain.cluster.environment import collects_metrics
from raytrain.data.order import Position, Split, StreamPlan, StreamSpec
from raytrain.data.placement.hosts import HostsLost
from raytrain.data.stream import FeedOptions, Stored, Stream, most_corrupt
from raytrain.errors import DataError, TrainingError
from raytrain.ray_internals.data import prepare_tasks
from raytrain.record.status import Decision, Failure, RankProcess, RankProgress, RankResult, Spent, Status

TAKE_TIMEOUT_S = 5.0


@dataclass
class Taken:
    """An answer to a rank: batches as (segment, batch, (block, index in the block)), and whether there is more."""

    batches: list[tuple[int, int, tuple[Any, int]]] = field(default_factory=list)
    end: bool = False
    stop: bool = False
    error: Exception | None = None


class Feed:
    """The actor. Its methods are called by the driver and by every rank; each is safe to call at any time.

    Args:
        splits_pickle: dict[Split, SplitWork].
    """

    def __init__(self, spec: StreamSpec, splits_pickle: bytes | Stored, options: FeedOptions):
        # a second's import, spent while the rest of the run is still starting
        prepare_tasks(collects_metrics(), options.public_ray)
        self._spec, self._splits_pickle, self._options = spec, splits_pickle, options
        self._name = uuid.uuid4().hex
        self._changed = threading.Condition()
        self._stream: Stream | None = None
        self._attempt = ""
        self._stop_at: int | None = None
        self._stop_requested = False
        self._fatal: Exception | None = None
        self._ending: HostsLost | None = None  # why it stops, as if it had been asked to
        self._leaving = False  # it stops to begin anew
        self._failures: dict[tuple[Split, int], Failure] = {}
        self._progress: dict[int, RankProgress] = {}
        self._spent: dict[int, Spent] = {}
        self._decisions: list[Decision] = []
        self._warnings: list[str] = []
        self._positions: dict[int, tuple[int, bool]] = {}
        self._results: dict[int, RankResult] = {}
        self._processes: dict[int, RankProcess] = {}
        self._attempts = 0
        self._first_ready: float | None = None

    def begin(self, attempt: str, position: Position, world_size: int, steps_done: int) -> StreamPlan | Exception:
        """Start the stream at `position`, or adopt the running one when it is just that and untouched.

        Returns the plan, which the ranks count along with, or the error that ended an earlier attempt.
        """
        with self._changed:
            if (ended := self._fatal or self._ending) is not None:
                return ended
            plan = StreamPlan(self._spec, position, world_size, steps_done)
            running = self._stream
            if running is None or any(running.taken) or running.error or not _same_start(running.plan, plan):
                if running is not None:
                    running.abandoned = True
                    self._changed.notify_all()
                self._stream = Stream(
                    plan,
                    self._splits_pickle,
                    self._options,
                    self._changed,
                    after=running,
                    told=lambda: self._spent,
                    decided=self._decisions.append,
                    warn=self._warnings.append,
                    killers=[(split, each) for (split, _), each in self._failures.items() if each.killed],
                )
            self._attempt, self._stop_at = attempt, None
            if self._leaving:
                self._leaving = self._stop_requested = False
            self._positions.clear()
            self._spent.clear()
            self._results.clear()
            self._processes.clear()
            self._attempts += attempt != ""
            return self._stream.plan

    def take(self, attempt: str, rank: int, most: int) -> Taken:
        """Up to `most` batches for a rank; waits for the first, at most TAKE_TIMEOUT_S."""
        with self._changed:
            stream = self._stream
            if attempt != self._attempt or stream is None:
                return Taken(end=True, error=TrainingError("this rank belongs to an earlier attempt"))
            self._changed.wait_for(lambda: self._answerable(stream, rank), timeout=TAKE_TIMEOUT_S)
            self._end_softly(stream)
            if self._fatal or (stream.error and self._ending is None):
                return Taken(error=self._fatal or stream.error)
            self._decide_stop()
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

    def _answerable(self, stream: Stream, rank: int) -> bool:
        router = stream.router
        stops = self._stop_requested and (self._stop_at is None or stream.taken[rank] >= self._stop_at)
        return bool(router.queues[rank] or router.done or stream.error or self._fatal or stops)

    def _decide_stop(self) -> None:
        """After which batch all ranks stop: one that nobody has passed and everyone can reach."""
        if not self._stop_requested or self._stop_at is not None or self._stream is None:
            return
        told = [self._positions.get(rank) for rank in range(self._stream.plan.world_size)]
        if all(each is not None and each[1] for each in told):
            self._stop_at = max(position for position, _ in told) + 1  # the step in flight
        else:
            self._stop_at = max(self._stream.taken)

    def _end_softly(self, stream: Stream) -> None:
        """Where nothing more can be prepared, stop after what every rank can still reach, with a checkpoint."""
        if not isinstance(stream.error, HostsLost) or self._ending is not None:
            return
        queues = stream.router.queues
        reach = min(taken + len(queue) for taken, queue in zip(stream.taken, queues, strict=True))
        if reach >= max(stream.taken):
            self._ending, self._stop_requested, self._stop_at = stream.error, True, reach

    def failures(self, split: Split, failures: list[Failure]) -> None:
        """Count samples that could not be prepared; past the limit the run ends with an error that names the first."""
        with self._changed:
            for failure in failures:
                if failure.killed and (split, failure.id) not in self._failures:
                    self._warnings.append(f"{failure.where}: {failure.reason}; left out")
                self._failures[split, failure.id] = failure
            killers = [(split, failure) for failure in failures if failure.killed]
            if killers and self._stream is not None:
                self._stream.leave_out(killers)
            bad = [failure for (where, _), failure in self._failures.items() if where == split]
            total = self._spec.num_train if split == "train" else self._spec.num_validation
            share = self._options.max_corrupt_share
            limit = most_corrupt(share, total)
            if len(bad) > limit and self._fatal is None:
                allowed = f"data.max_corrupt_share: {share:g} allows {limit:,} of them"
                self._fatal = DataError(f"{_told(bad, total, split)}; {allowed}: {_some(bad)}")
            self._changed.notify_all()

    def fail(self, attempt: str | None, error: Exception) -> None:
        """End the run: no rank gets another batch, and a restarted one is told at once.

        An earlier attempt's last words are not heard; `attempt` is None for a rank that had not begun.
        """
        with self._changed:
            if attempt in (None, self._attempt):
                self._fatal = self._fatal or error
            self._changed.notify_all()

    def warn(self, text: str) -> None:
        """Have the user told at once."""
        with self._changed:
            self._warnings.append(text)

    def request_stop(self) -> None:
        """Every rank stops after the same step, the next that all can reach."""
        with self._changed:
            self._stop_requested, self._leaving = True, False
            self._changed.notify_all()

    def leave(self, nodes: Sequence[str]) -> None:
        """Every rank stops after the same step, and begins anew, where one is on these nodes, which are about to go."""
        with self._changed:
            here = any(process.node in nodes for process in self._processes.values())
            if here and not self._stop_requested:
                self._stop_requested = self._leaving = True
                self._changed.notify_all()

    def progress(
        self, attempt: str, rank: int, told: RankProgress | None, position: int, exact: bool, spent: Spent | None = None
    ) -> int | None:
        """Note how a rank gets on, once it has done a step, and where it stands; an earlier attempt's are not heard.

        `position` counts the batches that it has done; `exact` promises that it says so before each, and waits. The
        answer is after how many batches to stop, once a stop has been requested.
        """
        with self._changed:
            if attempt != self._attempt:
                return None  # its next `take` ends it
            if told is not None:
                self._progress[rank] = told
            if spent is not None and spent.step[0]:
                self._spent[rank] = spent
            self._positions[rank] = (position, exact)
            self._decide_stop()
            return self._stop_at

    def at_work(self, attempt: str, rank: int, process: RankProcess) -> None:
        """Note which process a rank is."""
        with self._changed:
            if attempt == self._attempt:
                self._processes[rank] = process

    def _starved(self) -> bool:
        """Whether a rank waits for a batch that is not ready; before it has told where it is, it does not."""
        stream = self._stream
        if stream is None or stream.router.done:
            return False
        done = {rank: position for rank, (position, _) in self._positions.items() if rank not in self._results}
        return any(stream.taken[rank] <= at and not stream.router.queues[rank] for rank, at in done.items())

    def finish(self, attempt: str, rank: int, result: RankResult) -> bool:
        """Note what came of a rank. Returns whether it is to begin anew, if it was stopped."""
        with self._changed:
            if attempt == self._attempt:
                self._results[rank] = result
            return self._leaving

    def _first_ready_at(self) -> float | None:
        """Of the run's first stream: what start-up ended with."""
        if self._first_ready is None and self._stream is not None:
            self._first_ready = self._stream.first_ready_at
        return self._first_ready

    def status(self) -> Status:
        """What the driver shows and, at the end, records."""
        with self._changed:
            stream = self._stream
            return Status(
                progress=dict(self._progress),
                results=dict(self._results),
                num_ready=stream.num_ready if stream else 0,
                first_ready_at=self._first_ready_at(),
                attempts=self._attempts,
                failures=[(split, failure) for (split, _), failure in self._failures.items()],
                fatal=self._fatal or self._ending,
                decisions=list(self._decisions),
                positions={rank: position for rank, (position, _) in self._positions.items()},
                warnings=list(self._warnings),
                processes=dict(self._processes),
                starved=self._starved(),
                feed=self._name,
            )


def _told(bad: list[Failure], total: int, split: Split) -> str:
    """What went wrong: one stage, where each failed there and in the same way, else the samples."""
    count = f"{len(bad)} of {total:,} {split} samples ({len(bad) / total:.2%})"
    stage, reason = bad[0].stage, bad[0].reason
    if stage is None or any((failure.stage, failure.reason) != (stage, reason) for failure in bad):
        return f"{count} could not be prepared"
    return f"the stage `{stage}` failed on {count}, always with {reason}; mend it, or what comes before it"


def _some(bad: list[Failure]) -> str:
    return "; ".join(f"{failure.where} ({failure.why})" for failure in bad[:3]) + ("; …" if len(bad) > 3 else "")


def _same_start(one: StreamPlan, other: StreamPlan) -> bool:
    same = (one.world_size, one.total_steps) == (other.world_size, other.total_steps)
    return same and one.position.is_same(other.position)
