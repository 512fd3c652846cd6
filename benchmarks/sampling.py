"""What a sampler costs: CPU time of its process, and of the thread in it that reads.

    python benchmarks/sampling.py [--rounds 3] [--seconds 60] [--smoke]

Two actors on this machine as one Ray node, one after the other, round by round: the sampler, and one without its
thread, which answers the same questions. Both are asked as often as a run asks, and have settled when the clock starts.
"""

from __future__ import annotations

import argparse
import threading
import time
from typing import Any

import psutil
from harness import interleave, ratio, spread, write

from raytrain.cluster import local
from raytrain.cluster.environment import prepare_environment
from raytrain.cluster.load import Sampler
from raytrain.record.rows import Answer
from raytrain.record.schema import POINTS
from raytrain.run.load import ASK_EVERY_S

SETTLE_S = 5.0


def reading_s(_: Any) -> float:
    """CPU seconds of the sampler's thread, asked in its process."""
    threads = [t for t in threading.enumerate() if t.name == "raytrain-sampler"]
    return sum(time.clock_gettime(time.pthread_getcpuclockid(t.ident)) for t in threads)


class Idle:
    """The sampler without its thread."""

    def __init__(self, most: int):
        pass

    def rows(self, readings_a_row: int, known: int) -> Answer:
        return readings_a_row, known, []


def measure(kind: type[Any], seconds: float) -> dict[str, float]:
    """One actor. Percent of a core, MiB."""
    import ray

    actor = ray.remote(num_cpus=0, max_restarts=0, enable_task_events=False)(kind).remote(2 * POINTS)
    process = psutil.Process(ray.get(actor.__ray_call__.remote(lambda _: psutil.Process().pid)))
    time.sleep(min(SETTLE_S, seconds))
    before, read_before = process.cpu_times(), ray.get(actor.__ray_call__.remote(reading_s))
    began, known = time.monotonic(), 0
    while (left := began + seconds - time.monotonic()) > 0:
        time.sleep(min(ASK_EVERY_S, left))
        _, _, rows = ray.get(actor.rows.remote(1, known))
        known += len(rows)
    after, elapsed = process.cpu_times(), time.monotonic() - began
    reading = ray.get(actor.__ray_call__.remote(reading_s)) - read_before
    memory = process.memory_full_info().uss / 2**20
    ray.kill(actor)
    process.wait(10)
    used = after.user + after.system - before.user - before.system
    return {
        "percent_of_a_core": 100 * used / elapsed,
        "reading_percent": 100 * reading / elapsed,
        "own_memory_mib": memory,
        "rows": known,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--smoke", action="store_true", help="one round of three seconds, nothing written")
    arguments = parser.parse_args()
    rounds, seconds = (1, 3.0) if arguments.smoke else (arguments.rounds, arguments.seconds)
    prepare_environment()
    cluster = local.start(())
    try:
        kinds = {"sampler": Sampler, "idle": Idle}
        rows = interleave({name: lambda kind=kind: measure(kind, seconds) for name, kind in kinds.items()}, rounds)
    finally:
        cluster.close()
    shares = {name: [row["percent_of_a_core"] for row in found] for name, found in rows.items()}
    figures = {
        "sampler, process and all, percent of a core": spread(shares["sampler"]),
        "idle actor, percent of a core": spread(shares["idle"]),
        "sampling alone, percent of a core": spread([row["reading_percent"] for row in rows["sampler"]]),
        "sampler / idle actor, own memory": ratio(rows, "own_memory_mib", "sampler", "idle"),
    }
    for name, values in figures.items():
        print(name, {key: round(value, 3) for key, value in values.items()})
    if not arguments.smoke:
        print(write("sampling", rows, figures, seconds=seconds, rounds=rounds))


if __name__ == "__main__":
    main()
