"""Every benchmark runs in its short form."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import ROOT

from raytrain.cluster.simulated import unavailable


@pytest.mark.parametrize(
    ("name", "figure"),
    [
        ("ingest", "digits: ray_data / raytrain, seconds to the first batch {'min':"),
        ("startup", "raytrain / plain, seconds to the first step {'min':"),
        ("scale", "throughput / ideal"),
        ("planner", "the pick costs 1.000 of it"),
        ("sampling", "sampling alone, percent of a core {'min':"),
        ("gpu", "raytrain_with_cpu_node / dataloader, samples_per_s {'min':"),
        pytest.param(
            "bootstrap",
            "bootstrap, all_gone_s {'min':",
            marks=pytest.mark.skipif(unavailable() is not None, reason=str(unavailable())),
        ),
    ],
)
def test_a_benchmark_runs(name, figure):
    result = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--smoke"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stderr
    assert figure in result.stdout
