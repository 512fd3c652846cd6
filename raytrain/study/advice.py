"""What helps where a stage is dear: which stages a measurement calls dear, and what they say themselves of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from raytrain.record.status import READ

DEAR = 0.25  # of a sample's time: from here on a stage is worth an advice
MOST_ADVICES = 3

READING = "few large files (Parquet, WebDataset) instead of one a sample"
OF_YOUR_OWN = (
    "it is your code: profile it on one sample; OpenCV and NumPy do whole images at once, loops and Pillow do not"
)
BUSY_RANKS = (
    "what helps: the ranks are busy, so that faster preprocessing brings little; larger batches, training.precision: "
    "bf16, or more and faster accelerators do"
)
WAITING = "the data nearer (a local disk, an S3 bucket of the same region), and few large files instead of one a sample"


class Cost(Protocol):
    """What a stage took for some samples, as record.StageFigures has it."""

    name: str
    cpu_s: float
    wall_s: float


def advice(costs: Sequence[Cost], helps: Mapping[str, str]) -> list[str]:
    """A line for each stage that takes much of a sample's CPU time, the dearest first, and one for waiting reads.

    Args:
        helps: by the name of a stage in the pipeline, its `Stage.helps`.
    """
    known = {**helps, READ: READING}
    cpu_s, wall_s = sum(cost.cpu_s for cost in costs), sum(cost.wall_s for cost in costs)
    dear = [cost for cost in costs if cpu_s and cost.cpu_s >= DEAR * cpu_s]
    lines = [
        f"{cost.name} is {cost.cpu_s / cpu_s:.0%} of the CPU time. What helps: {known.get(cost.name) or OF_YOUR_OWN}"
        for cost in sorted(dear, key=lambda cost: -cost.cpu_s)
    ]
    waits = sum(max(cost.wall_s - cost.cpu_s, 0.0) for cost in costs if cost.name == READ)
    if wall_s and waits >= DEAR * wall_s:
        lines.insert(0, f"reading waits for {waits / wall_s:.0%} of the stages' time. What helps: {WAITING}")
    return lines[:MOST_ADVICES]
