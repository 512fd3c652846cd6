"""The placement that raytrain chooses against every fixed one.

    python benchmarks/placement.py [--rounds 1] [--only NAME ...] [--smoke]

Emulated: every stage and every step is a sleep of a given length, wherever it runs, so that hosts, cores and devices
that this machine does not have can be told apart; Ray, its nodes and everything else are real. Nothing of it says how
fast a device is. A training host has two cores for the stages and one device; each CPU host has one core. `reading`
runs on CPUs alone, `dear` on a core or on the device. The fixed placements have `dear` on either, and the training
host's cores at work or not; the automatic one is measured after it has had time to look.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emulated_places import Numbers, emulated_step, waiting
from harness import RESULTS, interleave, ratio, write

from raytrain import Job, Pipeline
from raytrain.cluster import local
from raytrain.cluster.environment import prepare_environment
from raytrain.cluster.topology import EMULATED_GPU
from raytrain.config.cluster import parse_nodes
from raytrain.data import on_cpu, on_device
from raytrain.run.driver import run

BATCH, SAMPLES = 16, 20_000
WARM_S, A_HOST_S, LOOKED_S, MEASURED_S = 4.0, 1.0, 24.0, 8.0  # many processes start on few cores; between two looks


@dataclass(frozen=True)
class Constellation:
    """Attributes: `hosts`: with a core each; milliseconds for a sample of a core (`cpu_ms`: of the stage that may move)
    and of the device."""

    hosts: int
    reading_ms: float
    cpu_ms: float
    device_ms: float
    step_ms: float


CONSTELLATIONS = {
    "alone, light": Constellation(0, 1, 2, 0.5, 10),
    "alone, dear, a fast device": Constellation(0, 2, 30, 0.5, 4),
    "alone, dear, a slow device": Constellation(0, 2, 30, 10, 4),
    "alone, balanced": Constellation(0, 4, 8, 3, 5),
    "1 host, light": Constellation(1, 2, 4, 2, 4),
    "1 host, dear, a fast device": Constellation(1, 2, 40, 1, 5),
    "2 hosts, dear, a slow device": Constellation(2, 2, 20, 8, 4),
    "2 hosts, balanced": Constellation(2, 5, 10, 2, 4),
    "4 hosts, light": Constellation(4, 2, 6, 2, 5),
    "4 hosts, dear, a fast device": Constellation(4, 3, 40, 2, 6),
    "8 hosts that suffice": Constellation(8, 2, 20, 3, 5),
    "8 hosts, dear, a slow device": Constellation(8, 2, 60, 20, 3),
}


def wait_for_the_device() -> None:
    """Until the run before has let go of it."""
    import ray

    while not ray.available_resources().get(EMULATED_GPU):
        time.sleep(0.1)


def measured(of: Constellation, on: str, placement: str, seconds: float, warm_s: float, told: list[str]) -> dict:
    """Samples a second of a run on the cluster that this process is connected to.

    Args:
        on: where the dear stage runs: `cpu`, `device`, or `auto`.
        told: what was decided is put there.
    """
    wait_for_the_device()
    dear = waiting("dear", of.cpu_ms, of.device_ms)
    placed = {"cpu": on_cpu, "device": on_device, "auto": lambda stage: stage}[on]
    with tempfile.TemporaryDirectory(prefix="raytrain-placement-") as folder:
        into = Path(folder) / "seen.json"
        job = Job.from_dict(
            {
                "name": "placement",
                "run_dir": folder,
                "training": {"epochs": 1000},
                "cluster": {"placement": placement, "reserved_cpus": 0},
            }
        )
        pipeline = Pipeline(Numbers(SAMPLES), [waiting("reading", of.reading_ms, None), placed(dear)], batch_size=BATCH)
        record = run(emulated_step(of.step_ms, seconds, warm_s, into), pipeline, job)
        seen = json.loads(into.read_text())
    told += [each.text for each in record.placements]
    return {"samples_per_s": seen["samples"] / seen["seconds"], "decisions": len(record.placements)}


def variants_of(of: Constellation, seconds: float, looked_s: float, told: list[str], smoke: bool) -> dict[str, Any]:
    warm_s = (1.0 if smoke else WARM_S) + A_HOST_S * of.hosts
    places = {"everywhere": "anywhere", **({"cpu hosts": "cpu-groups-only"} if of.hosts else {})}
    fixed = {
        f"{on}, {where}": lambda on=on, how=how: measured(of, on, how, seconds, warm_s, told)
        for on in ("cpu", "device")
        for where, how in places.items()
    }
    if smoke:
        fixed = {"device, everywhere": fixed["device, everywhere"]}
    return {**fixed, "auto": lambda: measured(of, "auto", "auto", seconds, warm_s + looked_s, told)}


def kept_but(names: Sequence[str]) -> tuple[dict, dict, dict]:
    """Rows, ratios and decisions of constellations that are not measured now."""
    path = RESULTS / "placement.json"
    before = json.loads(path.read_text()) if path.exists() else {"rows": {}, "ratios": {}, "about": {"decisions": {}}}

    def but(tree: dict) -> dict:
        return {key: value for key, value in tree.items() if key.split(":")[0] not in names}

    return but(before["rows"]), but(before["ratios"]), but(before["about"]["decisions"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    only = "of the constellations; the results of the others stay"
    parser.add_argument("--only", nargs="*", choices=list(CONSTELLATIONS), help=only)
    parser.add_argument("--smoke", action="store_true", help="one of them, briefly; nothing written")
    arguments = parser.parse_args()
    names = arguments.only or (["alone, dear, a fast device"] if arguments.smoke else list(CONSTELLATIONS))
    seconds, looked_s = (2.0, 4.0) if arguments.smoke else (MEASURED_S, LOOKED_S)
    prepare_environment()
    all_rows, ratios, texts = kept_but(names)
    for name in names:
        of, told = CONSTELLATIONS[name], []
        nodes = "gpu=1x2x1" + (f",cpu={of.hosts}x1" if of.hosts else "")
        cluster = local.start(parse_nodes(nodes))
        try:
            rows = interleave(
                variants_of(of, seconds, looked_s, told, arguments.smoke), 1 if arguments.smoke else arguments.rounds
            )
        finally:
            cluster.close()
        fixed = {each: [row["samples_per_s"] for row in rows[each]] for each in rows if each != "auto"}
        best = max(fixed, key=lambda each: sum(fixed[each]))
        found = ratio(rows, "samples_per_s", "auto", best)
        print(f"{name}: auto / {best}, samples_per_s {found}", *told, sep="\n  ", flush=True)
        all_rows |= {f"{name}: {each}": row for each, row in rows.items()}
        ratios[f"{name}: auto / the best fixed ({best}), samples a second"] = found
        texts[name] = told
        if not arguments.smoke:  # what is there is kept if a later one fails
            about = {"constellations": {name: vars(each) for name, each in CONSTELLATIONS.items()}, "decisions": texts}
            print(write("placement", all_rows, ratios, emulated="stages and steps are sleeps", **about))


if __name__ == "__main__":
    main()
