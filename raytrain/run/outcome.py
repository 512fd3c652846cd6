"""From what a run left behind to its record."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from raytrain.cluster import hardware
from raytrain.errors import RaytrainError, Stopped
from raytrain.record.schema import (
    Corrupt,
    Hardware,
    HostFacts,
    RankFigures,
    RunRecord,
    StageFigures,
    Startup,
    Totals,
    Unusual,
)
from raytrain.record.timeline import host_load, host_timeline
from raytrain.run.verdict import who_waits

if TYPE_CHECKING:
    from raytrain.run.driver import Run

LISTED_FAILURES = 100


def build_record(
    this: Run, error: RaytrainError | None, *, checkpoint: str | None, best: str | None, command: list[str]
) -> RunRecord:
    """Everything the run's pieces know, in the record's shape."""
    results: dict[int, dict[str, Any]] = this.status.get("results", {})
    meters = {rank: result["meter"] for rank, result in sorted(results.items())}
    failures = this.status.get("failures", [])
    stages = _stages(meters)
    ranks = [_rank(rank, results[rank]) for rank in meters]
    history = results[0]["history"] if 0 in results else _last_history(this)
    return RunRecord(
        name=this.job.name,
        status="finished" if error is None else "stopped" if isinstance(error, Stopped) else "failed",
        error=str(error) if error else None,
        started_at=datetime.fromtimestamp(this.started_at, UTC).isoformat(timespec="milliseconds"),
        command=command,
        job=this.job.model_dump(mode="json"),
        versions=hardware.versions(),
        hardware=Hardware(
            cpu_model=hardware.cpu_model(),
            cpu_cores=hardware.usable_cpus(),
            memory_bytes=hardware.memory_bytes(),
            platform=hardware.platform_name(),
            gpus=hardware.gpu_names(),
        ),
        environment=this.environment,
        cluster_attached=this.cluster.attached,
        emulated_gpus=this.topology.emulated_gpus,
        world_size=this.topology.world_size,
        cpu_slots=this.placed.slots,
        hosts=_hosts(this, meters),
        num_train=this.opened.train.num_samples,
        num_validation=this.opened.num_validation,
        startup=_startup(this, meters),
        totals=_totals(this, meters, ranks, stages),
        ranks=ranks,
        stages=stages,
        epochs=history,
        corrupt=Corrupt(
            **{split: sum(where == split for where, _ in failures) for split in ("train", "validation")},
            listed=[f"{split}: {f.where}: {f.reason}" for split, f in failures[:LISTED_FAILURES]],
        ),
        torch_in_preprocessing_workers=any(meter["torch_in_workers"] for meter in meters.values()),
        resumed_from=this.resumed_from,
        unusual=_unusual(this),
        checkpoint=checkpoint,
        best_checkpoint=best,
        progress=this.progress.progress(this.started_at),
        **_machines(this),
    )


def _machines(this: Run) -> dict[str, list[Any]]:
    """How busy they were while the ranks trained, and all along."""
    watched = {machine: timeline.rows for machine, timeline in this.samplers.timelines.items()}
    timelines = [host_timeline(machine, rows, this.started_at) for machine, rows in watched.items()]
    return {
        "loads": [host_load(machine, rows, this.progress.began_at) for machine, rows in watched.items()],
        "timelines": [timeline for timeline in timelines if timeline is not None],
    }


def _hosts(this: Run, meters: dict[int, dict[str, Any]]) -> list[HostFacts]:
    return [
        HostFacts(
            name=host.name,
            group=host.group,
            cpus=host.cpus,
            gpus=host.gpus,
            instance_type=host.instance_type,
            emulated=host.emulated,
            is_head=host.is_head,
            samples_prepared=sum(meter["nodes"].get(host.node_id, 0) for meter in meters.values()),
        )
        for host in this.topology.hosts
    ]


def _startup(this: Run, meters: dict[int, dict[str, Any]]) -> Startup:
    def since(moment: float | None) -> float | None:
        return None if moment is None else round(moment - this.started_at, 3)

    def first(name: str) -> float | None:
        return min((meter[name] for meter in meters.values() if meter[name] is not None), default=None)

    return Startup(
        manifest_s=since(this.marks["manifest"]),
        cluster_s=since(this.marks["cluster"]),
        trainer_s=since(this.marks["trainer"]),
        first_batch_ready_s=since(this.status.get("first_ready_at")),
        first_batch_s=since(first("first_batch_at")),
        first_step_s=since(first("first_step_at")),
    )


def _totals(
    this: Run, meters: dict[int, dict[str, Any]], ranks: list[RankFigures], stages: list[StageFigures]
) -> Totals:
    samples = sum(meter["num_samples"] for meter in meters.values())
    waited = sum(meter["wait_s"] for meter in meters.values())
    trained = sum(meter["train_s"] for meter in meters.values())
    share = waited / trained if trained else 0.0
    return Totals(
        wall_s=time.time() - this.started_at,
        samples=samples,
        samples_per_s=samples / (trained / len(meters)) if trained else 0.0,
        wait_share=share,
        bottleneck=who_waits(share, ranks, stages).text,
        attempts=this.status.get("attempts", 0),
    )


def _rank(rank: int, result: dict[str, Any]) -> RankFigures:
    names = [name for name in RankFigures.model_fields if name not in ("rank", "device")]
    return RankFigures(rank=rank, device=result["device"], **{name: result["meter"][name] for name in names})


def _stages(meters: dict[int, dict[str, Any]]) -> list[StageFigures]:
    """The ranks' figures of each stage, together; percentiles are the worst rank's."""
    merged: dict[str, StageFigures] = {}
    for meter in meters.values():
        for name, own in meter["stages"].items():
            if name not in merged:
                merged[name] = StageFigures(name=name, **own)
                continue
            sofar = merged[name]
            merged[name] = StageFigures(
                name=name,
                num_samples=sofar.num_samples + own["num_samples"],
                num_batches=sofar.num_batches + own["num_batches"],
                cpu_s=sofar.cpu_s + own["cpu_s"],
                wall_s=sofar.wall_s + own["wall_s"],
                batch_wall_p90_s=max(sofar.batch_wall_p90_s, own["batch_wall_p90_s"]),
                batch_wall_p99_s=max(sofar.batch_wall_p99_s, own["batch_wall_p99_s"]),
            )
    return list(merged.values())


def _last_history(this: Run) -> list[dict[str, float]]:
    """What the last progress report of rank 0 knew, when the ranks did not get to report their results; or what was
    known before they began."""
    before = this.restored.facts.history if this.restored else []
    return this.status.get("progress", {}).get(0, {}).get("history", before)


def _unusual(this: Run) -> Unusual:
    """All ranks together, as far as each has said."""
    said = {rank: figures.get("counts", {}) for rank, figures in this.status.get("progress", {}).items()}
    said |= {rank: result["counts"] for rank, result in this.status.get("results", {}).items()}
    if not said and this.restored:
        said = {0: this.restored.facts.counts}
    return Unusual(**{name: sum(each.get(name, 0) for each in said.values()) for name in Unusual.model_fields})
