"""How near the tuner's pick comes to the best of a whole grid, measured for real: a small ViT, the model alone.

    python benchmarks/tuning.py [--seconds 0.5] [--rounds 5] [--seeds 20] [--backends eager onnx openvino] [--smoke]

Every setting of a grid of 210 (on two cores, with glibc's allocator) is measured, in an order by chance; the tuner
searches the same grid anew with a tenth of it. Then its pick and the grid's best others are measured again, for longer
and in turn, since whatever led after one short measurement was lucky as well. `replayed` is the search on the figures
of the grid, with several seeds, against the best of them: what it picks on a machine that is just like that.

torch.compile, which takes 20 to 40 seconds to start, is left out of the usual grid; `--backends` has it.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from harness import interleave, ratio, spread, write

from raytrain.config.inference import PredictionJob
from raytrain.infer.contract import Setting, Timed
from raytrain.infer.tune.on_host import OnHost
from raytrain.infer.tune.search import Goal, Limits, Measured, Refused, search
from raytrain.infer.tune.space import space_of
from raytrain.infer.tune.tuned import said

SIDE = 96
BACKENDS = ("eager", "onnx", "openvino")
BATCHES = (1, 2, 4, 8, 16)
BEST = 3  # of the grid, that are measured again beside the pick
LONGER = 6.0  # than at first
WITHIN = 0.95  # of the best


def job(backends: Sequence[str], batches: Sequence[int], **more: Sequence[Any]) -> PredictionJob:
    tune = {"backends": backends, "batch_sizes": batches, **more}
    return PredictionJob.from_dict(
        {
            "name": "tuning",
            "model": {"name": "vit_tiny_patch16_224", "options": {"img_size": SIDE, "depth": 6}, "inputs": "image"},
            "data": {"source": {"kind": "synthetic", "num_samples": 32, "shape": [SIDE, SIDE, 3]}},
            "inference": {"device": "cpu"},
            "tune": tune,
            "run_dir": "/tmp/raytrain-benchmark-tuning",
        }
    )


def exhaustive(host: OnHost, settings: list[Setting], seconds: float) -> dict[Setting, Measured]:
    """Each once."""
    found: dict[Setting, Measured] = {}
    shuffled, began = settings[:], time.monotonic()
    random.Random(0).shuffle(shuffled)
    for number, setting in enumerate(shuffled):
        found[setting] = host.model(setting, seconds)
        if number % 20 == 0:
            print(f"{number}/{len(settings)} after {time.monotonic() - began:.0f} s: {said(setting)}", flush=True)
    return found


def replayed(grid: dict[Setting, Measured], seeds: int) -> list[dict[str, float]]:
    """The search on figures that are known, by seed."""
    best = max(each.samples_per_s for each in grid.values() if isinstance(each, Timed))
    rows = []
    for seed in range(seeds):
        limits = Limits(limit(len(grid)), 1e9, 1.0)
        found = search(list(grid), lambda setting, _: grid[setting], Goal(), limits, seed=seed, clock=lambda: 0.0)
        pick = grid[found.leaders[0]]
        assert isinstance(pick, Timed)
        rows.append({"share_of_best": pick.samples_per_s / best, "tried": found.tried})
    return rows


def limit(settings: int) -> int:
    return max(settings // 10, 2)


def figures(measured: Measured) -> dict[str, float]:
    if isinstance(measured, Refused):
        raise SystemExit(f"what was possible before is not any more: {measured.reason}")
    return {"samples_per_s": measured.samples_per_s, "p95_s": measured.percentile(0.95)}


def row_of(setting: Setting, measured: Measured) -> dict[str, object]:
    figure = {"refused": measured.reason} if isinstance(measured, Refused) else figures(measured)
    return {**asdict(setting), **figure, "wall_s": measured.wall_s}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.5, help="of a measurement of the grid")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--backends", nargs="+", default=list(BACKENDS))
    parser.add_argument("--smoke", action="store_true", help="a few settings, nothing written")
    asked = parser.parse_args()
    if asked.smoke:
        asked.seconds, asked.rounds, asked.seeds = 0.1, 1, 2
        few = {"allocators": ["default"], "precisions": ["fp32"], "streams": [[1, 1]]}
        wanted = job(["eager"], [1, 2, 4], **few)
    else:
        wanted = job(asked.backends, BATCHES)
    with OnHost(wanted) as host:
        settings = space_of(wanted.tune, wanted.inference, host.machine).settings
        print(f"{len(settings)} settings on {host.machine.cores} cores", flush=True)
        grid = exhaustive(host, settings, asked.seconds)
        limits = Limits(limit(len(settings)), 1e9, asked.seconds)
        began = time.monotonic()
        found = search(settings, host.model, Goal(), limits)
        took_s = time.monotonic() - began
        ordered = sorted(grid, key=lambda each: -rate(grid[each]))
        pick = found.leaders[0]
        print(f"the tuner tried {found.tried} of {len(settings)} in {took_s:.0f} s and picked {said(pick)}")
        others = [each for each in ordered if each != pick][:BEST]
        again = {"pick": pick, **{f"grid {number + 1}": each for number, each in enumerate(others)}}
        print({name: said(each) for name, each in again.items()}, flush=True)
        longer_s = LONGER * asked.seconds
        variants = {name: lambda each=each: figures(host.model(each, longer_s)) for name, each in again.items()}
        rows = interleave(variants, asked.rounds)
    median = {name: spread([row["samples_per_s"] for row in rows[name]])["median"] for name in rows}
    best = max(median, key=lambda name: median[name])
    replays = replayed(grid, asked.seeds)
    shares = [row["share_of_best"] for row in replays]
    ratios = {
        "the pick / the best of the grid, samples_per_s": ratio(rows, "samples_per_s", "pick", best),
        f"replayed with {asked.seeds} seeds, the pick / the best of the grid": spread(shares),
        f"replayed, share of seeds within {1 - WITHIN:.0%}": spread([sum(s >= WITHIN for s in shares) / len(shares)]),
    }
    for name, value in ratios.items():
        print(name, {key: round(each, 3) for key, each in value.items()})
    if not asked.smoke:
        rows_of = {"grid": [row_of(*each) for each in grid.items()], "replayed": replays, **rows}
        about = {"settings": len(settings), "tried": found.tried, "search_s": took_s, "best": best}
        print(write("tuning", rows_of, ratios, **about, again={name: said(each) for name, each in again.items()}))


def rate(measured: Measured) -> float:
    return 0.0 if isinstance(measured, Refused) else measured.samples_per_s


if __name__ == "__main__":
    main()
