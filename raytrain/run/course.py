"""What is seen of a run while it goes on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from raytrain.cluster.environment import stop_grace_s
from raytrain.cluster.signals import Signals
from raytrain.record.rows import Row
from raytrain.record.status import Decision, Failure, Status
from raytrain.record.timeline import Machine, ProgressLog
from raytrain.run.hanging import HangWatch
from raytrain.run.load import Samplers
from raytrain.train.checkpoints import shelf
from raytrain.train.rank_hosts import RankHosts
from raytrain.train.trainer import Training

POLL_S = 0.25

Watch = Callable[["str | Status"], None]
"""Called with what is being done before the ranks begin, and then a few times a second with how the run stands."""


@dataclass(frozen=True)
class Checkpoints:
    """The furthest whole one of a run, and the best."""

    last: Path | None
    best: Path | None


@dataclass(frozen=True)
class Seen:
    """All that was, once the run has ended.

    Attributes:
        began_at: time.time() at which the training processes were started.
        status: the feed's last.
        machines: rows of each machine's timeline.
    """

    began_at: float
    status: Status
    progress: ProgressLog
    checkpoints: Checkpoints
    machines: dict[Machine, list[Row]] = field(default_factory=dict)


class Course:
    """Keeps an eye on a run.

    Args:
        folder: its checkpoints'.
        hangs: ends ranks that do nothing; None for nobody.
        hosts: looks after the ranks' hosts; None for nobody.

    Attributes:
        began_at: time.time() at which the training processes were started; None before.
    """

    def __init__(
        self,
        folder: Path,
        samplers: Samplers,
        watch: Watch,
        hangs: HangWatch | None = None,
        hosts: RankHosts | None = None,
    ):
        self.began_at: float | None = None
        self._folder, self._samplers, self._watch = folder, samplers, watch
        self._hangs, self._hosts = hangs or HangWatch(None, folder), hosts
        self._status, self._progress = Status(), ProgressLog()
        self._decisions: dict[float, Decision] = {}
        self._failures: dict[tuple[str, int], tuple[str, Failure]] = {}
        self._warnings: list[str] = []
        self._attempts_before, self._warned = 0, 0  # with earlier feeds; warnings of this one that were passed on

    @cached_property
    def checkpoints(self) -> Checkpoints:
        """Asked for when the run has ended, since their digests take time."""
        return Checkpoints(shelf.latest(self._folder), shelf.best(self._folder))

    @property
    def hung(self) -> str | None:
        """That the ranks hung, if they did, in a line."""
        return self._hangs.told

    def begin(self) -> None:
        self.began_at = time.time()

    def note(self, status: Status) -> None:
        for decision in status.decisions:
            if decision.at not in self._decisions:
                self._decisions[decision.at] = decision
                self._watch(decision.text)
        if status.feed != self._status.feed:
            self._attempts_before, self._warned = self._status.attempts, 0
        for text in status.warnings[self._warned :]:
            self._tell(text)
        self._warned = len(status.warnings)
        self._failures |= {(split, failure.id): (split, failure) for split, failure in status.failures}
        status = replace(  # with what a feed that was lost had told
            status,
            attempts=self._attempts_before + status.attempts,
            decisions=list(self._decisions.values()),
            failures=list(self._failures.values()),
        )
        if status.attempts > max(self._status.attempts, 1):
            self._tell(f"the ranks have begun anew from the last checkpoint (attempt {status.attempts})")
        self._status = replace(status, warnings=list(self._warnings))
        self._progress.note(self._status)
        self._watch(self._status)

    def _tell(self, text: str) -> None:
        self._watch(text)
        self._warnings.append(text)

    def wait(self, training: Training, feed: Any, heard: Signals) -> bool:
        """Until the training has ended; after a signal, ask it to stop and wait `stop_grace_s`. Whether it did.

        Raises:
            Stopped: by a second signal.
            TrainingError: there has been no place for the ranks for too long.
        """
        import ray

        deadline: float | None = None
        asked: Any = None
        while not training.ended(POLL_S):
            if heard.number is not None and deadline is None:
                feed.request_stop.remote()
                deadline = time.monotonic() + stop_grace_s()
            if deadline is not None and time.monotonic() > deadline:
                return False
            asked = asked or feed.status.remote()
            ready, _ = ray.wait([asked], timeout=0)
            if ready:
                with contextlib.suppress(ray.exceptions.RayActorError):
                    self.note(replace(ray.get(ready[0]), stopping=deadline is not None))
                asked = None
                self._look(feed)
            self._samplers.look(training_began=self._status.attempts > 0)
        return True

    def _look(self, feed: Any) -> None:
        """At the ranks and their hosts."""
        hosts, status, now_s = self._hosts, self._status, time.monotonic()
        if hosts is not None and status.attempts and not status.stopping:
            at_work = {rank: each for rank, each in status.processes.items() if rank not in status.results}
            leaving = hosts.look(at_work, now_s)
            if leaving:
                feed.leave.remote(leaving)
        if self._hangs.hangs(status, now_s, without_hosts=hosts is not None and hosts.lacking > 0):
            self._watch(f"{self._hangs.end_ranks(status)}; the ranks are ended and begin anew")

    def close(self) -> Seen:
        """What the samplers have not told yet is asked for."""
        assert self.began_at is not None, "the run has begun"
        self._samplers.collect()
        rows = {machine: list(timeline.rows) for machine, timeline in self._samplers.timelines.items()}
        return Seen(self.began_at, self._status, self._progress, self.checkpoints, rows)
