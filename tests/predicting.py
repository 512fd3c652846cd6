"""A model that kills its process, or waits, at samples that it is told; a job names it `predicting:linear`.

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


class Linear(torch.nn.Module):
    """Dies where `x` has one of `values`, says nothing of those of `silent`, and from `gate_from` on waits until
    there is a file `gate`."""

    def __init__(
        self, num_classes: int = CLASSES, values: tuple = (), silent: tuple = (), gate: str = "", gate_from: int = 0
    ):
        super().__init__()
        self.layer = torch.nn.Linear(WIDTH, num_classes)
        self.silent = torch.tensor(silent)
        self.values, self.gate, self.gate_from = set(values), gate, gate_from

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = set(x[:, 0].int().tolist())
        if self.values & found:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.gate and min(found) >= self.gate_from:  # not of the few, from all over, that it is timed with
            until = time.monotonic() + PATIENCE_S
            while not Path(self.gate).exists() and time.monotonic() < until:
                time.sleep(0.02)
        return torch.where(torch.isin(x[:, :1], self.silent), torch.nan, self.layer(x))


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


def rows(folder) -> pa.Table:
    found = sorted(Path(folder).glob("part-*.parquet"))
    return pa.concat_tables([pyarrow.parquet.read_table(path) for path in found])


def errors(folder) -> dict[int, tuple[str, str, str]]:
    found = [pyarrow.parquet.read_table(path) for path in sorted(Path(folder).glob("_errors-*.parquet"))]
    return {row["id"]: (row["where"], row["stage"], row["reason"]) for table in found for row in table.to_pylist()}


def linear_tree(folder: Path, name: str, count: int, stage: dict | None = None, **model) -> dict:
    write_rows(folder / "rows.parquet", count)
    return {
        "name": name,
        "run_dir": str(folder),
        "model": {"name": "predicting:linear", "inputs": "x", "options": model},
        "data": {
            "source": {"kind": "parquet", "path": str(folder / "rows.parquet")},
            "stages": [stage] if stage else [],
        },
        "output": {"fields": ["name", "weight"], "shard_rows": 20},
        "inference": {"batch_size": 4, "block": {"rows": 8}, "max_failures": 1},
    }


def check_linear(tree: dict, count: int, failed=()) -> dict[int, tuple[str, str, str]]:
    """All rows but those that failed, each once, and what they should be. Returns the errors."""
    output = Path(tree["run_dir"]) / tree["name"] / "predictions"
    found, wrong = rows(output), errors(output)
    left = [number for number in range(count) if number not in failed]
    assert sorted(wrong) == sorted(failed)
    assert found.column("id").to_pylist() == left
    assert found.column("name").to_pylist() == [f"row {number}" for number in left]
    assert found.column("weight").to_pylist() == [number / 2 for number in left]
    x = pyarrow.parquet.read_table(Path(tree["run_dir"]) / "rows.parquet").column("x").to_pylist()
    torch.manual_seed(0)
    model = linear()
    shares = model(torch.tensor(x)[left]).softmax(1)
    np.testing.assert_allclose(found.column("probability").to_numpy(), shares.max(1).values.detach(), atol=1e-5)
    assert found.column("prediction").to_pylist() == shares.argmax(1).tolist()
    return wrong
