"""Every benchmark runs in its short form."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import ROOT
from patience import patient

from raytrain.simulate.hosts import unavailable

BENCHMARKS = {
    "ingest": ("digits: ray_data / raytrain, seconds to the first batch {'min':", "ray"),
    "startup": ("raytrain / plain, seconds to the first step {'min':", "ray"),
    "scale": ("throughput / ideal", "ray"),
    "listing": ("raytrain / walk, seconds {'min':", "process"),
    "placement": ("auto / device, everywhere, samples_per_s {'min':", "ray"),
    "planner": ("the pick costs 1.000 of it", "process"),
    "sampling": ("sampling alone, percent of a core {'min':", "ray"),
    "ledger": ("ledger / step, batches of 256, percent {'min':", "process"),
    "gpu": ("raytrain_with_cpu_node / dataloader, samples_per_s {'min':", "ray"),
    "fuzz": (" cases, 0 wrong, in ", "process"),
    "mutation": ("raytrain/train/ledger.py", "process"),
    "wire": ("round 1/1 from another node, chunk 5 MB: {'gb_per_s':", "ray"),
    "inference": ("vit_96: streams / run_cpu, samples_per_s {'min':", "process"),
    "tuning": ("the pick / the best of the grid, samples_per_s {'min':", "process"),
    "checkpointing": ("stall, beside / waiting {'min':", "ray"),
    "bootstrap": ("bootstrap, all_gone_s {'min':", "hosts ray"),
}


@pytest.mark.parametrize(
    ("name", "figure"),
    [
        pytest.param(name, figure, marks=[getattr(pytest.mark, kind) for kind in kinds.split()])
        for name, (figure, kinds) in BENCHMARKS.items()
    ],
)
@pytest.mark.timeout(400)
def test_a_benchmark_runs(name, figure):
    if name == "bootstrap" and unavailable() is not None:
        pytest.skip(unavailable())
    result = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--smoke"],
        capture_output=True,
        text=True,
        timeout=patient(300),
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stderr
    assert figure in result.stdout
