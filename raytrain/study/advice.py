"""What helps where a stage is dear: a table, and which of its lines a measurement calls for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

DEAR = 0.25  # of a sample's time: from here on a stage is worth an advice
MOST_ADVICES = 3

FEWER_PIXELS = "put it after the crop or the resize, where there are fewer pixels"
STORE_SMALLER = "store the images nearer to the size that you train on"
WHAT_HELPS = {  # by kind of stage
    "read": "few large files (Parquet, WebDataset) instead of one a sample",
    "decode": f"{STORE_SMALLER}, since every pixel is decoded; or decode at a half or a quarter of the size in a stage "
    "of your own (OpenCV's IMREAD_REDUCED_COLOR_2 and _4, which give BGR)",
    "resize": STORE_SMALLER,
    "center_crop": STORE_SMALLER,
    "random_resized_crop": STORE_SMALLER,
    "random_crop": STORE_SMALLER,
    "random_horizontal_flip": FEWER_PIXELS,
    "random_vertical_flip": FEWER_PIXELS,
    "gaussian_blur": f"{FEWER_PIXELS}; a smaller kernel; where it blurs several times, `to_dtype: {{dtype: float32}}` "
    "before it makes one blur of them",
    "color_jitter": FEWER_PIXELS,
    "grayscale": FEWER_PIXELS,
    "random_grayscale": FEWER_PIXELS,
    "to_dtype": FEWER_PIXELS,
    "to_uint8": FEWER_PIXELS,
    "torchvision": "raytrain's own stage of that name where there is one (ColorJitter is color_jitter, and so on): the "
    "same images for a fraction of the time",
}
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


def what_helps(stage: str) -> str:
    """For a stage of this name, such as `decode`, `resize_2`, `torchvision.ColorJitter` or that of a function."""
    kind = re.sub(r"_\d+$", "", stage).partition(".")[0]
    return WHAT_HELPS.get(kind, OF_YOUR_OWN)


def advice(costs: Sequence[Cost]) -> list[str]:
    """A line for each stage that takes much of a sample's CPU time, the dearest first, and one for waiting reads."""
    cpu_s, wall_s = sum(cost.cpu_s for cost in costs), sum(cost.wall_s for cost in costs)
    dear = [cost for cost in costs if cpu_s and cost.cpu_s >= DEAR * cpu_s]
    lines = [
        f"{cost.name} is {cost.cpu_s / cpu_s:.0%} of the CPU time. What helps: {what_helps(cost.name)}"
        for cost in sorted(dear, key=lambda cost: -cost.cpu_s)
    ]
    waits = sum(max(cost.wall_s - cost.cpu_s, 0.0) for cost in costs if cost.name == "read")
    if wall_s and waits >= DEAR * wall_s:
        lines.insert(0, f"reading waits for {waits / wall_s:.0%} of the stages' time. What helps: {WAITING}")
    return lines[:MOST_ADVICES]
