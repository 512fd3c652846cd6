"""Every benchmark runs in its short form."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.parametrize("name", ["first_batch"])
def test_a_benchmark_runs(name):
    result = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--smoke"],
        capture_output=True,
        text=True,
        timeout=150,
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stderr
    assert "seconds to the first batch {'min':" in result.stdout
