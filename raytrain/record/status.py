"""How a run stands: what its ranks tell while it goes on and when they are done. Pure, and light to import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raytrain.record.schema import RankFigures, StageFigures

READ = "read"  # among the figures of stages, what comes before them all
DRAW = "draw"  # and what the workers draw for those on the device


@dataclass(frozen=True)
class Failure:
    """A sample that could not be prepared.

    Attributes:
        stage: that failed; None where it was the decoding, so that the sample is at fault.
        killed: workers have died of it, so that it is not tried again.
    """

    id: int
    where: str
    reason: str
    stage: str | None = None
    killed: bool = False

    @property
    def why(self) -> str:
        """As it is told: the stage, where one failed, and the reason, which names it itself of a worker that died."""
        return self.reason if self.stage is None or self.killed else f"`{self.stage}`: {self.reason}"


@dataclass(frozen=True)
class RankTimes:
    """How far an attempt of a rank has come.

    Attributes:
        began_at: time.time(); tells one attempt from another.
        last_step_at: time.time() at the end of the last step; None before the first.
        wait_s, train_s: seconds of the rank's training time, and those of them in which it waited for data.
    """

    began_at: float
    last_step_at: float | None
    num_samples: int
    wait_s: float
    train_s: float


Amount = tuple[int, float]
"""Samples, and the seconds that they took together."""


@dataclass(frozen=True)
class Spent:
    """What an attempt of a rank has spent on training so far.

    Attributes:
        began_at: time.time(); tells one attempt from another.
        wait_s: waiting for data.
        step: in steps: neither waiting nor in stages on the device.
        device_stages: by name, but for the first batch of each, which warms up.
        cpu_stages: by name, seconds of workers.
        nodes: likewise, by Ray node id.
    """

    began_at: float
    wait_s: float
    step: Amount
    device_stages: Mapping[str, Amount]
    cpu_stages: Mapping[str, Amount]
    nodes: Mapping[str, Mapping[str, Amount]]


@dataclass(frozen=True)
class Decision:
    """Where the stages run from now on.

    Attributes:
        at: time.time().
        cut: stages of the training split on CPUs, of most batches; `other` of a `share` of them.
        host_cores: of the training hosts, that prepare; `cores` of the others.
        stages: by name, (seconds of a core, seconds of a device or None) for a sample.
        step_s: of a device for a sample.
        interference: the share of its rate that a device loses when all cores of its host prepare.
        rate: samples a second by these costs; `rate_before` as it was placed before.
        text: all of it in a line.
    """

    at: float
    cut: int
    other: int
    share: float
    cores: int
    host_cores: int
    stages: Mapping[str, tuple[float, float | None]]
    step_s: float
    interference: float
    rate: float
    rate_before: float
    text: str


@dataclass(frozen=True)
class RankProgress:
    """A rank in the midst of it.

    Attributes:
        epoch, step: the one that it is in, and the batches done; `epochs` and `total_steps` are the run's.
        history: figures of the last epochs that have ended.
        counts: as record.schema.Unusual has them, of this rank.
        loss: of the last batch that was looked at.
        samples_per_s: of all ranks, if they go at this one's pace; None before two looks at the clock.
    """

    epoch: int
    epochs: int
    step: int
    total_steps: int
    history: list[dict[str, Any]]
    counts: dict[str, int]
    times: RankTimes
    loss: float | None = None
    samples_per_s: float | None = None
    wait_share: float = 0.0


@dataclass(frozen=True)
class RankResult:
    """A rank that is done.

    Attributes:
        figures, stages: for the record.
        nodes: samples that came prepared, by Ray node id.
        first_batch_at, first_step_at: time.time(), if it came to that.
        history: figures of every epoch.
        measured: what the loop has put into `ctx.measured`, for whoever started the run.
    """

    figures: RankFigures
    stages: list[StageFigures]
    times: RankTimes
    nodes: dict[str, int]
    torch_in_workers: bool
    first_batch_at: float | None
    first_step_at: float | None
    history: list[dict[str, Any]]
    epochs: int
    steps: int
    counts: dict[str, int]
    measured: dict[str, Any] | None = None


@dataclass(frozen=True)
class RankProcess:
    """The process of a rank.

    Attributes:
        created_at: time.time(); tells it from a later one of the same number.
        node: Ray node id.
        stacks: file on its host that it writes its threads' stacks to when it is asked to.
    """

    pid: int
    created_at: float
    node: str
    stacks: str


@dataclass(frozen=True)
class Status:
    """What the feed knows of a run.

    Attributes:
        progress, results: by rank; a rank's result comes after its last progress, which is an earlier attempt's until
            the next has done a step.
        num_ready: batches that are ready and not yet taken.
        first_ready_at: time.time() at which the first batch was.
        attempts: how often the ranks have begun.
        failures: the samples that were left out, with their split.
        fatal: why the run cannot go on.
        decisions: where the stages were to run, one after the other.
        stopping: it has been asked to stop.
        positions: by rank, the batches of both splits that it has done in this attempt.
        warnings: what the user should know at once.
        processes: of the ranks of this attempt.
        starved: a rank waits for a batch that is not ready.
        feed: tells one feed from another that took its place; what they say begins anew with each.
    """

    progress: Mapping[int, RankProgress] = field(default_factory=dict)
    results: Mapping[int, RankResult] = field(default_factory=dict)
    num_ready: int = 0
    first_ready_at: float | None = None
    attempts: int = 0
    failures: Sequence[tuple[str, Failure]] = ()
    fatal: Exception | None = None
    decisions: Sequence[Decision] = ()
    stopping: bool = False
    positions: Mapping[int, int] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    processes: Mapping[int, RankProcess] = field(default_factory=dict)
    starved: bool = False
    feed: str = ""

    @property
    def times(self) -> list[tuple[int, RankTimes]]:
        """Of the ranks at work and of those that are done."""
        told: list[tuple[int, RankTimes]] = [(rank, each.times) for rank, each in self.progress.items()]
        return told + [(rank, each.times) for rank, each in self.results.items()]
