"""Who waits for whom: decided here for the end of a run and for a diagnosis alike, and how far it can be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from raytrain.cost.profile import Figure
from raytrain.record.gaps import gap_share
from raytrain.record.schema import RankFigures, StageFigures, is_of_training, of_device_stages
from raytrain.record.status import READ

COMPUTE_UP_TO = 0.10  # of the training time spent waiting: faster input would save no more than that
INPUT_FROM = 0.30  # from here on the input path is worth more than anything on the ranks' side
DEVICE_STAGES_FROM = 0.10  # of the training time
GAPS_FROM = 0.10  # likewise
BUSY_FROM = 1.5  # times its CPU time that a stage other than `read` takes
WIDE = 0.5  # of the median, from the lowest part of a measurement to the highest


@dataclass(frozen=True)
class Verdict:
    """Attributes: `text`: one line, that begins with the kind; `gaps`: what helps where the GPU idles within steps, a
    line too; None where it does not, or nobody can tell."""

    kind: Literal["compute", "balanced", "input", "unknown"]
    text: str
    gaps: str | None = None


def who_waits(wait_share: float, ranks: Sequence[RankFigures], stages: Sequence[StageFigures]) -> Verdict:
    """Judge a run by the share of the ranks' training time that they waited for data.

    Up to COMPUTE_UP_TO the ranks are what limits it, from INPUT_FROM on the input path; between them, either gains.
    """
    own = [stage for stage in stages if stage.of_training]
    if not own or not ranks:
        return Verdict("unknown", "unknown: no batch was trained on")
    waited = f"the ranks wait for data {wait_share:.0%} of the time"
    gaps, helps = _gaps(ranks), against_gaps(ranks)
    if wait_share <= COMPUTE_UP_TO:
        shared = ", on CPUs that the stages may share" if all(rank.device == "cpu" for rank in ranks) else ""
        rest = "" if gaps else f" and are busy for the rest{shared}"
        return Verdict("compute", f"compute: {waited}{rest}{_on_device(ranks)}{gaps}", helps)
    slowest = max(own, key=lambda stage: stage.wall_s)
    stage = (
        f"stage {slowest.name!r} takes longest, {slowest.wall_s_per_sample * 1e3:.2f} ms of a worker for a sample, "
        f"{slowest.cpu_s_per_sample * 1e3:.2f} ms of them CPU time"
    )
    kind = "input" if wait_share >= INPUT_FROM else "balanced"
    return Verdict(kind, f"{kind}: {waited}; {stage}{_on_device(ranks)}{gaps}", helps)


def against_gaps(ranks: Sequence[RankFigures]) -> str | None:
    """What helps where the GPU idles within steps; None where it does not, or nobody can tell."""
    share = gap_share(ranks)
    if share is None or share < GAPS_FROM:
        return None
    return (
        "what helps against the GPU's idling between kernels: the training host's CPUs left to the ranks (cluster."
        "placement: cpu-groups-only, or more cluster.reserved_cpus), larger batches, torch.compile or CUDA graphs"
    )


def _gaps(ranks: Sequence[RankFigures]) -> str:
    """How much the GPU idles within steps, where that is worth a thought."""
    share = gap_share(ranks)
    if share is None or share < GAPS_FROM:
        return ""
    return (
        f"; the GPU idles between kernels {share:.0%} of the time: the rank's own Python, or its host's CPUs are busy"
    )


def _on_device(ranks: Sequence[RankFigures]) -> str:
    """What the stages on the device take of the training time, where that is worth a thought."""
    staged = sum(seconds for name, (_, seconds) in of_device_stages(ranks).items() if is_of_training(name))
    staged -= sum(rank.decode_s for rank in ranks)  # beside it
    total = sum(rank.train_s for rank in ranks)
    if not total or staged < DEVICE_STAGES_FROM * total:
        return ""
    return f"; the stages on the device take {staged / total:.0%} of it"


def busy_machine(stages: Sequence[StageFigures]) -> str | None:
    """A warning where the workers were kept from their CPUs, so that this run was slower than it need be."""
    own = [stage for stage in stages if stage.of_training and stage.name != READ]
    cpu_s, wall_s = sum(stage.cpu_s for stage in own), sum(stage.wall_s for stage in own)
    if not cpu_s or wall_s < BUSY_FROM * cpu_s:
        return None
    return (
        f"warning: the stages took {wall_s / cpu_s:.1f} times their CPU time: more was running than there are cores, "
        "or a stage waits for something; on CPUs of their own they would be faster than measured here"
    )


def wide_spreads(measured: Mapping[str, Figure]) -> list[str]:
    """A warning for each measurement whose parts differ too much to trust its median; `measured` is by its name."""
    return [
        f"warning: {name} went from {figure.low / figure.value:.0%} to {figure.high / figure.value:.0%} of its median "
        f"over {figure.n} parts: something else may be using this machine; measure again, or longer (--seconds)"
        for name, figure in measured.items()
        if figure.value and figure.high - figure.low > WIDE * figure.value
    ]
