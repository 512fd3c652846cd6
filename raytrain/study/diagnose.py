"""What holds a job up: short runs of a job that differ in what they leave out.

    preprocessing alone, on one core and on all    plain processes, no Ray
    accelerator alone                              a run whose batches come again and again from the device's own
                                                   memory, then through the stages that could run there as well
    everything                                     the run as it is, those stages on CPUs

What each can do says what the whole could do; what the whole does says what putting them together costs.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from raytrain.cluster import hardware
from raytrain.config.job import Job
from raytrain.config.masking import masked
from raytrain.cost.instances import Catalog
from raytrain.cost.placing import Costs, Places
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
from raytrain.data.pipeline import OpenPipeline, Pipeline
from raytrain.errors import ConfigError
from raytrain.record.schema import RunRecord, StageFigures
from raytrain.record.status import READ, Status
from raytrain.run.checks import check_size, checked
from raytrain.run.verdict import Verdict, busy_machine, who_waits, wide_spreads
from raytrain.study.alone import PARTS, Alone, AtCuts, at_cuts, preprocess
from raytrain.study.places import Seconds, Where, stage_costs, told_by_steps, where
from raytrain.study.timed_loop import WARM_AGAIN_S, WARM_UP_S, TimedLoop

SECONDS = 8.0  # of each measurement
RESIDENT_BATCHES = 4
MOST_STEPS = 20_000  # that a run is planned for
PROCESSES_START_S, RUN_STARTS_S = 3.0, 15.0  # about, for the estimate: imports, and a cluster and its ranks

Say = Callable[[str], None]


@dataclass(frozen=True)
class Findings:
    """Samples a second of the parts and of the whole, by the clock, and what the whole lacks of the ranks alone.

    Attributes:
        preprocessing_alone: one core, the others idle.
        preprocessing: all CPUs that prepare samples in the run.
        accelerator: all ranks, batches already on the device.
        together: what preprocessing and ranks can do where they share this machine's cores, else None.
        everything: the run as it is.
        wait_share: of the run as it is: its ranks' training time that they waited for data.
        verdict: who waits for whom in it, as `raytrain train` says it too.
        ranks_on_cpu: there is no accelerator; it is the ranks that are meant by it above.
        stages: what each took of the workers, all CPUs at work.
        helps: by the name of a stage, what to do where it is dear.
        warnings: of what was measured.
        slots: CPUs that prepare.
        stages_alone: what each took of one worker, the other cores idle.
        where: the stages had best run; None where none may run on the device that does not.
        device_stages: by name, seconds that a sample took in each on the device; a part of what the accelerators do.
        lost_share: what the whole lacks of what the ranks do alone.
        lost_for_cpus: of that, because the CPUs cannot prepare more: no more than the ranks were seen to wait.
        lost_for_the_rest: likewise for moving, handing over and sharing cores.
    """

    preprocessing_alone: float
    preprocessing: float
    accelerator: float
    together: float | None
    everything: float
    wait_share: float
    verdict: Verdict
    ranks_on_cpu: bool = False
    stages: tuple[StageFigures, ...] = ()
    helps: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    device_stages: Mapping[str, float] = field(default_factory=dict)
    slots: int = 0
    stages_alone: tuple[StageFigures, ...] = ()
    where: Where | None = None

    @property
    def lost_share(self) -> float:
        return max(1 - self.everything / self.accelerator, 0.0)

    @property
    def lost_for_cpus(self) -> float:
        return min(max(1 - self.preprocessing / self.accelerator, 0.0), self.lost_share, self.wait_share)

    @property
    def lost_for_the_rest(self) -> float:
        return self.lost_share - self.lost_for_cpus

    @property
    def limit(self) -> float:
        """What the parts admit."""
        return min(each for each in (self.preprocessing, self.accelerator, self.together) if each is not None)


def duration_s(seconds: float, moving: bool = False) -> float:
    """About how long a diagnosis takes: four measurements, the last two of them runs that warm up first; and where
    stages may be `moving`, what they take on the device alone and beside the model."""
    moved = PROCESSES_START_S + 2 * seconds / PARTS + WARM_AGAIN_S + seconds if moving else 0.0
    return 2 * (PROCESSES_START_S + seconds) + 2 * (RUN_STARTS_S + WARM_UP_S + seconds) + moved


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
        nodes, address: as `raytrain.run.driver.run` has them.
        seconds: of each of the four measurements.

    Raises:
        RaytrainError: what went wrong in one of them; ConfigError if the job has no `data`, or neither model nor loop.
    """
    from raytrain.cluster.environment import prepare_environment

    if job.data is None or (job.model is None and job.training.loop is None):
        raise ConfigError(
            "only a job with a `data` section, and a `model` section or `training.loop`, can be diagnosed"
        )
    prepare_environment()
    pipeline = replace(checked(None, None, job), validation=None)
    opened = pipeline.open(job.seed)
    check_size(pipeline, opened.train.num_samples)
    cores = sorted(os.sched_getaffinity(0))[: hardware.usable_cpus()]
    moving = len(opened.on_device["train"].cuts) > 1
    say(
        f"this takes about {duration_s(seconds, moving):.0f} s: {seconds:g} s each of preprocessing on one core and on "
        f"all, of the ranks alone and of everything, {'of stages on the device, ' if moving else ''}and their starts"
    )
    say("1/4 preprocessing alone, on one core")
    alone = preprocess(opened, cores[:1], seconds)
    say(f"2/4 preprocessing alone, on all {len(cores)} cores")
    all_cores = preprocess(opened, cores, seconds)
    cut = at_cuts(opened) if moving else None
    as_measured = on_cpus(pipeline, opened.on_device["train"].cuts[-1])
    with tempfile.TemporaryDirectory(prefix="raytrain-diagnose-") as folder:
        say("3/4 the ranks alone: batches already on the device" + (", then through stages there" if moving else ""))
        resident = _run(job, as_measured, opened, folder, nodes, address, TimedLoop(True, seconds, cut))
        say("4/4 everything" + (", every stage that may be there on CPUs" if moving else ""))
        whole = _run(job, as_measured, opened, folder, nodes, address, TimedLoop(False, seconds))
    without, resident = resident.parts, with_device_stages(resident, whole)
    findings = _findings(alone, all_cores, resident, whole, len(cores))
    findings = replace(findings, helps={stage.name: stage.helps for stage in opened.splits["train"].stages})
    profile = _profile(job, known, alone, all_cores, resident, whole, findings)
    if cut is None:
        return profile, findings
    return _with_places(profile, findings, opened, cut, resident, without, whole)


def on_cpus(pipeline: Pipeline, cut: int) -> Pipeline:
    """With so many of its stages on CPUs, whatever else a run might choose."""
    stages = [replace(each, place="cpu") if place < cut else each for place, each in enumerate(pipeline.stages)]
    return replace(pipeline, stages=tuple(stages))


def _with_places(
    profile: Profile,
    findings: Findings,
    opened: OpenPipeline,
    cut: AtCuts,
    resident: TimedRun,
    without: Sequence[float],
    whole: TimedRun,
) -> tuple[Profile, Findings]:
    """With what is known of stages that may run on the device.

    Args:
        without: seconds of a sample in a step without any stage.
    """
    part, taken, record = opened.on_device["train"], resident.moved, whole.record
    assert taken is not None
    names = [stage.name for stage in part.stages[: part.cuts[-1] - part.cuts[0]]]
    dearer = told_by_steps(taken["alone"], without, taken["parts"])
    seconds = {n: Seconds(taken["alone"][n], taken["beside"][n], taken["alone"][n] * dearer) for n in names}
    first = dict(zip(names, part.cuts, strict=False))  # the cut before each
    stages = stage_costs(
        {stage.name: stage.cpu_s_per_sample for stage in findings.stages},
        profile.cpu_s_per_sample[profile.cpu_kind].value,
        next(iter(profile.accelerator_s_per_sample)),
        seconds,
        {name: cut.wire_bytes[first[name]] for name in names},
    )
    wall_s = {stage.name: stage.wall_s_per_sample for stage in findings.stages if stage.name in names}
    rest_s = max(findings.slots / findings.preprocessing - sum(wall_s.values()), 0.0)
    costs = Costs(
        [rest_s, *(wall_s[name] for name in names)],
        [None, *(seconds[name].expected for name in names)],
        Figure.of(resident.parts).value,
    )
    found = where(
        ["", *names],
        costs,
        Places(findings.slots, 0, record.world_size),
        seconds,
        dearer=dearer,
        efficiency=min(profile.efficiency.value, 1.0),
        shared_rate=None if findings.together is None else partial(shared_cores, record),
    )
    return profile.model_copy(update={"stages": stages}), replace(findings, where=found)


@dataclass(frozen=True)
class TimedRun:
    """A run of a TimedLoop, and what that measured.

    Attributes:
        parts: seconds that a rank took for a sample.
        moved: see TimedLoop.
    """

    record: RunRecord
    parts: list[float]
    memory_bytes: float | None
    moved: dict[str, Any] | None = None


def with_device_stages(resident: TimedRun, whole: TimedRun) -> TimedRun:
    """What the ranks do alone, stages on the device included: the one batch of `resident` has them behind it."""
    staged_s = sum(whole.record.device_stage_s_per_sample.values())
    return replace(resident, parts=[part + staged_s for part in resident.parts])


def _run(
    job: Job,
    pipeline: Pipeline,
    opened: OpenPipeline,
    folder: str,
    nodes: str | None,
    address: str | None,
    loop: TimedLoop,
) -> TimedRun:
    from raytrain.run.driver import run

    per_epoch = max(opened.train.num_samples // pipeline.size, 1)
    length = {"epochs": None, "steps": RESIDENT_BATCHES} if loop.resident else {"epochs": -(-MOST_STEPS // per_epoch)}
    tree = job.model_dump(mode="json")
    tree["training"] |= {"steps": None, **length, "max_failures": 0, "checkpoint": {}}
    if tree["cluster"]["placement"] == "auto":
        tree["cluster"]["placement"] = "anywhere"  # so that what is measured does not change meanwhile
    tree |= {"run_dir": folder, "name": "resident" if loop.resident else "everything"}
    measured: list[dict[str, Any] | None] = []

    def watch(told: str | Status) -> None:
        if isinstance(told, Status) and 0 in told.results:
            measured.append(told.results[0].measured)

    job = Job.from_dict(tree)
    record = run(loop, pipeline, job, nodes=nodes, address=address, started_at=time.time(), watch=watch)
    if not measured or measured[-1] is None:
        raise ConfigError(
            f"the run was over before {WARM_UP_S + loop.seconds:g} s of it could be measured; give --seconds less"
        )
    return TimedRun(record, **measured[-1])


def _findings(alone: Alone, all_cores: Alone, resident: TimedRun, whole: TimedRun, cores: int) -> Findings:
    on_cpu = all(rank.device == "cpu" for rank in whole.record.ranks)
    measured = {
        "preprocessing on one core": Figure.of(alone.wall_s),
        "preprocessing on all": Figure.of(all_cores.wall_s),
        f"{'the ranks' if on_cpu else 'the accelerators'} alone": Figure.of(resident.parts),
        "the whole": Figure.of(whole.parts),
    }
    one_s, all_s, accelerator_s, whole_s = (figure.value for figure in measured.values())
    here = not whole.record.cluster_attached
    slots = min(whole.record.cpu_slots, cores) if here else whole.record.cpu_slots
    together = shared_cores(whole.record, all_s, accelerator_s)
    stages = all_cores.stage_figures
    busy = busy_machine(stages)
    return Findings(
        preprocessing_alone=1 / one_s,
        preprocessing=slots / all_s,
        accelerator=whole.record.world_size / accelerator_s,
        together=together if math.isfinite(together) else None,
        everything=whole.record.world_size / whole_s,
        wait_share=whole.record.totals.wait_share,
        verdict=who_waits(whole.record.totals.wait_share, whole.record.ranks, whole.record.stages),
        ranks_on_cpu=on_cpu,
        stages=tuple(stages),
        device_stages=whole.record.device_stage_s_per_sample,
        slots=slots,
        stages_alone=tuple(alone.stage_figures),
        warnings=(*wide_spreads(measured), *([busy] if busy else [])),
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
    resident: TimedRun,
    whole: TimedRun,
    findings: Findings,
) -> Profile:
    training, step = job.training, job.data.step_samples(whole.record.world_size)
    efficiency = [min(whole.record.world_size / part / findings.limit, MOST_EFFICIENT) for part in whole.parts]
    return Profile(
        name=job.name,
        job=masked(job.model_dump(mode="json", exclude_unset=True)),
        source="raytrain diagnose",
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        hardware=hardware_of(whole.record),
        cpu_s_per_sample={_cpu_kind_here(whole.record): Figure.of(all_cores.cpu_s)},
        cpu_s_per_sample_alone=Figure.of(alone.cpu_s),
        read_wait_s_per_sample=Figure.once(sum(s.wait_s_per_sample for s in findings.stages if s.name == READ)),
        accelerator_s_per_sample={gpu_of(whole.record, known): Figure.of(resident.parts)},
        wire_bytes_per_sample=Figure.of(all_cores.wire_bytes),
        read_bytes_per_sample=Figure.of(all_cores.read_bytes),
        startup_s=Figure.of([run.record.startup.first_step_s for run in (resident, whole)]),
        efficiency=Figure.of(efficiency),
        worker_memory_bytes=all_cores.memory_bytes,
        accelerator_memory_bytes=resident.memory_bytes,
        world_size=whole.record.world_size,
        num_samples=whole.record.num_train,
        epochs=epochs_of(training.epochs, training.steps, step, whole.record.num_train),
        cores_shared_with=cores_shared_with(whole.record),
    )
