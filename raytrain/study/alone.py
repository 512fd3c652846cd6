"""Preprocessing alone: what a job's stages take where nobody waits for what they make. Plain processes, no Ray."""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from raytrain.data.order import Position, StreamPlan, StreamSpec
from raytrain.data.pipeline import OpenPipeline
from raytrain.data.process import prepare_process
from raytrain.data.producer import Producer, StreamWork
from raytrain.data.samples.block import Prepared, to_table
from raytrain.data.samples.fields import Schema
from raytrain.data.stages.settling import DevicePart
from raytrain.device.meter import RankMeter, StageMeter
from raytrain.errors import DataError, one_line
from raytrain.record.schema import StageFigures

PARTS = 5  # of a measurement: its spread
CHILD_TIMEOUT_S = 120.0  # beside what a measurement takes
MOST_TRIED = 8  # batches, for one with a sample


@dataclass
class Alone:
    """What a sample took in PARTS parts of each process.

    Attributes:
        wall_s: until a process had it.
        cpu_s: CPU time of the process: it does nothing else, and some work may go on in threads of libraries.
        wire_bytes: of a prepared sample.
        read_bytes: from storage.
        memory_bytes: of the largest process.
        stages: by name, over all parts and processes.
    """

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    wire_bytes: list[float] = field(default_factory=list)
    read_bytes: list[float] = field(default_factory=list)
    memory_bytes: float = 0.0
    stages: dict[str, StageMeter] = field(default_factory=dict)

    def add(self, other: Alone) -> None:
        self.wall_s += other.wall_s
        self.cpu_s += other.cpu_s
        self.wire_bytes += other.wire_bytes
        self.read_bytes += other.read_bytes
        self.memory_bytes = max(self.memory_bytes, other.memory_bytes)
        for name, meter in other.stages.items():
            self.stages.setdefault(name, StageMeter()).add(meter)

    @property
    def stage_figures(self) -> list[StageFigures]:
        return [meter.figures(name) for name, meter in self.stages.items()]


def preprocess(opened: OpenPipeline, cores: list[int], seconds: float) -> Alone:
    """Prepare training batches in one process a core, each bound to its own, and deliver them nowhere.

    Raises:
        DataError: a sample cannot be read, or a process ended before its time.
    """
    context, work = multiprocessing.get_context("spawn"), _work(opened)
    answers, together = context.Queue(), context.Barrier(len(cores))
    children = [
        context.Process(target=_prepare, args=(work, core, number, len(cores), seconds, together, answers), daemon=True)
        for number, core in enumerate(cores)
    ]
    for child in children:
        child.start()
    found = Alone()
    for answer in _answers(children, answers, len(cores), seconds):
        found.add(answer)
    return found


def _work(opened: OpenPipeline) -> StreamWork:
    """Of one epoch for one rank."""
    groups = opened.train.groups
    spec = StreamSpec(opened.train.num_samples, 0, opened.pipeline.size, 0, epochs=1, groups=groups)
    return StreamWork(StreamPlan(spec, Position(), 1, 0), opened.pickled_splits())


def _answers(children: list[Any], answers: Any, count: int, seconds: float) -> Iterator[Any]:
    """
    Raises:
        DataError: which one of them was, or a process ended before its time.
    """
    until = time.monotonic() + seconds + CHILD_TIMEOUT_S
    try:
        while count:
            try:
                answer = answers.get(timeout=1.0)
            except queue.Empty:
                if time.monotonic() > until or any(child.exitcode for child in children):
                    raise DataError(
                        "a preprocessing process ended without an answer; is there enough memory?"
                    ) from None
                continue
            if isinstance(answer, Exception):
                raise answer
            yield answer
            count -= 1
    finally:
        for child in children:
            child.join(1.0)
            child.kill()


def _check_some(batch: Prepared) -> None:
    """
    Raises:
        DataError: none of its samples could be prepared.
    """
    if batch.header.failures and not len(batch.key):
        failed = batch.header.failures[0]
        raise DataError(f"none of {len(batch.header.failures)} samples could be prepared; {failed.where}: {failed.why}")


def _prepare(
    work: StreamWork, core: int, number: int, processes: int, seconds: float, together: Any, answers: Any
) -> None:
    """In a process of its own: every `processes`-th batch, over and over."""
    import psutil

    try:
        os.sched_setaffinity(0, {core})
        prepare_process()
        producer, total = Producer(work), work.plan.segments[0].num_batches
        _check_some(producer.batch(0, number % total))  # imports, files, memory
        together.wait(CHILD_TIMEOUT_S)
        found, at, meter = Alone(), number, RankMeter()
        for _ in range(PARTS):
            began, cpu_began, samples, wire, read = time.perf_counter(), time.process_time(), 0, 0, 0
            while time.perf_counter() - began < seconds / PARTS or not samples:
                batch = producer.batch(0, at % total)
                samples += len(batch.key) + len(batch.header.failures)
                wire, read = wire + batch.nbytes, read + batch.header.read_bytes
                meter.received("train", batch.header, len(batch.key), 0)
                at += processes
            wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
            found.add(Alone([wall_s / samples], [cpu_s / samples], [wire / samples], [read / samples]))
        found.stages = meter.stages
        found.memory_bytes = float(psutil.Process().memory_info().rss)
        answers.put(found)
    except threading.BrokenBarrierError:  # another process has said why
        pass
    except Exception as error:  # noqa: BLE001 - raised again by who waits
        answers.put(_told(error))
        together.abort()


def _told(error: Exception) -> DataError:
    return error if isinstance(error, DataError) else DataError(f"preprocessing failed: {one_line(error, 300)}")


@dataclass(frozen=True)
class AtCuts:
    """A batch as a worker makes it with more and fewer of the stages.

    Attributes:
        wire_bytes: of a sample, by cut.
        block: at the first cut, as it is sent.
        part: the stages that may run on the device.
        schema, fields, normalize: what becomes of the batch behind them.
    """

    wire_bytes: dict[int, float]
    block: pa.Table
    part: DevicePart
    schema: Schema
    fields: Mapping[str, Any]
    normalize: Any


def at_cuts(opened: OpenPipeline) -> AtCuts:
    """Prepare one training batch with every cut, in a process.

    Raises:
        DataError: a sample cannot be read, none of the first MOST_TRIED batches has one, or the process ended.
    """
    context, cuts = multiprocessing.get_context("spawn"), opened.on_device["train"].cuts
    answers = context.Queue()
    child = context.Process(target=_prepare_at, args=(_work(opened), cuts, answers), daemon=True)
    child.start()
    [(wire_bytes, block)] = _answers([child], answers, 1, 0.0)
    pipeline, part = opened.pipeline, opened.on_device["train"]
    return AtCuts(wire_bytes, block, part, opened.schema, pipeline.fields, pipeline.normalize)


def _prepare_at(work: StreamWork, cuts: Sequence[int], answers: Any) -> None:
    """In a process of its own."""
    try:
        prepare_process()
        producer, total = Producer(work), work.plan.segments[0].num_batches
        for number in range(min(total, MOST_TRIED)):
            made = {cut: producer.batch(0, number, cut) for cut in cuts}
            if all(len(each.key) for each in made.values()):
                wire_bytes = {cut: each.nbytes / len(each.key) for cut, each in made.items()}
                return answers.put((wire_bytes, to_table([made[cuts[0]]])))
        raise DataError(f"no sample of the first {min(total, MOST_TRIED)} batches could be prepared; mend the data")
    except Exception as error:  # noqa: BLE001 - raised again by who waits
        answers.put(_told(error))
