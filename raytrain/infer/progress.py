"""How a prediction stands. Light to import, for whoever shows it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from raytrain.errors import ClusterError, PredictionError, named
from raytrain.infer.desk import Work
from raytrain.infer.prepare import PreparedBlock
from raytrain.infer.stream import Answered, Begun
from raytrain.infer.streams.places import StreamPlace

START_TRIES = 3  # of a stream that dies before it is ready
GO_ON = "run it again to go on"


@dataclass
class StreamSeen:
    """A stream as the driver knows it.

    Attributes:
        actor: None where it is gone for good.
        begun: None until it has been ready once.
        last: what it has told last.
        samples: that it has predicted, in all of its lives.
        tries: to start it, since it was ready last; `why` they came to nothing.
        deaths: after it was ready.
    """

    place: StreamPlace
    actor: Any = None
    begun: Begun | None = None
    last: Answered | None = None
    samples: int = 0
    tries: int = 0
    deaths: int = 0
    why: Exception | None = None

    @property
    def busy_share(self) -> float | None:
        """Of its time, in which it computed; the rest it waited for blocks."""
        return None if self.last is None else min(self.last.busy_s / max(self.last.alive_s, 1e-9), 1.0)


def check_streams(streams: Sequence[StreamSeen], num_sizes: int) -> None:
    """Whether some stream is there, or on its way, for each size class.

    Raises:
        ClusterError: no host is left that predicts.
        PredictionError: no stream could be started.
    """
    taken = {size for each in streams if each.actor is not None for size in each.place.takes}
    if taken >= {*range(num_sizes)}:
        return
    failed = next((each for each in streams if each.tries >= START_TRIES), None)
    if failed is not None:
        raise PredictionError(
            f"a stream on {failed.place.host.name} has died {failed.tries} times before it was ready: "
            f"{named(failed.why or Exception())[:300]}"
        )
    raise ClusterError(f"no host is left that predicts; {GO_ON}")


@dataclass
class Progress:
    """
    Attributes:
        total: samples of the data; `before` of them an earlier run had finished, `errors_before` as errors.
        stage_wall_s, stage_cpu_s: of the tasks that prepare, by stage, over `prepared` samples.
        prepared_at: samples by Ray node id.
        lost: times that work was done again, because something died.
        first_at, last_at: time.monotonic() at which the first stream was ready, and the last piece came.
    """

    total: int
    before: int = 0
    errors_before: int = 0
    prepared: int = 0
    stage_wall_s: Counter[str] = field(default_factory=Counter)
    stage_cpu_s: Counter[str] = field(default_factory=Counter)
    prepared_at: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    first_at: float | None = None
    last_at: float | None = None
    torch_imported: bool = False
    streams: Sequence[StreamSeen] = ()
    _accounts: dict[tuple[Work, int], tuple[int, int]] = field(default_factory=dict)
    _done: int = 0
    _errors: int = 0

    @property
    def done(self) -> int:
        """Samples that this run has predicted, or told why not; each once, whatever was done again."""
        return self._done

    @property
    def errors(self) -> int:
        """Of them, those that it could not predict."""
        return self._errors

    @property
    def samples_per_s(self) -> float | None:
        """Since the first stream was ready."""
        if self.first_at is None or self.last_at is None or self.last_at <= self.first_at:
            return None
        return self.done / (self.last_at - self.first_at)

    def was_prepared(self, told: PreparedBlock) -> None:
        self.stage_wall_s.update(told.wall_s)
        self.stage_cpu_s.update(told.cpu_s)
        self.prepared += told.num_samples
        self.prepared_at[told.node] += told.num_samples
        self.torch_imported |= told.torch_imported

    def note(self, work: Work, part: int, samples: int, errors: int) -> None:
        """What came of a part of some work: of a size class, or of its task under -1."""
        before = self._accounts.get((work, part), (0, 0))
        self._accounts[work, part] = samples, errors
        self._done += samples - before[0]
        self._errors += errors - before[1]
        self.last_at = time.monotonic()

    def forget(self, work: Work) -> None:
        """It is taken apart."""
        for key in [each for each in self._accounts if each[0] == work]:
            samples, errors = self._accounts.pop(key)
            self._done -= samples
            self._errors -= errors
