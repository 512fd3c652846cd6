"""The rank's side: references from the feed -> views of the object store -> batches on the device.

A thread keeps a few batches ahead: fetched from the object store and, when there is a GPU, copied through pinned
memory on a stream of its own. Cast and normalisation run on the device, so that the narrow type travels.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from raytrain.data.order import Split, StreamPlan
from raytrain.data.samples.block import Batch, batches_of
from raytrain.data.stages.settling import DevicePart
from raytrain.device.arrival import Arrived
from raytrain.device.batch import DeviceBatch
from raytrain.device.busy import BusySource, BusyWatch
from raytrain.device.clock import DeviceClock, DeviceStageTimer, HostClock, HostStageTimer
from raytrain.device.copier import Arriving
from raytrain.device.landing import Landing
from raytrain.device.like import Like, blank_fields
from raytrain.device.meter import RankMeter
from raytrain.errors import DataError
from raytrain.record.status import RankProgress

AHEAD = 2  # batches arriving for the loop
PULLED_AHEAD = 4  # batches that are on their way from other hosts, beside those
TAKEN_AT_ONCE = 64  # references; the batches stay in the object store until their turn
BLOCK_TIMEOUT_S = 300.0  # then the ranks begin anew: a block was lost with its host, and no host may make it again
PROGRESS_EVERY_S = 0.3
SLOW_STEP_S = 0.3


class RankIngest:
    """One rank's stream of batches.

    Args:
        feed: handle of the Feed actor.
        attempt: of the ranks, as `Feed.begin` was told.
        plan: as `Feed.begin` returned it.
        arrived: by field, what becomes of it here.
        stages: that run on the device, before that (see device.stages).
        busy: of the device, if it is a GPU and its driver tells (see device.busy).

    Attributes:
        meter: where this rank's time went.
        progress: what the feed is told for the live panel, at most every PROGRESS_EVERY_S.
        stopped: whether the run has been asked to stop; no more batches come then.
    """

    def __init__(
        self,
        feed: Any,
        attempt: str,
        rank: int,
        plan: StreamPlan,
        device: torch.device,
        arrived: Mapping[str, Arrived],
        stages: Mapping[Split, DevicePart] | None = None,
        busy: BusySource | None = None,
    ):
        self.plan, self.meter, self.device = plan, RankMeter(), device
        self.progress: RankProgress | None = None
        self.stopped = False
        self._feed, self._attempt, self._rank = feed, attempt, rank
        self._queue: queue.Queue[Arriving | Exception | str] = queue.Queue(maxsize=AHEAD)
        self._held: Arriving | Exception | str | None = None
        self._seen: dict[tuple[Split, int], dict[str, Like]] = {}  # the last batch of each split and cut
        self._clock: DeviceClock | HostClock = HostClock(self.meter)
        if device.type == "cuda":
            self._clock = DeviceClock(self.meter, None if busy is None else BusyWatch(busy))
        self._timer = DeviceStageTimer(self.meter) if device.type == "cuda" else HostStageTimer(self.meter)
        self._landing = Landing(device, arrived, stages or {}, self._timer)
        self._closed = threading.Event()
        self._told_at, self._answer = 0.0, None
        self._position, self._slow = 0, False  # batches done; `_slow` never turns back, or ranks could miss the stop
        threading.Thread(target=self._fetch, name="raytrain-ingest", daemon=True).start()

    def close(self) -> None:
        """Let go of the feed (the thread ends by itself) and finish the account."""
        self._closed.set()
        self._clock.close()
        self._timer.close()

    def segment_of(self, epoch: int, split: Split) -> int | None:
        """The number of an epoch's pass over a split, or None when the plan has none."""
        for segment in self.plan.segments:
            if (segment.epoch, segment.split) == (epoch, split):
                return segment.number
        return None

    def num_batches(self, number: int) -> int:
        """Batches that this rank gets of a segment."""
        return self.plan.segments[number].num_batches // self.plan.world_size

    def segment(self, number: int) -> Iterator[DeviceBatch]:
        """The batches of one segment of the plan; what is left of earlier ones is dropped.

        Ends early with `stopped` set when the run has been asked to stop. Raises what ended the stream.
        """
        split = self.plan.segments[number].split
        clock = self._clock if split == "train" else HostClock(RankMeter())
        clock.begin()
        for index in range(self.num_batches(number)):
            clock.waiting()
            self._tell()
            arriving = None if self.stopped else self._next(number)
            if arriving is None:
                self.stopped = True
                return
            self._landing.await_copy(arriving)
            clock.arrived()
            self.meter.received(split, arriving.header, len(arriving.key), arriving.wire_bytes)
            if (decoded := arriving.decoded) is not None:
                counts = {"on_device": decoded.on_device, "on_host": decoded.on_host}
                self.meter.decoded(split, len(arriving.key), decoded.stage_s, **counts)
            if arriving.header.failures:
                self._feed.failures.remote(split, arriving.header.failures)
            batch = self._on_device(arriving, index)
            clock.ready(arriving.copied_between)
            aside = self.meter.checkpoint_s
            began = time.monotonic()
            yield batch
            self._position += 1
            self._slow |= self._position > 1 and time.monotonic() - began > SLOW_STEP_S  # the first also warms up
            clock.done(self.meter.checkpoint_s - aside)

    def _tell(self) -> None:
        """Say now and then where this rank is, and stop where it is told to.

        Steps are slow enough to ask before each and wait for the answer: then all ranks stop after the step in flight.
        Fast steps do not wait; a single rank stops when it hears of it, several where the feed gives out no more.
        """
        import ray

        if self._answer is not None:
            ready, _ = ray.wait([self._answer], timeout=0)
            if ready:
                self._heed(ray.get(self._answer))
                self._answer = None
        now = time.monotonic()
        if self._slow and not self.stopped:
            self._heed(ray.get(self._progress(exact=True)))
        elif now - self._told_at >= PROGRESS_EVERY_S:
            self._told_at = now
            self._answer = self._progress(exact=False)

    def _progress(self, *, exact: bool) -> Any:
        told = self.progress, self._position, exact, self.meter.spent()
        return self._feed.progress.remote(self._attempt, self._rank, *told)

    def _heed(self, stop_at: int | None) -> None:
        if stop_at is not None and (self.plan.world_size == 1 or (self._slow and self._position >= stop_at)):
            self.stopped = True

    def _next(self, number: int) -> Arriving | None:
        """The next batch of segment `number`, or None when the run stops."""
        while True:
            item = self._held if self._held is not None else self._queue.get()
            self._held = None
            if isinstance(item, Exception):
                raise item
            if item == "stop":
                self._held = item
                return None
            assert isinstance(item, Arriving) and item.segment <= number, "the feed skipped a segment"
            if item.segment == number:
                return item

    def _on_device(self, arriving: Arriving, index: int) -> DeviceBatch:
        carried, ids = np.zeros_like(arriving.key), arriving.key
        split = self.plan.segments[arriving.segment].split
        if split == "train":
            carried, ids = np.divmod(arriving.key, self.plan.spec.num_train)
        stand_in = len(ids) == 0
        if arriving.fields:
            self._check_like(split, arriving, ids)
        fields = self._blank(split, arriving) if stand_in else arriving.fields  # every rank steps, whatever there was
        about = f"batch {arriving.header.batch}" + (f", first of id {ids[0]}" if len(ids) else "")
        drawn = {} if stand_in else arriving.drawn
        made = self._landing.ready(split, arriving, fields, drawn, about)
        return DeviceBatch(
            made,
            max(len(ids), 1),
            ids,
            index,
            parts=np.zeros_like(ids) if arriving.part is None else arriving.part,
            weight=0.0 if stand_in else 1.0,
            stand_in=stand_in,
            carried=carried.astype(bool),
            repeated=arriving.header.repeated,
            left_out=np.asarray(arriving.header.left_out, dtype=np.int64),
            filtered=arriving.header.filtered,
        )

    def _check_like(self, split: Split, arriving: Arriving, ids: np.ndarray) -> None:
        """Whether a batch has the fields that the one before it had.

        Raises:
            DataError: a field has come or gone, or has another type or number of axes.
        """
        now = {name: Like.of(value, arriving.forms[name]) for name, value in arriving.fields.items()}
        seen = split, arriving.header.cut
        before = self._seen.setdefault(seen, now)
        for name in {**before, **now}:
            was, told = before.get(name), now.get(name)
            if was is None or told is None or not was.agrees(told):
                where = f", first of id {ids[0]}" if len(ids) else ""
                raise DataError(
                    f"the {split} samples have changed within the run: field `{name}` was {was or 'not there'} and is "
                    f"{told or 'not there'} in batch {arriving.header.batch}{where}; every sample must have the same "
                    "fields, of the same type"
                )
        if len(ids):
            self._seen[seen] = now

    def _blank(self, split: Split, empty: Arriving) -> dict[str, Any]:
        """The fields of a batch of one blank sample, as the worker or this rank knew them from others. Sets the offsets
        and lengths of the ragged ones.

        Raises:
            DataError: nobody has seen a sample, so that none can stand in for it.
        """
        like = self._seen.get((split, empty.header.cut))
        if like is None:
            some = "; ".join(f"{failure.where} ({failure.why})" for failure in empty.header.failures[:3])
            raise DataError(
                f"no {split} sample could be prepared, neither of the first batch nor of those tried all over the data "
                f"set, so that there is nothing to train on: {some or 'the batch was empty'}; mend the files or "
                "data.stages"
            )
        ragged = [name for name, each in like.items() if each.form == "ragged"]
        empty.offsets = {name: torch.tensor([0, 1], device=self.device) for name in ragged}
        empty.lengths = {name: np.ones(1, np.int64) for name in ragged}
        blank = blank_fields(like, self.device)
        decoding = self._landing.decoding
        return {**blank, **decoding.blanks(split, blank)} if decoding.names(split) else blank

    # --- on the thread ---

    def _fetch(self) -> None:
        import ray

        try:
            if self._landing.copier is not None:
                torch.cuda.set_device(self.device)
            block, batches = None, []
            for segment, number, (reference, index) in self._references():
                if reference != block:
                    block, batches = reference, batches_of(ray.get(reference, timeout=BLOCK_TIMEOUT_S))
                self._put(self._arriving(segment, number, batches[index]))
        except Exception as error:  # noqa: BLE001 - raised again by the training thread
            self._put(error)

    def _references(self) -> Iterator[tuple[int, int, tuple[Any, int]]]:
        """What the feed gives this rank, in order; the next few blocks are on their way from other hosts meanwhile."""
        import ray

        coming: deque = deque()
        pending = self._ask()
        while not self._closed.is_set():
            while pending is not None and len(coming) < PULLED_AHEAD and not (coming and _unready(pending)):
                taken = ray.get(pending)
                if taken.error is not None:
                    raise taken.error
                coming.extend(taken.batches)
                pull(reference for _, _, (reference, _) in taken.batches)
                pending = None if taken.end or taken.stop else self._ask()
            if not coming:
                if taken.stop:
                    self._put("stop")
                return
            yield coming.popleft()

    def _ask(self) -> Any:
        return self._feed.take.remote(self._attempt, self._rank, TAKEN_AT_ONCE)

    def _put(self, item: Arriving | Exception | str) -> None:
        while not self._closed.is_set():
            try:
                return self._queue.put(item, timeout=0.5)
            except queue.Full:
                continue
        return None

    def _arriving(self, segment: int, number: int, batch: Batch) -> Arriving:
        assert (batch.header.segment, batch.header.batch) == (segment, number), "a batch was routed as another"
        split = self.plan.segments[segment].split
        return self._landing.arriving(split, batch, self.plan.spec.num_train if split == "train" else None)


def pull(references: Iterable[Any]) -> None:
    """Have objects fetched to this host, and do not wait: a later `ray.get` of each finds it here or on its way."""
    import ray

    if unique := list(dict.fromkeys(references)):  # Ray refuses duplicates
        ray.wait(unique, num_returns=len(unique), timeout=0, fetch_local=True)


def _unready(pending: Any) -> bool:
    import ray

    return not ray.wait([pending], timeout=0)[0]
