"""Preprocessing alone: what a job's stages take where nobody waits for what they make. Plain processes, no Ray."""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from raytrain.data.order import Position, StreamPlan, StreamSpec
from raytrain.data.pipeline import OpenPipeline
from raytrain.data.producer import Producer, StreamWork, prepare_process
from raytrain.device.meter import RankMeter, StageMeter
from raytrain.errors import DataError, one_line
from raytrain.record.schema import StageFigures

PARTS = 5  # of a measurement: its spread
CHILD_TIMEOUT_S = 120.0  # beside what a measurement takes


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
    context = multiprocessing.get_context("spawn")
    groups = opened.train.groups
    spec = StreamSpec(opened.train.num_samples, 0, opened.pipeline.batch_size, 0, epochs=1, groups=groups)
    work = StreamWork(StreamPlan(spec, Position(), 1, 0), opened.pickled_splits())
    answers, together = context.Queue(), context.Barrier(len(cores))
    children = [
        context.Process(target=_prepare, args=(work, core, number, len(cores), seconds, together, answers), daemon=True)
        for number, core in enumerate(cores)
    ]
    for child in children:
        child.start()
    found, until = Alone(), time.monotonic() + seconds + CHILD_TIMEOUT_S
    try:
        while len(found.wall_s) < PARTS * len(cores):
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
            found.add(answer)
    finally:
        for child in children:
            child.join(1.0)
            child.kill()
    return found


def _prepare(
    work: StreamWork, core: int, number: int, processes: int, seconds: float, together: Any, answers: Any
) -> None:
    """In a process of its own: every `processes`-th batch, over and over."""
    import psutil

    try:
        os.sched_setaffinity(0, {core})
        prepare_process()
        producer, total = Producer(work), work.plan.segments[0].num_batches
        producer.batch(0, number % total)  # imports, files, memory
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
        answers.put(
            error if isinstance(error, DataError) else DataError(f"preprocessing failed: {one_line(error, 300)}")
        )
        together.abort()
