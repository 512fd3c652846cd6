"""Preparing a block in workers that may die of it, and finding the sample that they die of."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raytrain.data.order import Split
from raytrain.data.producer import Producer
from raytrain.data.samples.block import UNCUT
from raytrain.data.worker.crumb import READING, new_file, spot_in
from raytrain.data.worker.suspects import Died, InVain, without_culprits
from raytrain.data.worker.watchdog import log_to
from raytrain.errors import DataError
from raytrain.ray_internals.data import cause
from raytrain.record.status import READ, Failure

CRUMB, LOG = "crumb", "log"
SIGNALS = {  # as faulthandler has them
    "Segmentation fault": "SIGSEGV",
    "Aborted": "SIGABRT",
    "Bus error": "SIGBUS",
    "Floating": "SIGFPE",
    "Illegal instruction": "SIGILL",
}
MEMORY_SHARE, LEAST_MEMORY_SHARE = 0.8, 0.1  # of what is free, and of all, that a trial may take
PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0
LOG_BYTES = 64 << 10
LeftOut = Mapping[Split, Mapping[int, Failure]]


@dataclass(frozen=True)
class Trial:
    """A block, or a few samples of it, to be prepared in a worker that may die.

    Attributes:
        folder: on this host, where it leaves what it was at.
        place: of the block (see Producer.block).
        ids, epochs: of the few; None for the block.
    """

    folder: str
    place: dict[str, int]
    left_out: LeftOut
    ids: np.ndarray | None = None
    epochs: np.ndarray | None = None

    def run(self, producer: Producer) -> pa.Table | None:
        """The block; None of a few."""
        for split, failures in self.left_out.items():
            producer.left_out[split].update(failures)
        producer.crumb.into(Path(self.folder, CRUMB))
        with open(Path(self.folder, LOG), "ab") as log, _bounded_memory():
            log_to(log.fileno())
            try:
                if self.ids is None or self.epochs is None:
                    return producer.block(**self.place)
                split = producer.plan.segments[self.place["segment"]].split
                producer.crumb.batch(self.place["batch"], self.place["cut"])
                producer.staged(split, self.epochs, self.ids, self.place["cut"])
            except Exception:  # which is no death
                if self.ids is None:
                    raise
            finally:
                log_to(None)
        return None


class Careful:
    """
    Args:
        attempt: has another worker of this host run a trial, and raises what Ray does when it dies of that.
    """

    def __init__(self, producer: Producer, attempt: Callable[[Trial], pa.Table | None], stage_timeout_s: float | None):
        self._producer, self._attempt, self._stage_timeout_s = producer, attempt, stage_timeout_s

    def block(self, segment: int, batch: int, count: int, cut: int = UNCUT) -> pa.Table:
        """
        Raises:
            DataError: workers die of the block, and of no sample alone.
        """
        producer, split = self._producer, self._producer.plan.segments[segment].split
        place = {"segment": segment, "batch": batch, "count": count, "cut": cut}
        samples = [producer.samples(segment, number)[1:] for number in range(batch, batch + count)]
        epochs, ids = (np.concatenate(each) for each in zip(*samples, strict=True))
        epoch_of = dict(zip(ids.tolist(), epochs.tolist(), strict=True))

        def some(few: Sequence[int]) -> Died | None:
            of = np.asarray([epoch_of.get(each, int(epochs[0])) for each in few], dtype=np.int64)
            made = self._try(split, place, np.asarray(few, dtype=np.int64), of)
            return made if isinstance(made, Died) else None

        try:
            return without_culprits(
                lambda: self._try(split, place), some, ids.tolist(), partial(self._leave_out, split), _pause
            )
        except InVain as error:
            death: Died = error.args[0]
            ends = (producer.splits[split].manifest.describe(ids[at]) for at in (0, -1))
            at = f" in `{death.stage}`" if death.stage else ""
            raise DataError(
                f"workers go on dying of the batch from {' to '.join(ends)}, the last{at} ({death.of}), and of no "
                "sample alone; is there memory for as many workers as CPUs? cluster.reserved_cpus leaves some idle"
            ) from None

    def _leave_out(self, split: Split, index: int, death: Died) -> None:
        known = self._producer.splits[split]
        where = known.manifest.describe(index)
        stage = death.stage or READ
        decodes = {each.name for each in known.stages if each.decodes}
        if death.hung:
            reason = f"`{stage}` took longer than {self._stage_timeout_s:g} s"
        else:
            reason = f"its worker died in `{stage}` ({death.of})"
        of = None if stage == READ or stage in decodes else stage
        self._producer.left_out[split][index] = Failure(index, where, reason, of, killed=True)

    def _try(
        self, split: Split, place: dict[str, int], ids: np.ndarray | None = None, epochs: np.ndarray | None = None
    ) -> Any:
        """What came of it, or how the worker died."""
        from ray.exceptions import OutOfMemoryError, WorkerCrashedError

        with tempfile.TemporaryDirectory(prefix="raytrain-") as folder:
            crumb = Path(folder, CRUMB)
            new_file(crumb)
            trial = Trial(folder, place, self._producer.left_out, ids, epochs)
            try:
                return self._attempt(trial)
            except (WorkerCrashedError, OutOfMemoryError) as error:
                told = "out of memory" if isinstance(error, OutOfMemoryError) else _cause_in(Path(folder, LOG))
            except Exception as error:  # noqa: BLE001 - Ray wraps what the trial raised
                raise cause(error) from None
            spot = spot_in(crumb)
            stages = self._producer.work_at(split, spot.cut).stages if spot.count else ()
            each = [stage for stage in stages if stage.scope != "batch"]
            found = spot.stage(each, stages[len(each) :]) if spot.at != READING else None
            name = READ if spot.at == READING else found.name if found is not None else None
            hung = spot.hung or told == HUNG
            return Died(told, spot.sample if spot.is_of_one else None, name, hung)


HUNG = "hung"


def _cause_in(log: Path) -> str:
    """What faulthandler has written of a process's end."""
    try:
        with open(log, errors="replace") as file:
            text = file.read(LOG_BYTES)
    except FileNotFoundError:
        return "killed before it had begun"
    if text.startswith("Timeout"):
        return HUNG
    return next((name for words, name in SIGNALS.items() if f"Fatal Python error: {words}" in text), "killed")


@contextmanager
def _bounded_memory() -> Iterator[None]:
    """What asks for more than the host has left gets a MemoryError, which is an error like others, where the host would
    end a process, and perhaps another one."""
    import resource

    import psutil

    memory = psutil.virtual_memory()
    most = int(max(MEMORY_SHARE * memory.available, LEAST_MEMORY_SHARE * memory.total))
    try:
        used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    except OSError:  # not Linux, whose limit this is
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    bound = used + most if hard == resource.RLIM_INFINITY else min(used + most, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (bound, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _pause(rounds: int) -> None:
    """So that whatever kills workers may pass."""
    time.sleep(min(PAUSE_S * 2**rounds, LONGEST_PAUSE_S))
