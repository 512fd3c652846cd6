"""The planner against the truth: emulated clusters of many shapes, predicted from the smallest one, and measured.

    python benchmarks/planner.py [--rows benchmarks/results/scale.json] [--smoke]

The truth is what `scale.py` measured (it says what is emulated: the CPUs, the transform, the accelerator, the network).
Predicted is every shape from a profile that knows only the first one, the GPU host alone: CPU seconds a sample as its
workers took, the accelerator's assumed rate, and the efficiency with which it ran. Each shape stands for instance types
of that many vCPUs at their prices. Reported: predicted / measured samples a second of every shape, and what the shape
that the planner picks really costs, against the cheapest of all that were measured.

Besides: how long the planner takes for ten thousand shapes and more.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from harness import RESULTS, spread, write
from rich.console import Console
from rich.table import Table
from scale import Case

from raytrain.cost.bounds import Bounds
from raytrain.cost.instances import Catalog, Price, Source, catalog
from raytrain.cost.planner import Plan, Prediction, plan
from raytrain.cost.profile import Figure, Profile

GPU_HOSTS = {4: "ml.g5.xlarge", 8: "ml.g5.2xlarge", 16: "ml.g5.4xlarge", 32: "ml.g5.8xlarge"}
CPU_HOSTS = {4: "ml.c5.xlarge", 8: "ml.c5.2xlarge", 16: "ml.c5.4xlarge", 36: "ml.c5.9xlarge", 72: "ml.c5.18xlarge"}
EMULATED = "a region of its own, with each type's price from whichever region of the snapshot has one"


def priced() -> Catalog:
    """The catalog with one region that has every type's price."""
    known = catalog()
    prices = {
        ("anywhere", name): Price(**{**price.model_dump(), "region": "anywhere"})
        for (_, name), price in known.prices.items()
    }
    return Catalog(known.types, prices, {**known.sources, "emulated": Source(text=EMULATED)})


def profile_of(case: Case, row: dict[str, float]) -> Profile:
    """All that the planner is told: the first shape's measurement."""
    once = Figure.once
    return Profile(
        name="emulated",
        job={},
        source=f"one run of scale.py, shape {case.shape}",
        measured_at="",
        hardware="emulated",
        cpu_s_per_sample={"g5": once(row["sample_ms_taken"] / 1e3)},
        accelerator_s_per_sample={"A10G": once(1 / case.accelerator)},
        wire_bytes_per_sample=once(150_528),
        read_bytes_per_sample=once(0),
        startup_s=once(row["first_batch_s"]),
        efficiency=once(min(row["of_ideal"], 1.0)),
        num_samples=1_281_167,
        epochs=10,
    )


def named(case: Case) -> str | None:
    """The shape as the planner writes it; None where no instance type has that many vCPUs."""
    own, hosts, each = case.sizes
    if own not in GPU_HOSTS or (hosts and each not in CPU_HOSTS) or case.multiple is not None:
        return None
    return f"1 x {GPU_HOSTS[own]}" + (f" + {hosts} x {CPU_HOSTS[each]}" if hosts else "")


def find(plan_: Plan, text: str) -> Prediction:
    for index in range(len(plan_)):
        if str(plan_.prediction(index).shape) == text:
            return plan_.prediction(index)
    raise SystemExit(f"the planner does not look at {text}")


def held_against(cases: list[Case], rows: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Predicted and measured, by shape."""
    first = next(case for case in cases if case.sizes[1] == 0)
    told = {name: statistics.median(row[name] for row in rows[first.shape]) for name in rows[first.shape][0]}
    bounds = Bounds("anywhere", families=("g5", "c5"), max_gpu_hosts=1, max_cpu_hosts=16, reserved_cpus=0)
    found = plan(profile_of(first, told), priced(), bounds)
    held = {}
    for case in cases:
        text = named(case)
        if text is None:
            continue
        predicted = find(found, text)
        measured = statistics.median(row["samples_per_s"] for row in rows[case.shape])
        held[case.shape] = {
            "predicted_samples_per_s": predicted.samples_per_s,
            "measured_samples_per_s": measured,
            "predicted_of_measured": predicted.samples_per_s / measured,
            "predicted_usd_per_million": predicted.usd_per_million_samples,
            "measured_usd_per_million": predicted.usd_per_hour / 3600 / measured * 1e6,
        }
    return held


def picked_against_best(held: dict[str, dict[str, float]]) -> tuple[str, str, float]:
    """The shape that the planner picks, the cheapest in truth, and what the first costs against the second."""
    pick = min(held, key=lambda shape: held[shape]["predicted_usd_per_million"])
    best = min(held, key=lambda shape: held[shape]["measured_usd_per_million"])
    return pick, best, held[pick]["measured_usd_per_million"] / held[best]["measured_usd_per_million"]


def show(held: dict[str, dict[str, float]]) -> None:
    table = Table(title="The planner against emulated clusters", title_justify="left")
    for name in ("shape", "predicted/s", "measured/s", "predicted / measured", "$/million predicted", "measured"):
        table.add_column(name, justify="left" if name == "shape" else "right")
    for shape, row in held.items():
        predicted, measured, ratio, *money = row.values()
        table.add_row(shape, f"{predicted:,.1f}", f"{measured:,.1f}", f"{ratio:.3f}", *(f"{usd:.3f}" for usd in money))
    Console(width=120).print(table)


def seconds_for_many_shapes(rounds: int = 5) -> tuple[int, dict[str, float]]:
    """Shapes, and seconds that a plan over them takes."""
    case = Case("4+0", 0.018, 1200.0, 64, 8, 1.0, False)
    profile = profile_of(case, {"sample_ms_taken": 18.0, "first_batch_s": 10.0, "of_ideal": 0.98})
    known, took, shapes = priced(), [], 0
    for _ in range(rounds):
        began = time.perf_counter()
        shapes = len(plan(profile, known, Bounds("anywhere")))
        took.append(time.perf_counter() - began)
    return shapes, spread(took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=RESULTS / "scale.json")
    parser.add_argument("--smoke", action="store_true", help="nothing written")
    arguments = parser.parse_args()
    read = json.loads(arguments.rows.read_text())
    common = {
        name: read["about"][name]
        for name in ("sample_s", "accelerator", "batch", "task_batches", "steady_s", "float32")
    }
    cases = [Case(shape, **common) for shape in read["rows"]]
    held = held_against(cases, read["rows"])
    show(held)
    pick, best, dearer = picked_against_best(held)
    worst = max(held, key=lambda shape: abs(held[shape]["predicted_of_measured"] - 1))
    print(f"{len(held)} shapes; furthest off: {worst}, {held[worst]['predicted_of_measured']:.3f}")
    print(f"picked: {pick}, cheapest in truth: {best}; the pick costs {dearer:.3f} of it")
    shapes, took = seconds_for_many_shapes()
    print(f"a plan over {shapes:,} shapes, seconds {took}")
    ratios = {f"{shape}, predicted / measured": spread([row["predicted_of_measured"]]) for shape, row in held.items()}
    ratios["the pick's cost / the cheapest's"] = spread([dearer])
    ratios[f"seconds for {shapes} shapes"] = took
    if not arguments.smoke:
        rows = {shape: [row] for shape, row in held.items()}
        print(write("planner", rows, ratios, pick=pick, best=best, rows_of=read["date"]))


if __name__ == "__main__":
    main()
