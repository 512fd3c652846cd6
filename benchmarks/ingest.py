"""From sample ids to batches in the training loop: how close to what the CPUs can do, and against what else there is.

    python benchmarks/ingest.py [--workloads blur photographs ...] [--rounds 5] [--photographs FOLDER] [--public]
                                [--smoke]

Every contender prepares the same samples with the same function (workloads.py), in a process tree of its own, one
after the other, round by round:

    raw            the bare transform in as many processes as there are cores, nothing delivered: the limit
    raw_tuned      the same with the allocator that raytrain sets
    dataloader     torch's DataLoader as one writes it, with the worker count that was best in a first try
    dataloader_tuned
    ray_data       range -> map_batches -> map_batches -> iter_torch_batches, defaults, workers warm
    raytrain       feed and rank as in a run, workers warm
    raytrain_public  the same through Ray's public API alone (with --public)

On `jpegs` (small photographs, squeezed to 224 and delivered as uint8) each decodes and resizes in its own way:

    dataloader          OpenCV, bilinear without antialiasing
    dataloader_pillow   Pillow, antialiased
    spdl                SPDL's threads, FFmpeg's decoder and scaler (if installed: pip install spdl-io, Debian's ffmpeg)
    raytrain_float      raytrain whose CPU rank makes float32 of it, channels first

On `crops` (large photographs, a random part resized to 96) raytrain decodes at a scale; raw decodes whole and averages
areas, as raytrain did. `record` has an image, a mask and three numbers, `one_image` one image of as many bytes.

Samples a second are those of the steady state (without the first fifth and the last tenth of the batches). Plain Ray
Data has none in runs of this length: its few tasks hand over what they have made when they end, in one burst. So it is
held against raytrain, and against the limit, by the whole run.

`own_blur` is the workload `blur` with raytrain's blur in place of torchvision's: only raytrain and raw prepare it, and
it is held against what the others make of `blur`. CPU seconds outside the transform are those of the whole process
tree, less what raw (the better one) needs a sample.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness import figures_of, interleave, ratio, spread, write
from workloads import WORKLOADS

from raytrain.cluster import hardware
from raytrain.cluster.environment import ALLOCATOR, PUBLIC_RAY, child_environment

CONTENDERS = Path(__file__).with_name("contenders.py")
TUNED = {"raw_tuned": "raw", "dataloader_tuned": "dataloader"}
PUBLIC = "raytrain_public"
ORDER = ("raw", "raw_tuned", "dataloader", "dataloader_tuned", "ray_data", "raytrain")
OTHERS = {
    "own_blur": ("raw", "raw_tuned", "raytrain"),
    "one_image": ("raw", "raw_tuned", "raytrain"),
    "record": ("raw", "raw_tuned", "raytrain"),
    "crops": ("raw", "raw_tuned", "raytrain"),
    "jpegs": (*ORDER[:4], "dataloader_pillow", "spdl", "raytrain", "raytrain_float"),
}
BEST = "best of the others"
RATE, WHOLE_RATE, CPU = "samples_per_s", "whole_samples_per_s", "cpu_s_per_sample"
TIMEOUT_S = 600
SMOKE = {"epochs": 1, "batch_size": 2, "num_samples": 20}


def contenders_of(workload: str, public: bool) -> tuple[str, ...]:
    known = OTHERS.get(workload, ORDER)
    if find_spec("spdl") is None:
        known = tuple(name for name in known if name != "spdl")
    return (*known, PUBLIC) if public else known


def run(contender: str, workload: str, options: dict[str, Any]) -> dict[str, float]:
    """One contender in a new process; `raytrain` sets its allocator itself, as in a run."""
    own = {PUBLIC_RAY: str(int(contender == PUBLIC))}
    environment = child_environment({**own, **(ALLOCATOR if contender in TUNED else {})})
    name = {**TUNED, PUBLIC: "raytrain"}.get(contender, contender)
    command = [sys.executable, str(CONTENDERS), name, json.dumps({"workload": workload, **options})]
    return figures_of(f"{contender} on {workload}", command, TIMEOUT_S, env=environment)


def best_worker_count(workload: str, options: dict[str, Any]) -> int:
    """Of one less than the cores, as many, and one more; by a shorter run each."""
    cores = hardware.usable_cpus()
    short = {**options, "epochs": max(options.get("epochs", WORKLOADS[workload].epochs) // 3, 1)}
    rates = {
        workers: run("dataloader", workload, {**short, "workers": workers})[RATE]
        for workers in range(max(cores - 1, 1), cores + 2)
    }
    print(f"{workload}: DataLoader by worker count: {rates}", flush=True)
    return max(rates, key=rates.get)


def with_limit(rows: dict[str, list[dict[str, float]]]) -> None:
    """Add `limit`, the better raw of each round, and what the others' CPUs did outside the transform."""
    better = [max(pair, key=lambda row: row[RATE]) for pair in zip(rows["raw"], rows["raw_tuned"], strict=True)]
    rows["limit"] = [{**row, WHOLE_RATE: row[RATE]} for row in better]  # nothing is started before it is timed
    for name in set(rows) - {"raw", "raw_tuned", "limit"}:
        for row, limit in zip(rows[name], rows["limit"], strict=True):
            row["cpu_s_per_sample_outside"] = row[CPU] - limit[CPU]


def rate_of(contender: str) -> tuple[str, str]:
    """The figure that a contender is compared by, and its words."""
    return (WHOLE_RATE, "samples/s from the start") if contender == "ray_data" else (RATE, "samples/s")


def ratios_of(rows: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    ours = tuple(name for name in ("raytrain", "raytrain_float", PUBLIC) if name in rows)
    others = [name for name in rows if name not in (*ours, "raw", "raw_tuned", "limit")]
    found = {}
    if others and "ray_data" not in rows:
        each_round = zip(*(rows[name] for name in others), strict=True)
        best = {**rows, BEST: [max(round_, key=lambda row: row[RATE]) for round_ in each_round]}
        found |= {f"{name} / {BEST}, samples/s": ratio(best, RATE, name, BEST) for name in ours}
    for name in (*others, *ours):
        rate, words = rate_of(name)
        found[f"{name} / limit, {words}"] = ratio(rows, rate, name, "limit")
    for name in others:
        rate, words = rate_of(name)
        found[f"raytrain / {name}, {words}"] = ratio(rows, rate, "raytrain", name)
    if "ray_data" in rows:
        found["ray_data / raytrain, seconds to the first batch"] = ratio(rows, "first_batch_s", "ray_data", "raytrain")
    if PUBLIC in rows:
        found[f"{PUBLIC} / raytrain, samples/s"] = ratio(rows, RATE, PUBLIC, "raytrain")
    for name in (*others, *ours):
        for figure in ("first_batch_s", "peak_memory_bytes", "cpu_s_per_sample_outside", "bytes_per_sample"):
            found[f"{name}, {figure}"] = spread([row[figure] for row in rows[name]])
    return found


def own_blur_against_torchvision(rows: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The reference workload in the loop: raytrain's blur against torchvision's with the default allocator."""
    own = {"own": rows["own_blur"]["raytrain"]}
    others = {name: rows["blur"][name] for name in ("dataloader", "ray_data", "raw")}
    found = {}
    for name in others:
        rate, words = rate_of(name)
        found[f"raytrain's own blur / torchvision's by {name}, {words}"] = ratio(own | others, rate, "own", name)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--photographs", help="a folder of class folders, in place of generated photographs")
    parser.add_argument("--public", action="store_true", help="also raytrain through Ray's public API alone")
    parser.add_argument("--smoke", action="store_true", help="one short round of digits, nothing written")
    arguments = parser.parse_args()
    workloads = arguments.workloads or (["digits"] if arguments.smoke else list(WORKLOADS))
    options: dict[str, Any] = dict(SMOKE) if arguments.smoke else {}
    variants = {}
    for workload in workloads:
        WORKLOADS[workload].open()  # writes its files
        own = {**options, "folder": arguments.photographs if workload == "photographs" else None}
        compares = "dataloader" in contenders_of(workload, arguments.public)
        workers = best_worker_count(workload, own) if compares and not arguments.smoke else 2
        for name in contenders_of(workload, arguments.public):
            chosen = (name, workload, {**own, "workers": workers})
            variants[f"{workload}: {name}"] = lambda chosen=chosen: run(*chosen)
    flat = interleave(variants, 1 if arguments.smoke else arguments.rounds)
    rows = {w: {name: flat[f"{w}: {name}"] for name in contenders_of(w, arguments.public)} for w in workloads}
    ratios: dict[str, Any] = {}
    for workload in workloads:
        with_limit(rows[workload])
        ratios[workload] = ratios_of(rows[workload])
    if {"blur", "own_blur"} <= set(rows):
        ratios["own_blur"] |= own_blur_against_torchvision(rows)
    if {"one_image", "record"} <= set(rows):
        both = {name: rows[name]["raytrain"] for name in ("record", "one_image")}
        ratios["record"]["raytrain, record / one_image, samples/s"] = ratio(both, RATE, "record", "one_image")
        ratios["record"]["raytrain, record / one_image, CPU seconds"] = ratio(both, CPU, "record", "one_image")
    for workload, found in ratios.items():
        for name, values in found.items():
            print(f"{workload}: {name}", {key: float(f"{value:.4g}") for key, value in values.items()})
    if not arguments.smoke:
        about = {name: {"batch_size": WORKLOADS[name].batch_size} for name in workloads}
        print(write("ingest", rows, ratios, rounds=arguments.rounds, workloads=about))


if __name__ == "__main__":
    main()
