"""Why the accelerators stand idle: short runs of a job that differ in what they leave out.

    preprocessing alone, on one core and on all    plain processes, no Ray
    accelerator alone                              a run whose batches come again and again from the device's own memory
    everything                                     the run as it is

What each can do says what the whole could do; what the whole does says what putting them together costs.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from raytrain.cluster import facts
from raytrain.config import Job
from raytrain.cost.instances import Catalog
from raytrain.cost.profile import (
    MOST_EFFICIENT,
    Figure,
    Profile,
    cores_shared_with,
    epochs_of,
    gpu_of,
    hardware_of,
    shared_cores,
)
from raytrain.data.order import Position, StreamPlan, StreamSpec
from raytrain.data.pipeline import OpenPipeline, Pipeline
from raytrain.data.produce import Producer, StreamWork, prepare_process
from raytrain.errors import ConfigError, DataError, one_line
from raytrain.record import RunRecord

SECONDS = 8.0  # of each measurement
WARM_UP_S = 3.0
PARTS = 5  # of a measurement: its spread
RESIDENT_BATCHES = 4
MOST_STEPS = 20_000  # that a run is planned for
CHILD_TIMEOUT_S = 120.0  # beside what a measurement takes

Say = Callable[[str], None]


@dataclass(frozen=True)
class Findings:
    """Samples a second of the parts and of the whole, and where an idle accelerator's time goes.

    Attributes:
        preprocessing_alone: one core, the others idle.
        preprocessing: all CPUs that prepare samples in the run.
        accelerator: all ranks, batches already on the device.
        together: what preprocessing and ranks can do where they share this machine's cores, else None.
        everything: the run as it is.
        idle_share: of the accelerators' time.
        idle_for_cpus: share of their time that they stand idle because the CPUs cannot prepare more.
        idle_for_the_rest: likewise for moving, handing over and sharing cores.
    """

    preprocessing_alone: float
    preprocessing: float
    accelerator: float
    together: float | None
    everything: float

    @property
    def idle_share(self) -> float:
        return max(1 - self.everything / self.accelerator, 0.0)

    @property
    def idle_for_cpus(self) -> float:
        return min(max(1 - self.preprocessing / self.accelerator, 0.0), self.idle_share)

    @property
    def idle_for_the_rest(self) -> float:
        return self.idle_share - self.idle_for_cpus

    @property
    def limit(self) -> float:
        """What the parts admit."""
        return min(each for each in (self.preprocessing, self.accelerator, self.together) if each is not None)


def diagnose(
    job: Job,
    known: Catalog,
    *,
    nodes: str | None = None,
    address: str | None = None,
    seconds: float = SECONDS,
    say: Say = lambda text: None,
) -> tuple[Profile, Findings]:
    """Measure a job's parts and its whole.

    Args:
        known: for the names of GPUs.
        nodes, address: as `raytrain.job.run` has them.
        seconds: of each of the four measurements.

    Raises:
        RaytrainError: what went wrong in one of them; ConfigError if the job has no `data` or no `model`.
    """
    from raytrain.cluster.environ import prepare_environment

    if job.data is None or job.model is None:
        raise ConfigError("only a job with a `data` and a `model` section can be diagnosed")
    prepare_environment()
    pipeline = replace(Pipeline.from_config(job.data), validation=None)
    opened = pipeline.open(job.seed)
    if pipeline.batch_size > opened.train.num_samples:
        raise ConfigError(
            f"data.batch_size={pipeline.batch_size} is larger than the training set of "
            f"{opened.train.num_samples} samples"
        )
    cores = sorted(os.sched_getaffinity(0))[: facts.usable_cpus()]
    say("1/4 preprocessing alone, on one core")
    alone = preprocess(opened, cores[:1], seconds)
    say(f"2/4 preprocessing alone, on all {len(cores)} cores")
    all_cores = preprocess(opened, cores, seconds)
    with tempfile.TemporaryDirectory(prefix="raytrain-diagnose-") as folder:
        say("3/4 accelerator alone: batches already on the device")
        resident = _run(job, pipeline, opened, folder, nodes, address, Trial(resident=True, seconds=seconds))
        say("4/4 everything")
        whole = _run(job, pipeline, opened, folder, nodes, address, Trial(resident=False, seconds=seconds))
    findings = _findings(alone, all_cores, resident, whole, len(cores))
    return _profile(job, known, alone, all_cores, resident, whole, findings), findings


@dataclass
class Alone:
    """What a sample took in PARTS parts of each process.

    Attributes:
        seconds: of a core.
        wire_bytes: of a prepared sample.
        read_bytes: from storage.
        memory_bytes: of the largest process.
    """

    seconds: list[float] = field(default_factory=list)
    wire_bytes: list[float] = field(default_factory=list)
    read_bytes: list[float] = field(default_factory=list)
    memory_bytes: float = 0.0

    def add(self, other: Alone) -> None:
        self.seconds += other.seconds
        self.wire_bytes += other.wire_bytes
        self.read_bytes += other.read_bytes
        self.memory_bytes = max(self.memory_bytes, other.memory_bytes)


def preprocess(opened: OpenPipeline, cores: list[int], seconds: float) -> Alone:
    """Prepare training batches in one process a core, each bound to its own, and deliver them nowhere.

    Raises:
        DataError: a sample cannot be read, or a process ended before its time.
    """
    context = multiprocessing.get_context("spawn")
    starts = opened.train.group_starts
    spec = StreamSpec(opened.train.num_samples, 0, opened.pipeline.batch_size, 0, epochs=1, group_starts=starts)
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
        while len(found.seconds) < PARTS * len(cores):
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
        found, at = Alone(), number
        for _ in range(PARTS):
            began, samples, wire, read = time.perf_counter(), 0, 0, 0
            while time.perf_counter() - began < seconds / PARTS or not samples:
                batch = producer.batch(0, at % total)
                samples += len(batch.key) + len(batch.header.failures)
                wire, read = wire + sum(piece.nbytes for piece in batch.pieces), read + batch.header.read_bytes
                at += processes
            found.add(Alone([(time.perf_counter() - began) / samples], [wire / samples], [read / samples]))
        found.memory_bytes = float(psutil.Process().memory_info().rss)
        answers.put(found)
    except threading.BrokenBarrierError:  # another process has said why
        pass
    except Exception as error:  # noqa: BLE001 - raised again by who waits
        answers.put(
            error if isinstance(error, DataError) else DataError(f"preprocessing failed: {one_line(error, 300)}")
        )
        together.abort()


@dataclass(frozen=True)
class Trial:
    """A training loop that runs the job's own for a while and keeps the time.

    What it measured goes into the record as an entry of `epochs`: seconds of a rank for one of its samples, by part.

    Args:
        resident: after a few batches give the same ones again, which are on the device already.
    """

    resident: bool
    seconds: float

    def __call__(self, ctx: Any) -> None:
        from raytrain.train.loop import train_loop

        real = ctx.batches
        ctx.batches = lambda split="train": self._batches(ctx, real) if split == "train" else iter(())
        train_loop(ctx)

    def _batches(self, ctx: Any, real: Callable[[str], Iterator[Any]]) -> Iterator[Any]:
        watch = _Watch(ctx, self.seconds)
        if not self.resident:
            for batch in real("train"):
                yield batch
                watch.done(len(batch.ids))
            return  # the epoch is over; the next goes on
        kept = []
        for batch in real("train"):
            kept.append(batch)
            yield batch
        while True:
            for batch in kept:
                yield batch
                watch.done(len(batch.ids))


class _Watch:
    """Ends the loop once WARM_UP_S and then PARTS parts are over, at the same step on every rank.

    What is known so far hangs on the context, since every epoch has a new generator.
    """

    def __init__(self, ctx: Any, seconds: float):
        self._ctx, self._part_s = ctx, seconds / PARTS
        if not hasattr(ctx, "trial"):
            ctx.trial = {"parts": [], "samples": 0, "began": None}

    def done(self, samples: int) -> None:
        """A batch of this rank has been trained on."""
        state, ctx = self._ctx.trial, self._ctx
        now = time.perf_counter() - ctx.checkpoint_s
        if state["began"] is None:
            state["began"] = now
            return
        state["samples"] += samples
        warm = state.get("warm", False)
        over = now - state["began"] >= (self._part_s if warm else WARM_UP_S)
        if ctx.world_size > 1:
            over = ctx.sum_over_ranks(float(over))[0] > 0
        if not over:
            return
        if ctx.device.type == "cuda":
            import torch

            torch.cuda.synchronize(ctx.device)
            now = time.perf_counter() - ctx.checkpoint_s
        if warm and state["samples"]:
            state["parts"].append((now - state["began"]) / state["samples"])
        state.update(warm=True, began=now, samples=0)
        if len(state["parts"]) == PARTS:
            self._end()

    def _end(self) -> None:
        from raytrain.train.contract import StopTraining

        ctx, found = self._ctx, {f"part {number}": value for number, value in enumerate(self._ctx.trial["parts"])}
        if ctx.device.type == "cuda":
            import torch

            found["accelerator_memory_bytes"] = float(torch.cuda.max_memory_allocated(ctx.device))
        ctx.history[:] = [{"epoch": 1.0, **found}]
        raise StopTraining


def _run(
    job: Job,
    pipeline: Pipeline,
    opened: OpenPipeline,
    folder: str,
    nodes: str | None,
    address: str | None,
    trial: Trial,
) -> RunRecord:
    from raytrain.job import run

    per_epoch = max(opened.train.num_samples // pipeline.batch_size, 1)
    length = {"epochs": None, "steps": RESIDENT_BATCHES} if trial.resident else {"epochs": -(-MOST_STEPS // per_epoch)}
    tree = job.model_dump(mode="json")
    tree["training"] |= {"steps": None, **length, "max_failures": 0, "checkpoint": {}}
    tree |= {"run_dir": folder, "name": "resident" if trial.resident else "everything"}
    record = run(trial, pipeline, Job.from_dict(tree), nodes=nodes, address=address, started_at=time.time())
    if not _parts(record):
        raise ConfigError(
            f"the run was over before {WARM_UP_S + trial.seconds:g} s of it could be measured; give --seconds less"
        )
    return record


def _parts(record: RunRecord) -> list[float]:
    entry = record.epochs[-1] if record.epochs else {}
    return [value for name, value in entry.items() if name.startswith("part ")]


def _findings(alone: Alone, all_cores: Alone, resident: RunRecord, whole: RunRecord, cores: int) -> Findings:
    cpu_s, accelerator_s = Figure.of(all_cores.seconds).value, Figure.of(_parts(resident)).value
    here = not whole.cluster_attached
    slots = min(whole.cpu_slots, cores) if here else whole.cpu_slots
    together = shared_cores(whole, cpu_s, accelerator_s)
    return Findings(
        preprocessing_alone=1 / Figure.of(alone.seconds).value,
        preprocessing=slots / cpu_s,
        accelerator=whole.world_size / accelerator_s,
        together=together if math.isfinite(together) else None,
        everything=whole.world_size / Figure.of(_parts(whole)).value,
    )


def _cpu_kind_here(record: RunRecord) -> str:
    """Of the driver's host, where preprocessing alone was measured."""
    types = [host.instance_type for host in record.hosts if host.is_head and host.instance_type and not host.emulated]
    return types[0].split(".")[1] if types else record.hardware.cpu_model


def _profile(
    job: Job,
    known: Catalog,
    alone: Alone,
    all_cores: Alone,
    resident: RunRecord,
    whole: RunRecord,
    findings: Findings,
) -> Profile:
    training, step = job.training, job.data.batch_size * whole.world_size
    efficiency = [min(whole.world_size / part / findings.limit, MOST_EFFICIENT) for part in _parts(whole)]
    return Profile(
        name=job.name,
        job=job.model_dump(mode="json", exclude_unset=True),
        source="raytrain diagnose",
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        hardware=hardware_of(whole),
        cpu_s_per_sample={_cpu_kind_here(whole): Figure.of(all_cores.seconds)},
        cpu_s_per_sample_alone=Figure.of(alone.seconds),
        accelerator_s_per_sample={gpu_of(whole, known): Figure.of(_parts(resident))},
        wire_bytes_per_sample=Figure.of(all_cores.wire_bytes),
        read_bytes_per_sample=Figure.of(all_cores.read_bytes),
        startup_s=Figure.of([run.startup.first_step_s for run in (resident, whole)]),
        efficiency=Figure.of(efficiency),
        worker_memory_bytes=all_cores.memory_bytes,
        accelerator_memory_bytes=resident.epochs[-1].get("accelerator_memory_bytes"),
        world_size=whole.world_size,
        num_samples=whole.num_train,
        epochs=epochs_of(training.epochs, training.steps, step, whole.num_train),
        cores_shared_with=cores_shared_with(whole),
    )
