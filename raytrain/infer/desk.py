"""The desk: which block is prepared next, which stream gets what is ready, and what becomes of it when something dies.

A state machine without Ray and without a clock. A block is *prepared* by a CPU task, which makes a *piece* of it for
each size class that its samples are of; a stream *predicts* a piece. A block whose worker has died too often is taken
apart: each of its samples is then tried alone, so that one which kills its worker costs no other sample anything.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from raytrain.infer.blocks import Block

WHOLE = -1
ALONE_TRIES = 2  # of a sample by itself: what killed its worker once may have been the host's end

Verdict = Literal["again", "apart", "given up"]
"""Of work that failed: it is tried again, sample by sample, or, as a sample by itself, no more."""


@dataclass(frozen=True, order=True)
class Work:
    """What a task prepares: a block, or the one sample at a place of it."""

    block: int
    place: int = WHOLE

    @property
    def is_alone(self) -> bool:
        return self.place != WHOLE


@dataclass(frozen=True, order=True)
class Piece:
    """What of some work is of one size class, and is predicted at once."""

    work: Work
    size: int = 0


@dataclass
class _Stream:
    """
    Attributes:
        takes: size classes.
        has: pieces that it was given and has not answered.
    """

    takes: frozenset[int]
    has: set[Piece] = field(default_factory=set)

    @property
    def holds_one_alone(self) -> bool:
        return any(piece.work.is_alone for piece in self.has)


class Desk:
    """
    Args:
        blocks: by their numbers.
        slots: CPUs that prepare.
        queued: tasks beyond them that may wait for one, so that the next begins at once.
        in_flight: pieces that a stream may have at once.
        max_failures: tries more of a block whose worker died.
    """

    def __init__(self, blocks: Sequence[Block], *, slots: int, queued: int, in_flight: int, max_failures: int):
        self._blocks = blocks
        self._slots, self._queued, self._in_flight, self._max_failures = slots, queued, in_flight, max_failures
        self._streams: dict[int, _Stream] = {}
        self._waiting = [Work(block.number) for block in blocks]  # a heap
        self._preparing: set[Work] = set()
        self._ready: list[Piece] = []  # a heap
        self._out: dict[Piece, int] = {}
        self._left: dict[Work, set[int]] = {}  # size classes of prepared work that are not predicted yet
        self._known: dict[Work, set[int]] = {}  # those that are, for when it must be prepared once more
        self._tries: Counter[Work] = Counter()
        self._apart: set[int] = set()
        self._left_of_shard = Counter(dict.fromkeys({block.shard for block in blocks}, 0))
        for block in blocks:
            self._left_of_shard[block.shard] += len(block)
        self._complete: list[int] = []

    @property
    def is_done(self) -> bool:
        return not any(self._left_of_shard.values())

    @property
    def num_ahead(self) -> int:
        """Work that is being prepared, and pieces that no stream has yet."""
        return len(self._preparing) + len(self._ready)

    @property
    def most_ahead(self) -> int:
        """So much may be: back-pressure, so that the object store does not fill with what nobody has time for."""
        return self._slots + self._in_flight * max(len(self._streams), 1)

    def shards_complete(self) -> list[int]:
        """Those that have become so since the last call."""
        found, self._complete = self._complete, []
        return found

    # --- what to do next ---

    def to_prepare(self) -> list[Work]:
        """What is to be prepared now; it counts as being so."""
        found = []
        most = self._slots + self._queued
        while self._waiting and self.num_ahead < self.most_ahead and len(self._preparing) < most:
            work = heapq.heappop(self._waiting)
            if work.block in self._apart and not work.is_alone:
                continue
            self._preparing.add(work)
            found.append(work)
        return found

    def to_predict(self) -> list[tuple[int, Piece]]:
        """Streams and the pieces that they are to be given now: each to the least loaded of those that take its size
        class. A sample by itself goes to a stream that has nothing else, and nothing joins it there; the next one to
        become free is kept for it."""
        found, kept = [], []
        reserved: set[int] = set()
        while self._ready:
            piece = heapq.heappop(self._ready)
            number = self._least_loaded(piece.size, reserved)
            most = 1 if piece.work.is_alone else self._in_flight
            if number is None or len(self._streams[number].has) >= most:
                kept.append(piece)
                if piece.work.is_alone and number is not None:
                    reserved.add(number)
                continue
            self._streams[number].has.add(piece)
            self._out[piece] = number
            found.append((number, piece))
        self._ready = kept  # ascending, and so a heap
        return found

    def _least_loaded(self, size: int, reserved: set[int]) -> int | None:
        able = [
            (len(each.has), number)
            for number, each in self._streams.items()
            if size in each.takes and number not in reserved and not each.holds_one_alone
        ]
        return min(able)[1] if able else None

    # --- what has happened ---

    def stream_is_there(self, number: int, takes: Iterable[int]) -> None:
        """And ready for pieces of these size classes."""
        assert number not in self._streams
        self._streams[number] = _Stream(frozenset(takes))

    def stream_is_gone(self, number: int) -> list[tuple[Work, Verdict]]:
        """What it had is prepared and predicted again."""
        gone = self._streams.pop(number, None)
        pieces = sorted(gone.has) if gone is not None else []
        for piece in pieces:
            del self._out[piece]
        works = dict.fromkeys(piece.work for piece in pieces)
        return [(work, self._failed(work)) for work in works if self._counts(work)]

    def prepared(self, work: Work, sizes: Iterable[int]) -> set[int] | None:
        """Into pieces of these size classes; none where no sample could be. Returns those that are yet to be predicted,
        or None where nothing of it is wanted: its block has been taken apart since."""
        self._preparing.discard(work)
        if not self._counts(work):
            return None
        left = self._left[work] = {*sizes} - self._known.get(work, set())
        for size in sorted(left):
            piece = Piece(work, size)
            if piece not in self._out and piece not in self._ready:
                heapq.heappush(self._ready, piece)
        found = {*left}
        self._look(work)
        return found

    def not_prepared(self, work: Work) -> Verdict | None:
        """Its worker died. None where that is no matter any more."""
        self._preparing.discard(work)
        return self._failed(work) if self._counts(work) else None

    def predicted(self, piece: Piece) -> bool:
        """Whether the answer is wanted: not where its block has been taken apart since."""
        self._returned(piece)
        if not self._counts(piece.work):
            return False
        self._known.setdefault(piece.work, set()).add(piece.size)
        if piece.work in self._left:
            self._left[piece.work].discard(piece.size)
            self._look(piece.work)
        return True

    def not_predicted(self, piece: Piece) -> Verdict | None:
        """The stream lives, and what it was to predict is lost with a host, or its answer."""
        self._returned(piece)
        return self._failed(piece.work) if self._counts(piece.work) else None

    def _returned(self, piece: Piece) -> None:
        number = self._out.pop(piece, None)
        if number is not None and number in self._streams:
            self._streams[number].has.discard(piece)

    def _counts(self, work: Work) -> bool:
        """Whether it is still to be done, and in this form."""
        return work.is_alone or work.block not in self._apart

    def _failed(self, work: Work) -> Verdict:
        self._tries[work] += 1
        self._left.pop(work, None)
        if work.is_alone:
            if self._tries[work] >= ALONE_TRIES:
                self._known.pop(work, None)
                self._account(work, 1)
                return "given up"
        elif self._tries[work] > self._max_failures:
            self._take_apart(work)
            return "apart"
        self._again(work)
        return "again"

    def _again(self, work: Work) -> None:
        self._ready = [piece for piece in self._ready if piece.work != work]
        heapq.heapify(self._ready)
        if work not in self._preparing and work not in self._waiting:
            heapq.heappush(self._waiting, work)

    def _take_apart(self, work: Work) -> None:
        self._apart.add(work.block)
        self._known.pop(work, None)
        self._ready = [piece for piece in self._ready if piece.work != work]
        heapq.heapify(self._ready)
        for place in range(len(self._blocks[work.block])):
            heapq.heappush(self._waiting, Work(work.block, place))

    def _look(self, work: Work) -> None:
        """Whether all of it is predicted."""
        if not self._left[work]:
            del self._left[work]
            self._known.pop(work, None)
            self._account(work, 1 if work.is_alone else len(self._blocks[work.block]))

    def _account(self, work: Work, samples: int) -> None:
        shard = self._blocks[work.block].shard
        self._left_of_shard[shard] -= samples
        if not self._left_of_shard[shard]:
            self._complete.append(shard)
