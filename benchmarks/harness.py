"""What every benchmark shares: interleaved rounds, ratios with their spread, and a result file that says on what."""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raytrain.cluster import hardware

RESULTS = Path(__file__).parent / "results"


def interleave(variants: dict[str, Callable[[], dict[str, float]]], rounds: int) -> dict[str, list[dict[str, float]]]:
    """Run every variant once a round, `rounds` times: a drift of the machine meets all of them alike."""
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    for number in range(rounds):
        for name, run in variants.items():
            rows[name].append(run())
            print(f"round {number + 1}/{rounds} {name}: {rows[name][-1]}", flush=True)
    return rows


def figures_of(what: str, command: list[str], timeout_s: float, **options: Any) -> dict[str, float]:
    """What a command prints last, as JSON; `what` failed if it does not end well."""
    finished = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, **options)
    if finished.returncode:
        raise SystemExit(f"{what} failed:\n{finished.stderr}")
    return json.loads(finished.stdout.strip().splitlines()[-1])


def spread(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def ratio(rows: dict[str, list[dict[str, float]]], figure: str, one: str, other: str) -> dict[str, float]:
    """`one` / `other`, round by round."""
    return spread([a[figure] / b[figure] for a, b in zip(rows[one], rows[other], strict=True)])


def write(name: str, rows: dict[str, Any], ratios: dict[str, Any], **about: Any) -> Path:
    """Raw rows, ratios, versions and hardware, as benchmarks/results/<name>.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    machine = {"cpu": hardware.cpu_model(), "cores": hardware.usable_cpus(), "memory_bytes": hardware.memory_bytes()}
    result = {
        "benchmark": name,
        "date": time.strftime("%Y-%m-%d"),
        "about": about,
        "hardware": machine,
        "versions": hardware.versions(),
        "ratios": ratios,
        "rows": rows,
    }
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path
