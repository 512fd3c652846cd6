"""Which rank gets which batch. Pure."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

from raytrain.data.order import StreamPlan


class Router:
    """Decides which rank gets which batch. Pure: no Ray, no clock, no threads.

    Within a segment, batches go round the ranks in order of arrival: the full ones first, then round by round the
    smaller ones, so that every step has the samples that the plan gives it. The ranks get batches of one kind at a
    step, as far as there are enough: they wait for each other. Batches of later segments wait until the segment before
    them has been given out. Of a plan whose steps are settled (`StreamSpec.is_global`) each batch waits for the one
    before it.
    """

    def __init__(self, plan: StreamPlan):
        self._plan = plan
        self.queues: list[deque[tuple[int, int, Any]]] = [deque() for _ in range(plan.world_size)]
        self._waiting: dict[int, list[tuple[int, Any, int]]] = {}
        self._open = 0
        self._given = 0
        self._kind: int | None = None  # of the round that is being given out
        self._skip_empty_segments()

    @property
    def done(self) -> bool:
        """Whether every batch of the plan has been given out."""
        return self._open == len(self._plan.segments)

    @property
    def open(self) -> int:
        """The segment that is being given out."""
        return self._open

    @property
    def num_waiting(self) -> int:
        """Batches that came before their turn."""
        return sum(map(len, self._waiting.values()))

    def arrive(self, segment: int, batch: int, where: Any, kind: int = 0) -> None:
        """`where` is handed on with the batch."""
        self._waiting.setdefault(segment, []).append((batch, where, kind))
        self._give()

    def _give(self) -> None:
        world_size = self._plan.world_size
        while not self.done:
            part = self._plan.segments[self._open]
            waiting = self._waiting.get(self._open, [])
            limit = part.num_alike // world_size * world_size
            if self._given >= limit:
                limit = (self._given // world_size + 1) * world_size
            if self._plan.spec.is_global:
                limit = self._given + 1
            ready = [w for w in waiting if w[0] < limit]
            if (next_one := self._next(ready, limit)) is None:
                return
            batch, where, _ = next_one
            waiting.remove(next_one)
            self.queues[self._given % world_size].append((self._open, batch, where))
            self._given += 1
            if self._given == part.num_batches:
                self._waiting.pop(self._open, None)
                self._open, self._given = self._open + 1, 0
                self._skip_empty_segments()

    def _next(self, ready: list[tuple[int, Any, int]], limit: int) -> tuple[int, Any, int] | None:
        """The first to arrive of those of the round's kind; a round begins with the first kind that fills it, if any
        does, and goes on with another before many wait."""
        if not ready:
            return None
        world_size = self._plan.world_size
        if self._given % world_size == 0:
            counts = Counter(kind for _, _, kind in ready)
            self._kind = next((kind for _, _, kind in ready if counts[kind] >= world_size), ready[0][2])
        same = next((each for each in ready if each[2] == self._kind), None)
        enough = len(ready) >= world_size or self._given + len(ready) == limit
        return same or (ready[0] if enough else None)

    def _skip_empty_segments(self) -> None:
        while not self.done and self._plan.segments[self._open].num_batches == 0:
            self._open += 1
