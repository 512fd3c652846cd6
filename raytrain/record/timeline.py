"""What is noted of a run while it goes on, pure: how it gets on, and how busy its machines are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from raytrain.record.rows import COLUMNS, Row, halved
from raytrain.record.schema import POINTS, HostLoad, HostTimeline, Progress, Utilization
from raytrain.record.status import Status

POINT_EVERY_S = 1.0


@dataclass(frozen=True)
class Machine:
    """What a sampler watches: a host, or what all emulated nodes share.

    Attributes:
        group: None for emulated nodes, which are of several.
        node_id: the Ray node to be watched from; empty for the driver's.
    """

    name: str
    group: str | None
    node_id: str


class Reading(NamedTuple):
    """How far a rank, or all of them, had come at `at` (time.time()); the rest counts from the start."""

    at: float
    samples: int
    wait_s: float
    train_s: float


class ProgressLog:
    """Turns what the feed says of the ranks into a bounded timeline of the run.

    Points are cumulative, so that two become one when the first is dropped. A rank that is started again counts from
    zero: what it said in each attempt is kept, and added up.
    """

    def __init__(self, most: int = 2 * POINTS):
        self._most, self._every_s = most, POINT_EVERY_S
        self._points: list[Reading] = []
        self._last: Reading | None = None
        self._said: dict[tuple[int, float], Reading] = {}  # by rank and when its attempt began

    @property
    def began_at(self) -> float | None:
        """time.time() at the end of the first step that is known of; None before."""
        return self._points[0].at if self._points else None

    def note(self, status: Status) -> None:
        """Take into account what the ranks have told."""
        for rank, times in status.times:
            if times.last_step_at is not None:
                reading = Reading(times.last_step_at, times.num_samples, times.wait_s, times.train_s)
                known = self._said.get((rank, times.began_at), reading)
                self._said[rank, times.began_at] = max(known, reading)
        if self._said:
            self._add(self._total())

    def _total(self) -> Reading:
        """All ranks together, at the mean of the times at which they said so: each has a clock of its own."""
        latest: dict[int, float] = {}
        for (rank, _), reading in self._said.items():
            latest[rank] = max(latest.get(rank, 0.0), reading.at)
        _, *sums = (sum(column) for column in zip(*self._said.values(), strict=True))
        return Reading(sum(latest.values()) / len(latest), *sums)

    def _add(self, total: Reading) -> None:
        self._last = total
        if self._points and total.at - self._points[-1].at < self._every_s:
            return
        self._points.append(total)
        if len(self._points) > self._most:
            self._points, self._every_s = _every_other(self._points), 2 * self._every_s

    def progress(self, started_at: float) -> Progress | None:
        """The timeline up to now; None when no step was done. Its first point counts from `started_at`."""
        if self._last is None:
            return None
        points = list(self._points)
        if len(points) > 1 and self._last.at - points[-1].at < self._every_s / 2:
            points.pop()  # too little time for a point of its own
        if not points or self._last.at > points[-1].at:
            points.append(self._last)
        while len(points) > POINTS:
            points = _every_other(points)
        parts = [_between(*pair) for pair in pairwise([Reading(started_at, 0, 0.0, 0.0), *points])]
        return Progress(
            at_s=[round(max(point.at - started_at, 0.0), 6) for point in points],
            samples_per_s=[round(rate, 3) for rate, _ in parts],
            wait_share=[round(share, 4) for _, share in parts],
        )


def _every_other(points: list[Reading]) -> list[Reading]:
    """Half of them, the last one included."""
    return points[::-1][::2][::-1]


def _between(one: Reading, other: Reading) -> tuple[float, float]:
    """Samples a second and the share of the ranks' time that went into waiting."""
    elapsed, trained = other.at - one.at, other.train_s - one.train_s
    rate = max(other.samples - one.samples, 0) / elapsed if elapsed > 0 else 0.0
    return rate, min(max((other.wait_s - one.wait_s) / trained, 0.0), 1.0) if trained > 0 else 0.0


def host_load(machine: Machine, rows: Sequence[Row], since: float | None) -> HostLoad:
    """Over the rows from `since` (time.time()) on; a maximum is that of a row."""
    rows = [row for row in rows if since is None or (row[0] or 0.0) >= since]
    busy = {}
    for number, name in enumerate(COLUMNS, start=1):
        values = [value for row in rows if (value := row[number]) is not None]
        if values:
            busy[name] = Utilization(mean=round(sum(values) / len(values), 2), max=round(max(values), 2))
    return HostLoad(host=machine.name, group=machine.group, **busy)


def host_timeline(machine: Machine, rows: Sequence[Row], started_at: float) -> HostTimeline | None:
    """At most POINTS points; None without a row. Figures that some point lacks are None altogether."""
    if not rows:
        return None
    rows = list(rows)
    while len(rows) > POINTS:
        rows = halved(rows)
    at, *columns = zip(*rows, strict=True)
    lists = {
        name: None if None in column else [round(value, 2) for value in column]
        for name, column in zip(COLUMNS, columns, strict=True)
    }
    return HostTimeline(host=machine.name, at_s=[round(max(moment - started_at, 0.0), 2) for moment in at], **lists)
