"""Stages that go where they are cheapest while a run goes on: on real Ray, with an emulated GPU."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raytrain import Job, Pipeline
from raytrain.data import on_cpu, random_horizontal_flip, stage
from raytrain.data.samples.fields import Field
from raytrain.run.driver import run

pytestmark = pytest.mark.ray
IMAGE = Field("uint8", (4, 4, 3), "image")
CPU_MS, SAMPLES = 12.0, 600


class Numbered:
    """Sample i is an image whose left half is of i's."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = np.zeros((4, 4, 3), np.uint8)
        image[:, :2] = (index % 251, index // 251, 7)
        return {"image": image, "label": index % 2}


def whole(image: np.ndarray) -> np.ndarray:
    return image


def dear(image: np.ndarray, ms: float) -> np.ndarray:
    time.sleep(ms / 1e3)
    return image + np.uint8(1)


def cheap(images: torch.Tensor, ms: float) -> torch.Tensor:
    return images + 1


class Seen:
    """A loop that writes down what it sees of each sample."""

    def __init__(self, into: Path):
        self.into = into

    def __call__(self, ctx: Any) -> None:
        seen: dict[str, list[Any]] = {}
        for epoch in ctx.epochs():
            for batch in ctx.batches("train"):
                for index, image in zip(batch.ids.tolist(), batch.image.to(torch.uint8), strict=True):
                    seen.setdefault(f"{epoch}/{index}", []).append(image.flatten().tolist())
                ctx.report(0.0)
        self.into.write_text(json.dumps(seen))


def seen(folder: Path, placement: str, stages: list[Any], nodes: str) -> tuple[dict[str, Any], Any]:
    job = Job.from_dict(
        {
            "name": placement,
            "run_dir": str(folder),
            "training": {"epochs": 3},
            "cluster": {"placement": placement, "reserved_cpus": 0},
        }
    )
    pipeline = Pipeline(Numbered(), stages, batch_size=10)
    record = run(Seen(folder / "seen.json"), pipeline, job, nodes=nodes)
    return json.loads((folder / "seen.json").read_text()), record


def test_what_is_dear_on_cpus_goes_to_the_device_and_nobody_can_tell_from_the_samples(tmp_path):
    known = stage(whole, gives={"image": IMAGE})  # behind which every image is of this size
    moving = [stage(dear, gives={"image": IMAGE}, device=cheap, ms=CPU_MS), random_horizontal_flip()]
    auto, record = seen(tmp_path, "auto", [known, *moving], "gpu=1x1x1,cpu=1x1")
    assert len(auto) == 3 * SAMPLES and all(len(each) == 1 for each in auto.values()), "each id once an epoch"
    first = record.placements[0]
    assert "dear" in [*first.on_device, *first.sometimes_on_device], first.text
    costs = {each.name: (each.cpu_s, each.device_s) for each in first.stages}
    assert costs["dear"][0] >= CPU_MS / 1e3 > 10 * costs["dear"][1]
    assert first.samples_per_s > 1.5 * first.samples_per_s_before
    moved = {each.name: each for each in record.stages}["dear"].num_samples
    assert moved < 3 * SAMPLES and record.ranks[0].device_stage_s["dear"] > 0
    fixed, record = seen(
        tmp_path, "anywhere", [known, on_cpu(stage(dear, ms=0.0)), on_cpu(moving[1])], "gpu=1x1x1,cpu=1x1"
    )
    assert record.placements == [] and record.ranks[0].device_stage_s == {}
    assert fixed == auto, "the same images, flipped or not, in every epoch"
