"""The desk's hands: tasks and streams of Ray, and what comes back of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from raytrain.cluster.signals import Signals
from raytrain.cluster.topology import EMULATED_GPU
from raytrain.data.placement.hosts import ASK_EVERY_S, Hosts
from raytrain.errors import ClusterError, DataError, PredictionError, RaytrainError, Stopped, named
from raytrain.infer.blocks import Block
from raytrain.infer.desk import Desk, Piece, Verdict, Work
from raytrain.infer.output.folder import Counts, OutputFolder
from raytrain.infer.output.gather import Gathering
from raytrain.infer.plan import InferencePlan
from raytrain.infer.prepare import PreparedBlock, prepare
from raytrain.infer.progress import GO_ON, START_TRIES, Progress, StreamSeen, check_streams
from raytrain.infer.stream import Stream, StreamWork
from raytrain.infer.streams.places import Places
from raytrain.ray_internals.data import cause
from raytrain.record.status import Failure

POLL_S = 0.25
TELL_AFTER_S = 30.0  # loading a model takes less
MOST_LISTED = 100  # errors
STOPPED = f"stopped; {GO_ON}"


def task_of(plan: InferencePlan, places: Places) -> tuple[Any, dict[str, Any]]:
    """The Ray task that prepares, where it may run, and what it is always given."""
    import ray

    options = {"num_cpus": 1, "num_returns": 1 + len(plan.sizes), "max_retries": 0, **places.task_args}
    given = {"work_ref": [ray.put(plan.work)], "sizes": plan.sizes, "keep": plan.keep, "rest": places.rest}
    return ray.remote(prepare).options(**options), given


def got(reference: Any) -> Any:
    """What there is, or the exception by which Ray tells that a process, a host or an object is gone.

    Raises:
        RaytrainError: of the task itself.
    """
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        inner = cause(error)
        if isinstance(inner, RaytrainError):
            raise type(inner)(*inner.args) from None
        if isinstance(inner, ray.exceptions.RayError) and not isinstance(inner, ray.exceptions.RayTaskError):
            return inner  # what it was given is lost
        raise PredictionError(f"prediction failed: {named(inner)[:300]}") from None
    except ray.exceptions.RayError as error:
        return error


class Dispatch:
    """
    Args:
        work: for the streams.
        sample_bytes: of a ready sample.
        prepare: the task that prepares, and what it is always given.
        done: shards that an earlier run has finished.
        watch: called with how the run stands, at most four times a second, and with what a stream could not do.

    Attributes:
        listed: the first errors.
    """

    def __init__(
        self,
        plan: InferencePlan,
        places: Places,
        work: StreamWork,
        sample_bytes: float,
        prepare: tuple[Any, dict[str, Any]],
        output: OutputFolder,
        done: Mapping[int, Counts],
        watch: Callable[[str | Progress], None],
    ):
        import ray

        inference = plan.job.inference
        self._plan, self._places, self._output, self._watch = plan, places, output, watch
        self._blocks: Sequence[Block] = plan.blocks(done, sample_bytes, max(len(places.streams), places.slots))
        self._desk = Desk(
            self._blocks,
            slots=places.slots,
            queued=places.queued,
            in_flight=inference.in_flight,
            max_failures=inference.max_failures,
        )
        self._gathering = Gathering(self._blocks, plan.shards)
        self._counts = dict(done)
        before = sum(each.rows + each.errors for each in done.values())
        self._streams = [StreamSeen(place) for place in places.streams]
        failed = sum(each.errors for each in done.values())
        self.progress = Progress(plan.num_samples, before, failed, streams=self._streams)
        self._preparing: dict[Any, tuple[Work, list[Any]]] = {}
        self._pieces: dict[Work, dict[int, Any]] = {}
        self._predicting: dict[Any, tuple[int, Piece]] = {}
        self._starting: dict[Any, int] = {}
        self._written: list[tuple[int, Counts, Future[None]]] = []
        self._problem: BaseException | None = None
        self._writer = ThreadPoolExecutor(1, "raytrain-writer")
        self._work_ref = ray.put(work)
        self._prepare, self._given = prepare
        self._hosts = Hosts(places.groups, ray.nodes) if "fallback_strategy" not in places.task_args else None
        self._alive_at = 0.0
        self._waits_since: float | None = time.monotonic()
        self.listed: list[str] = []

    @property
    def counts(self) -> dict[int, Counts]:
        """Of the shards that are done."""
        return self._counts

    def run(self, heard: Signals) -> None:
        """To the end, or until a signal has come.

        Raises:
            RaytrainError: what went wrong; what was finished is kept.
        """
        for number in range(len(self._streams) if self._blocks else 0):
            self._start(number)
        told_at = 0.0
        try:
            while not self._desk.is_done:
                if heard.number is not None:
                    raise Stopped(STOPPED, heard.number)
                self._hand_out()
                self._check()
                self._take()
                self._write_complete()
                if time.monotonic() - told_at >= POLL_S:
                    told_at = time.monotonic()
                    self._watch(self.progress)
            self._write_complete()
        finally:
            self._writer.shutdown(wait=True)
            for each in self._streams:
                _kill(each.actor)
            self._note_written()
        self._check_written()

    # --- what is to be done ---

    def _start(self, number: int) -> None:
        import ray

        seen = self._streams[number]
        place, inference = seen.place, self._plan.job.inference
        seen.tries += 1
        options: dict[str, Any] = {
            "num_cpus": place.cpus,
            "label_selector": {"ray.io/node-id": place.host.node_id},
            "max_concurrency": inference.in_flight + 1,
            "max_restarts": 0,
        }
        if place.device == "cuda":
            options["num_gpus"] = place.gpus
        elif place.gpus:
            options["resources"] = {EMULATED_GPU: place.gpus}
        if place.variables:
            options["runtime_env"] = {"env_vars": dict(place.variables)}
        actor = ray.remote(Stream).options(**options)
        seen.actor = actor.remote(self._work_ref, place.shape, place.takes, place.device)
        self._starting[seen.actor.begin.remote(timed=seen.begun is None and seen.tries == 1)] = number

    def _hand_out(self) -> None:
        for work in self._desk.to_prepare():
            ids = self._blocks[work.block].ids
            chosen = ids[work.place : work.place + 1] if work.is_alone else ids
            told, *pieces = self._prepare.remote(np.asarray(chosen, np.int64), **self._given)
            self._preparing[told] = work, pieces
        for number, piece in self._desk.to_predict():
            reference = self._pieces[piece.work][piece.size]
            answer = self._streams[number].actor.predict.remote(reference)
            self._predicting[answer] = number, piece

    def _take(self) -> None:
        """Whatever has come, after a moment's wait where there is nothing."""
        import ray

        waited = [*self._starting, *self._predicting, *self._preparing]
        ready, _ = ray.wait(waited, num_returns=1, timeout=POLL_S)
        more, _ = ray.wait(waited, num_returns=len(waited), timeout=0)
        for reference in dict.fromkeys([*ready, *more]):
            if reference in self._starting:
                self._stream_began(reference)
            elif reference in self._predicting:
                self._answered(reference)
            elif reference in self._preparing:
                self._was_prepared(reference)

    # --- what has come ---

    def _stream_began(self, reference: Any) -> None:
        number = self._starting.pop(reference)
        seen = self._streams[number]
        begun = got(reference)
        if isinstance(begun, Exception):
            seen.why = begun
            self._restart(number)
            return
        if begun.said and seen.begun is None:
            self._watch(f"{seen.place.host.name}, stream {number}: {begun.said}")
        rate = begun.samples_per_s if seen.begun is None else seen.begun.samples_per_s
        seen.begun, seen.tries = replace(begun, samples_per_s=rate), 0
        self.progress.first_at = self.progress.first_at or time.monotonic()
        self._desk.stream_is_there(number, seen.place.takes)

    def _answered(self, reference: Any) -> None:
        import ray

        number, piece = self._predicting.pop(reference)
        found = got(reference)
        if isinstance(found, Exception):
            if isinstance(found, ray.exceptions.RayActorError):
                self._stream_died(number, found)
            elif (verdict := self._desk.not_predicted(piece)) is not None:
                self._again(piece.work, verdict, found)
            return
        told, rows = found
        failures = [each if each.where else self._located(each) for each in told.failures]
        seen = self._streams[number]
        seen.last, seen.samples = told, seen.samples + told.num_samples
        if self._desk.predicted(piece):
            pieces = self._pieces.get(piece.work, {})
            pieces.pop(piece.size, None)
            if not pieces:
                self._pieces.pop(piece.work, None)
            self._gathering.predicted(piece, rows, failures)
            self._note(piece.work, piece.size, told.num_samples, failures)

    def _located(self, failure: Failure) -> Failure:
        return replace(failure, where=self._plan.opened.train.describe(failure.id))

    def _was_prepared(self, reference: Any) -> None:
        work, pieces = self._preparing.pop(reference)
        told = got(reference)
        if isinstance(told, Exception):
            for piece in pieces:
                got(piece)  # else Ray complains of an error that nobody has looked at
            if (verdict := self._desk.not_prepared(work)) is not None:
                self._again(work, verdict, told)
            return
        assert isinstance(told, PreparedBlock)
        self.progress.was_prepared(told)
        left = self._desk.prepared(work, (size for size, count in enumerate(told.counts) if count))
        if left is not None:
            self._pieces[work] = {size: pieces[size] for size in left}
            self._gathering.prepared(work, told.kept, told.failures)
            self._note(work, -1, len(told.failures), told.failures)

    def _stream_died(self, number: int, why: Exception) -> None:
        seen = self._streams[number]
        seen.deaths += 1
        for reference in [each for each, (other, _) in self._predicting.items() if other == number]:
            del self._predicting[reference]
        for work, verdict in self._desk.stream_is_gone(number):
            self._again(work, verdict, why)
        self._restart(number)

    def _restart(self, number: int) -> None:
        seen = self._streams[number]
        _kill(seen.actor)
        seen.actor = None
        if seen.tries < START_TRIES and seen.place.host.node_id in _living():
            self._start(number)

    def _again(self, work: Work, verdict: Verdict, why: Exception) -> None:
        self.progress.lost += 1
        self._pieces.pop(work, None)
        if verdict == "apart":
            self._gathering.forget(work)
            self.progress.forget(work)
        elif verdict == "given up":
            index = int(self._blocks[work.block].ids[work.place])
            where = self._plan.opened.train.describe(index)
            failure = Failure(index, where, f"its process died each time: {named(why)[:200]}", "process")
            self._gathering.given_up(work, failure)
            self._note(work, -1, 1, [failure])

    # --- what is seen of it ---

    def _note(self, work: Work, part: int, samples: int, failures: Sequence[Failure]) -> None:
        """
        Raises:
            DataError: too many samples have failed.
        """
        self.progress.note(work, part, samples, len(failures))
        self.listed += [f"{each.where}: {each.reason}" for each in failures if len(self.listed) < MOST_LISTED]
        if failures:
            self._check_share(failures)

    def _check_share(self, failures: Sequence[Failure]) -> None:
        share, total = self._plan.job.data.max_corrupt_share, self._plan.num_samples
        errors = self.progress.errors_before + self.progress.errors
        if errors > (max(share * total, 1) if share else 0):
            last = failures[-1]
            raise DataError(
                f"{errors:,} of {total:,} samples could not be predicted, which is more than "
                f"data.max_corrupt_share={share:g} allows; the last is {last.where}: {last.reason}"
            )

    def _check(self) -> None:
        """
        Raises:
            ClusterError: no host is left that prepares, or that predicts.
            PredictionError: no stream could be started; or a shard could not be written.
        """
        self._note_written()
        self._check_written()
        self._drop_homeless()
        self._tell_of_waiting()
        if self._hosts is not None and self._places.groups and self._hosts.lost():
            raise ClusterError(f"no host of {', '.join(self._places.groups)} is left to prepare samples; {GO_ON}")
        check_streams(self._streams, len(self._plan.sizes))

    def _drop_homeless(self) -> None:
        """A stream that was started on a host of which Ray has not yet known that it is gone would wait for ever."""
        if self._starting and time.monotonic() - self._alive_at >= ASK_EVERY_S:
            self._alive_at, living = time.monotonic(), _living()
            for reference, number in [*self._starting.items()]:
                seen = self._streams[number]
                if seen.place.host.node_id not in living:
                    del self._starting[reference]
                    _kill(seen.actor)
                    seen.actor = None

    def _tell_of_waiting(self) -> None:
        """Once, where no stream has begun for a long time: on a cluster of other users too, they may have to wait."""
        if self._waits_since is None or self.progress.first_at is not None:
            return
        if time.monotonic() - self._waits_since >= TELL_AFTER_S:
            self._waits_since = None
            import ray

            free, asked = ray.available_resources(), sum(each.place.cpus for each in self._streams)
            self._watch(
                f"no stream has begun for {TELL_AFTER_S:.0f} s: they ask for {asked:g} CPUs and "
                f"{sum(each.place.gpus for each in self._streams):g} GPUs, and Ray has {free.get('CPU', 0):g} and "
                f"{free.get('GPU', 0) or free.get(EMULATED_GPU, 0):g} free now"
            )

    def _write_complete(self) -> None:
        for shard in self._desk.shards_complete():
            found = self._gathering.complete(shard)
            counts = Counts(found.rows.num_rows, len(found.failures))
            written = self._writer.submit(self._output.write, shard, found.rows, found.failures)
            self._written.append((shard, counts, written))

    def _note_written(self) -> None:
        """A shard counts once it is there."""
        done = [each for each in self._written if each[-1].done()]
        self._written = [each for each in self._written if not each[-1].done()]
        for shard, counts, written in done:
            if (problem := written.exception()) is None:
                self._counts[shard] = counts
            else:
                self._problem = self._problem or problem

    def _check_written(self) -> None:
        """
        Raises:
            PredictionError: a shard could not be.
        """
        if self._problem is not None:
            raise self._problem


def _living() -> set[str]:
    """Ray node ids."""
    import ray

    return {node["NodeID"] for node in ray.nodes() if node.get("Alive")}


def _kill(actor: Any) -> None:
    import ray

    if actor is not None:
        with contextlib.suppress(ray.exceptions.RayError, ValueError):
            ray.kill(actor, no_restart=True)
