"""Stages and models that kill their process, or wait, at samples that they are told; a job names them `predicting:…`.

A sample is `x`, eight numbers of which the first is its id.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch

WIDTH, CLASSES = 8, 3
PATIENCE_S = 120.0


def die(once: str) -> None:
    """By SIGKILL; `once` is a file that says that it was done, empty for every time."""
    if once:
        if Path(once).exists():
            return
        Path(once).touch()
    os.kill(os.getpid(), signal.SIGKILL)


def deadly(x: np.ndarray, values: tuple = (), once: str = "") -> np.ndarray:
    if x[0] in values:
        die(once)
    return x


class Linear(torch.nn.Module):
    """Dies where `x` has one of `values`; from `gate_from` on waits until there is a file `gate`."""

    def __init__(self, num_classes: int = CLASSES, values: tuple = (), once: str = "", gate: str = "", gate_from=0):
        super().__init__()
        self.layer = torch.nn.Linear(WIDTH, num_classes)
        self.values, self.once, self.gate, self.gate_from = set(values), once, gate, gate_from

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = set(x[:, 0].int().tolist())
        if self.values & found and len(x) > 0:
            die(self.once)
        if self.gate and max(found) >= self.gate_from:
            until = time.monotonic() + PATIENCE_S
            while not Path(self.gate).exists() and time.monotonic() < until:
                time.sleep(0.02)
        return self.layer(x)


def linear(**options) -> torch.nn.Module:
    return Linear(**options)


def write_rows(path: Path, count: int) -> np.ndarray:
    """Returns `x`, float32 (count, WIDTH)."""
    x = np.random.default_rng(0).normal(size=(count, WIDTH)).astype(np.float32)
    x[:, 0] = np.arange(count)
    columns = {
        "x": pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), WIDTH),
        "name": [f"row {number}" for number in range(count)],
        "weight": pa.array(np.arange(count) / 2),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pa.table(columns), path)
    return x


def as_it_is(x: np.ndarray) -> np.ndarray:
    return x


def some_more(sample: dict) -> dict | list[dict] | None:
    """Not of 3, and two of 5."""
    number = int(sample["x"][0])
    return None if number == 3 else [sample, sample] if number == 5 else sample
