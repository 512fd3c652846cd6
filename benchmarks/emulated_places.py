"""What `placement.py` emulates: stages that only take time, wherever they run, and a step that does."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raytrain.data import stage
from raytrain.data.samples.fields import Field
from raytrain.data.stages.stage import Stage

IMAGE = Field("uint8", (8, 8, 3), "image")
LATE: dict[str, float] = {}


class Numbers:
    """Sample i is an image of i's."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": np.full((8, 8, 3), index % 251, np.uint8), "label": index % 10}


def wait(who: str, seconds: float) -> None:
    """What a sleep takes too long is taken off the next."""
    began, wanted = time.perf_counter(), seconds - LATE.get(who, 0.0)
    time.sleep(max(wanted, 0.0))
    LATE[who] = min(time.perf_counter() - began - wanted, seconds)


def on_core(image: np.ndarray, cpu_ms: float, device_ms: float | None) -> np.ndarray:
    wait("core", cpu_ms / 1e3)
    return image + np.uint8(1)


def on_device(image: torch.Tensor, cpu_ms: float, device_ms: float) -> torch.Tensor:
    wait("device", device_ms / 1e3 * len(image))
    return image + 1


def waiting(name: str, cpu_ms: float, device_ms: float | None) -> Stage:
    """A stage that takes so long for a sample; without `device_ms` it runs on CPUs alone."""
    form = None if device_ms is None else on_device
    return stage(
        on_core, on="image", gives={"image": IMAGE}, device=form, name=name, cpu_ms=cpu_ms, device_ms=device_ms
    )


def emulated_step(step_ms: float, seconds: float, warm_s: float, into: Path) -> Callable[[Any], None]:
    """A training loop whose steps only take time.

    Args:
        step_ms: for a sample.
        seconds: to measure, after `warm_s` of them; then the loop ends.
        into: file for samples and seconds.
    """

    def loop(ctx: Any) -> None:
        began, first, samples = None, None, 0
        for _ in ctx.epochs():
            for batch in ctx.batches("train"):
                wait("step", step_ms / 1e3 * batch.size)
                ctx.report(0.0)
                now = time.monotonic()
                began = began or now
                if first is None and now - began >= warm_s:
                    first = now
                elif first is not None:
                    samples += batch.size
                    if now - first >= seconds:
                        if ctx.rank == 0:
                            into.write_text(json.dumps({"samples": samples, "seconds": now - first}))
                        return

    return loop
