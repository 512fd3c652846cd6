"""From what was seen of a prediction to its record, and to which of its parts limits it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from raytrain.cluster import hardware
from raytrain.cluster.facts import ended, hosts_of, this_machine, time_of_day
from raytrain.cluster.local import RunningCluster
from raytrain.config.masking import masked, masked_command
from raytrain.errors import RaytrainError
from raytrain.infer.output.folder import Counts
from raytrain.infer.plan import InferencePlan
from raytrain.infer.progress import Progress, StreamSeen
from raytrain.infer.streams.places import Places
from raytrain.record.inference import InferenceRecord, InferenceStage, StreamFigures, ThreeFigures

LISTED = 100
NEAR = 0.8  # of the slower part: from here on it is what limits
SHARED = "cores or memory are shared, or the data are few and the first batches slow"
BUSY = 0.9  # of the streams' time, in which they compute: likewise


def build_record(
    plan: InferencePlan,
    cluster: RunningCluster,
    places: Places,
    progress: Progress,
    counts: Mapping[int, Counts],
    error: RaytrainError | None,
    about: Mapping[str, Any],
) -> InferenceRecord:
    """
    Args:
        counts: of the shards that are done.
        about: `started_at`, `environment`, `output` and `listed`.
    """
    stages = stages_of(progress)
    topology = cluster.topology
    started_at: float = about["started_at"]
    first, last = progress.first_at, progress.last_at
    return InferenceRecord(
        name=plan.job.name,
        **ended(error),
        started_at=time_of_day(started_at),
        command=masked_command(sys.argv),
        job=masked(plan.job.model_dump(mode="json")),
        versions=hardware.versions(),
        hardware=this_machine(),
        environment=about["environment"],
        cluster_attached=cluster.attached,
        emulated_gpus=topology.emulated_gpus,
        cpu_slots=places.slots,
        hosts=hosts_of(topology, progress.prepared_at),
        output=about["output"],
        model=plan.file.source,
        model_digest=plan.file.digest,
        num_samples=plan.num_samples,
        samples_before=progress.before,
        rows=sum(each.rows for each in counts.values()),
        errors=sum(each.errors for each in counts.values()),
        listed=about["listed"],
        wall_s=time.time() - started_at,
        seconds=None if first is None or last is None else max(last - first, 0.0),
        samples_per_s=progress.samples_per_s,
        figures=three_figures(stages, places.slots, progress),
        stages=stages,
        streams=[_stream(each) for each in progress.streams],
        done_again=progress.lost,
        torch_in_preprocessing_workers=progress.torch_imported,
    )


def stages_of(progress: Progress) -> list[InferenceStage]:
    """In their order."""
    wall_s, cpu_s = progress.stage_wall_s, progress.stage_cpu_s
    return [
        InferenceStage(name=name, num_samples=progress.prepared, cpu_s=cpu_s[name], wall_s=wall_s[name])
        for name in wall_s
    ]


def three_figures(stages: Sequence[InferenceStage], slots: int, progress: Progress) -> ThreeFigures:
    """The model alone, preparing alone, and both together, in samples a second."""
    alone = [each.begun.samples_per_s for each in progress.streams if each.begun is not None]
    model = sum(rate for rate in alone if rate is not None) or None
    cpu_s = sum(stage.cpu_s_per_sample for stage in stages)
    prepare = slots / cpu_s if cpu_s else None
    together = progress.samples_per_s
    shares = [each.busy_share for each in progress.streams if each.busy_share is not None]
    busy = sum(shares) / len(shares) if shares else 0.0
    limited_by, text = verdict(model, prepare, together, busy, stages)
    return ThreeFigures(model=model, prepare=prepare, together=together, limited_by=limited_by, text=text)


def verdict(
    model: float | None,
    prepare: float | None,
    together: float | None,
    busy: float,
    stages: Sequence[InferenceStage],
) -> tuple[Any, str]:
    """Which of the parts limits, and what to change, in a sentence.

    Args:
        busy: share of the streams' time in which they computed.
    """
    if model is None or prepare is None or together is None:
        return "unknown", "there was too little to predict for a figure of each part"
    if busy >= BUSY or (model <= prepare and together >= NEAR * model):
        slower = (
            f" (at {max(together / model, 0.01):.0%} of its rate alone: {SHARED})" if together < NEAR * model else ""
        )
        return "model", (
            f"the model limits{slower}: more streams or GPUs, another inference.backend or inference.precision, or a "
            "larger inference.batch_size; `raytrain tune` tries them"
        )
    if prepare < model and together >= NEAR * prepare:
        dearest = max(stages, key=lambda stage: stage.cpu_s)
        share = dearest.cpu_s / max(sum(stage.cpu_s for stage in stages), 1e-9)
        return "prepare", (
            f"preparing samples limits, and `{dearest.name}` takes {share:.0%} of it: more CPUs (a CPU group beside "
            "the hosts that predict), or samples stored smaller"
        )
    return "neither", (
        "neither is at its rate: parts of the run start and end one by one, or share cores; larger data, more blocks "
        "in flight (inference.in_flight) or fewer streams may help"
    )


def _stream(seen: StreamSeen) -> StreamFigures:
    place, begun, last = seen.place, seen.begun, seen.last
    return StreamFigures(
        host=place.host.name,
        device=place.device if begun is None else begun.device,
        cpus=list(place.shape.cpus),
        threads=place.shape.threads,
        sizes=list(place.takes),
        samples=seen.samples,
        load_s=None if begun is None else begun.load_s,
        alone_samples_per_s=None if begun is None else begun.samples_per_s,
        busy_share=seen.busy_share,
        gpu_busy_share=None if last is None else last.gpu_busy,
        restarts=seen.deaths,
    )
