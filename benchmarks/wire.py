"""What a batch from another host costs the training host: CPU seconds of its processes for a gigabyte.

    python benchmarks/wire.py [--rounds 3] [--smoke]

Two Ray nodes on this machine, each with an object store of its own: batches are made on one and trained on at the
other, so that all of them go over TCP (the loopback interface: no driver of a network card is in the figures). Then
they are made on both. The step does nothing. `chunk` is Ray's object_manager_default_chunk_size.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from harness import interleave, ratio, write

SHAPE, BATCH = (224, 224, 3), 64
CHUNKS_MB = (5, 16, 64)  # Ray's own is 5
WARM_S, MEASURED_S = 6.0, 15.0


class Copies:
    """Sample i is a copy of one image, which costs next to nothing."""

    def __init__(self, count: int):
        self._count, self._image = count, np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self._image.copy(), "label": index % 10}


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def loop(into: Path, warm_s: float, seconds: float, ctx: Any) -> None:
    """Counts bytes, and CPU seconds of this rank and of the raylet that it belongs to (its object manager)."""
    rank = psutil.Process()
    raylet = next(each for each in rank.parents() if "raylet" in each.name())
    began, before, received = time.monotonic(), None, 0
    for _ in ctx.epochs():
        for batch in ctx.batches("train"):
            received += batch.image.numel() if before else 0  # a byte each as it was sent
            ctx.report(0.0)
            now = time.monotonic()
            if before is None and now - began >= warm_s:
                before = (now, cpu_s(rank), cpu_s(raylet))
            elif before is not None and now - before[0] >= seconds:
                spent = {"rank_s": cpu_s(rank) - before[1], "raylet_s": cpu_s(raylet) - before[2]}
                into.write_text(json.dumps({"bytes": received, "seconds": now - before[0], **spent}))
                return


def child(placement: str, warm_s: float, seconds: float) -> None:
    """One run, in a process of its own, since Ray reads its settings when it starts."""
    from functools import partial

    from raytrain import Job, Pipeline
    from raytrain.config.data import Arrival
    from raytrain.run.driver import run

    with tempfile.TemporaryDirectory(prefix="raytrain-wire-") as folder:
        into = Path(folder) / "seen.json"
        job = {"name": "wire", "run_dir": folder, "training": {"epochs": 1000}, "cluster": {"placement": placement}}
        pipeline = Pipeline(Copies(20_000), batch_size=BATCH, fields={"image": Arrival(dtype="uint8")})
        nodes = "gpu=1x1,cpu=1x1"
        run(partial(loop, into, warm_s, seconds), pipeline, Job.from_dict(job), nodes=nodes)
        seen = json.loads(into.read_text())
    gigabytes = seen["bytes"] / 1e9
    figures = {"gb_per_s": gigabytes / seen["seconds"]}
    figures |= {f"{who}_cpu_s_per_gb": seen[f"{who}_s"] / gigabytes for who in ("rank", "raylet")}
    figures["cpu_s_per_gb"] = figures["rank_cpu_s_per_gb"] + figures["raylet_cpu_s_per_gb"]
    print(json.dumps(figures))


def measured(placement: str, chunk_mb: int, smoke: bool) -> dict[str, float]:
    environment = {**os.environ, "RAY_object_manager_default_chunk_size": str(chunk_mb << 20)}
    command = [sys.executable, __file__, "--child", placement, *(["--smoke"] if smoke else [])]
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    if finished.returncode:
        raise SystemExit(finished.stderr)
    return json.loads(finished.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="one round, briefly; nothing written")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return child(arguments.child, *((2.0, 3.0) if arguments.smoke else (WARM_S, MEASURED_S)))
    chunks = CHUNKS_MB[:1] if arguments.smoke else CHUNKS_MB
    variants = {
        f"from another node, chunk {mb} MB": lambda mb=mb: measured("cpu-groups-only", mb, arguments.smoke)
        for mb in chunks
    }
    if not arguments.smoke:
        variants["from both nodes"] = lambda: measured("anywhere", CHUNKS_MB[0], arguments.smoke)
    rows = interleave(variants, 1 if arguments.smoke else arguments.rounds)
    usual = next(iter(variants))
    ratios = {
        f"{name} / {usual}, CPU seconds of the training host a GB": ratio(rows, "cpu_s_per_gb", name, usual)
        for name in variants
        if name != usual
    }
    for name, found in ratios.items():
        print(name, found)
    if not arguments.smoke:
        print(write("wire", rows, ratios, batch=BATCH, shape=SHAPE))
    return None


if __name__ == "__main__":
    main()
