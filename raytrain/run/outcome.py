"""From what a run left behind to its record."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raytrain.cluster import hardware
from raytrain.cluster.facts import ended, hosts_of, this_machine, time_of_day
from raytrain.config.masking import masked, masked_command
from raytrain.errors import RaytrainError
from raytrain.record.placements import PlacedStage, Placement
from raytrain.record.schema import (
    Corrupt,
    RunRecord,
    StageFigures,
    Startup,
    Totals,
    Unusual,
)
from raytrain.record.status import Decision, RankResult, Status
from raytrain.record.timeline import host_load, host_timeline
from raytrain.run.course import Seen
from raytrain.run.plan import RunPlan
from raytrain.run.verdict import who_waits

LISTED_FAILURES = 100


def build_record(plan: RunPlan, seen: Seen, error: RaytrainError | None, *, command: list[str]) -> RunRecord:
    """What was planned and what was seen, in the record's shape."""
    status, topology, data = seen.status, plan.topology, plan.data
    results = [status.results[rank] for rank in sorted(status.results)]
    before = data.restored.facts if data.restored else None
    stages, ranks = _stages(results), [result.figures for result in results]
    return RunRecord(
        name=plan.job.name,
        **ended(error),
        started_at=time_of_day(plan.options.started_at),
        command=masked_command(command),
        job=masked(plan.job.model_dump(mode="json")),
        versions=hardware.versions(),
        hardware=this_machine(),
        environment=plan.options.environment,
        cluster_attached=plan.cluster.attached,
        emulated_gpus=topology.emulated_gpus,
        world_size=topology.world_size,
        cpu_slots=plan.placed.slots,
        hosts=hosts_of(topology, sum((Counter(result.nodes) for result in results), Counter())),
        num_train=data.opened.train.num_samples,
        num_validation=data.opened.num_validation,
        fields={name: str(each) for name, each in data.opened.schema.items()},
        classes=list(data.task.classes),
        guarantee=data.opened.train.guarantee,
        startup=_startup(plan, seen, results),
        totals=_totals(plan.options.started_at, status, results, stages),
        ranks=ranks,
        stages=stages,
        epochs=_history(status, before.history if before else []),
        corrupt=_corrupt(status),
        torch_in_preprocessing_workers=any(result.torch_in_workers for result in results),
        resumed_from=data.resumed_from,
        warnings=list(status.warnings[:LISTED_FAILURES]),
        unusual=_unusual(status, before.counts if before else {}),
        checkpoint=_text(seen.checkpoints.last),
        best_checkpoint=_text(seen.checkpoints.best),
        progress=seen.progress.progress(plan.options.started_at),
        placements=[_placement(each, plan.options.started_at) for each in status.decisions],
        **_machines(seen, plan.options.started_at),
    )


def _placement(decision: Decision, started_at: float) -> Placement:
    names = list(decision.stages)
    return Placement(
        at_s=round(decision.at - started_at, 3),
        on_device=names[decision.cut :],
        sometimes_on_device=names[decision.other : decision.cut],
        share=decision.share,
        cpu_cores=decision.cores,
        host_cores=decision.host_cores,
        stages=[PlacedStage(name=name, cpu_s=cpu, device_s=device) for name, (cpu, device) in decision.stages.items()],
        step_s=decision.step_s,
        interference=decision.interference,
        samples_per_s=decision.rate,
        samples_per_s_before=decision.rate_before,
        text=decision.text,
    )


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _machines(seen: Seen, started_at: float) -> dict[str, list[Any]]:
    """How busy they were while the ranks trained, and all along."""
    timelines = [host_timeline(machine, rows, started_at) for machine, rows in seen.machines.items()]
    return {
        "loads": [host_load(machine, rows, seen.progress.began_at) for machine, rows in seen.machines.items()],
        "timelines": [timeline for timeline in timelines if timeline is not None],
    }


def _startup(plan: RunPlan, seen: Seen, results: Sequence[RankResult]) -> Startup:
    def since(moment: float | None) -> float | None:
        return None if moment is None else round(moment - plan.options.started_at, 3)

    def first(moments: list[float | None]) -> float | None:
        return min((moment for moment in moments if moment is not None), default=None)

    return Startup(
        manifest_s=since(plan.data.listed_at),
        cluster_s=since(plan.connected_at),
        trainer_s=since(seen.began_at),
        first_batch_ready_s=since(seen.status.first_ready_at),
        first_batch_s=since(first([result.first_batch_at for result in results])),
        first_step_s=since(first([result.first_step_at for result in results])),
    )


def _totals(started_at: float, status: Status, results: Sequence[RankResult], stages: Sequence[StageFigures]) -> Totals:
    samples = sum(result.times.num_samples for result in results)
    waited = sum(result.times.wait_s for result in results)
    trained = sum(result.times.train_s for result in results)
    share = waited / trained if trained else 0.0
    verdict = who_waits(share, [result.figures for result in results], stages)
    return Totals(
        wall_s=time.time() - started_at,
        samples=samples,
        samples_per_s=samples / (trained / len(results)) if trained else 0.0,
        wait_share=share,
        limited_by=verdict.kind,
        bottleneck=verdict.text,
        attempts=status.attempts,
    )


def _stages(results: Sequence[RankResult]) -> list[StageFigures]:
    """The ranks' figures of each stage, together; percentiles are the worst rank's."""
    merged: dict[str, StageFigures] = {}
    for own in (stage for result in results for stage in result.stages):
        sofar = merged.get(own.name)
        merged[own.name] = (
            own
            if sofar is None
            else StageFigures(
                name=own.name,
                num_samples=sofar.num_samples + own.num_samples,
                num_batches=sofar.num_batches + own.num_batches,
                cpu_s=sofar.cpu_s + own.cpu_s,
                wall_s=sofar.wall_s + own.wall_s,
                batch_wall_p90_s=max(sofar.batch_wall_p90_s, own.batch_wall_p90_s),
                batch_wall_p99_s=max(sofar.batch_wall_p99_s, own.batch_wall_p99_s),
            )
        )
    return list(merged.values())


def _corrupt(status: Status) -> Corrupt:
    return Corrupt(
        **{split: sum(where == split for where, _ in status.failures) for split in ("train", "validation")},
        listed=[f"{split}: {f.where}: {f.why}" for split, f in status.failures[:LISTED_FAILURES]],
    )


def _history(status: Status, before: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of rank 0's result; of its last progress, when the ranks did not get to results; or what was known before they
    began."""
    told = status.results.get(0) or status.progress.get(0)
    return told.history if told else before


def _unusual(status: Status, before: dict[str, int]) -> Unusual:
    """All ranks together, as far as each has said; or what was known before they began."""
    said = [each.counts for each in {**status.progress, **status.results}.values()] or [before]
    return Unusual(**{name: sum(each.get(name, 0) for each in said) for name in Unusual.model_fields})
