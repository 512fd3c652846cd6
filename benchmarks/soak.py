"""A training of two ranks that is damaged on purpose for half an hour: nothing is lost, and no process grows.

Three CPU hosts and two hosts of a rank, emulated on this machine: real Ray nodes, real kills. Faults come at steps that
a seed has drawn: of CPU hosts and workers, a worker that is killed (as by the OOM killer) or stopped for some seconds,
or a host that dies and is replaced; of ranks, one that is killed, or its host. Then the same job without faults.

    python benchmarks/soak.py                    120 faults of CPUs and 15 of ranks, 30 minutes or more
    python benchmarks/soak.py --smoke            a minute, nothing written
    python benchmarks/soak.py --scenario NAME    one damage of its own (--scenario list), written to results/damage.json

What must hold: every id of every epoch consumed exactly once, as counted from the restored checkpoints; each step has
the samples that it has without faults, and its loss; the memory of every process that lives long enough is flat.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # the job names its loop `counted:train`

import psutil
from counted import Nodes, Trace, job_tree, processes, slope
from harness import write

from raytrain.cluster import local
from raytrain.cluster.environment import prepare_environment
from raytrain.config.cluster import parse_nodes
from raytrain.config.job import Job
from raytrain.record.status import Status
from raytrain.run.driver import run

NODES = "gpu=2x1x1,cpu=3x1"
NUM_SAMPLES = 2400
STEPS_AN_EPOCH = 75  # of two ranks with batches of 16
QUIET_STEPS = 20  # at either end without a fault
SAMPLE_EVERY_S = 5.0
GROWTH_MB, GROWTH_SHARE = 40.0, 0.10  # of a process's memory, over the second half of a run
LONG_LIVED_SHARE = 0.5  # of the run
LOSS_DIFFERS = 1e-3  # two ranks add up their gradients in any order
CPU_FAULTS = {"kill a worker": 0.6, "stop a worker": 0.1, "kill a CPU host": 0.3}
RANK_FAULTS = {"kill a rank": 0.67, "kill a rank's host": 0.33}


@dataclass
class Fault:
    """Attributes: `step`: of the furthest rank, from which it is due."""

    step: int
    kind: str
    at_s: float | None = None
    victim: str = ""


def drawn(seed: int, steps: int, cpu: int, ranks: int) -> list[Fault]:
    rng = random.Random(seed)
    kinds = [
        rng.choices([*of], [*of.values()])[0] for of, n in ((CPU_FAULTS, cpu), (RANK_FAULTS, ranks)) for _ in range(n)
    ]
    at = sorted(rng.sample(range(QUIET_STEPS, steps - QUIET_STEPS), len(kinds)))
    rng.shuffle(kinds)
    return [Fault(step, kind) for step, kind in zip(at, kinds, strict=True)]


@dataclass
class Damage(threading.Thread):
    """Does what is due, one after the other; its thread looks at the memory of every process.

    Attributes:
        memory: MB by process, as (seconds, value).
    """

    nodes: Nodes
    faults: list[Fault]
    seed: int
    memory: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    over: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)
        self._rng, self._began, self._left = random.Random(self.seed), time.monotonic(), list(self.faults)

    __hash__ = threading.Thread.__hash__

    def run(self) -> None:
        while not self.over.wait(SAMPLE_EVERY_S):
            self._look(time.monotonic() - self._began)

    def act(self, steps: int) -> None:
        """In the main thread, without which Ray starts no node.

        Args:
            steps: of the furthest rank.
        """
        if not self._left or steps < self._left[0].step:
            return
        fault, now = self._left[0], time.monotonic() - self._began
        victim = self._do(fault.kind)
        if victim is not None:
            self._left.pop(0)
            fault.at_s, fault.victim = round(now, 1), victim
            print(f"{now:7.1f} s  step {steps:6}  {fault.kind}: {victim}", flush=True)

    def _do(self, kind: str) -> str | None:
        """Who was hit; None if there is nobody to hit now."""
        if kind in ("kill a CPU host", "kill a rank's host"):
            group = "cpu" if kind == "kill a CPU host" else "gpu"
            found = self.nodes.ids(group)
            if not found:
                return None
            victim = self._rng.choice(found)
            self.nodes.kill(victim)
            self.nodes.add(group, 1, gpus=group == "gpu")
            return victim
        found = processes().get("rank" if kind == "kill a rank" else "worker", [])
        if not found:
            return None
        process = self._rng.choice(found)
        try:
            if kind == "stop a worker":
                process.suspend()
                threading.Timer(4.0, _resume, (process,)).start()
            else:
                process.send_signal(signal.SIGKILL)
        except psutil.Error:
            return None
        return f"process {process.pid}"

    def _look(self, now: float) -> None:
        of = {"driver": [psutil.Process()], **processes()}
        for kind, each in of.items():
            for process in each:
                try:
                    memory = process.memory_full_info().uss / 1e6
                except (psutil.Error, AttributeError):
                    continue
                self.memory.setdefault(f"{kind} {process.pid}", []).append((round(now, 1), round(memory, 1)))


def _resume(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.Error):
        process.resume()


def trained(
    folder: Path, steps: int, pace_s: float, faults: list[Fault], seed: int
) -> tuple[dict[str, Any], Damage, Any]:
    """One run: what came of it, who damaged it, and the samples and loss of each step."""
    (folder / "pace_s").write_text(str(pace_s))
    running = local.start(parse_nodes(NODES))
    damage = Damage(Nodes(running), faults, seed)
    told: list[str] = []

    def watch(news: str | Status) -> None:
        if isinstance(news, str):
            told.append(news)
        elif news.progress:
            damage.act(max(each.step for each in news.progress.values()))

    began = time.monotonic()
    damage.start()
    try:
        record = run(None, None, Job.from_dict(job_tree(folder, NUM_SAMPLES, steps=steps)), watch=watch)
    finally:
        damage.over.set()
        damage.join(30)
        running.close()
    trace = Trace(folder)
    by_step = trace.by_step()
    found = {
        "wall_s": round(time.monotonic() - began, 1),
        "status": record.status,
        "attempts": record.totals.attempts,
        "steps": trace.steps,
        "steps_done_again": trace.done_again,
        "samples": sum(len(line["ids"]) for line in trace.counted()),
        "wrong": trace.wrong(NUM_SAMPLES, steps // STEPS_AN_EPOCH),
        "corrupt": record.corrupt.train,
        "told": told[-20:],
    }
    return found, damage, by_step


def growth(damage: Damage) -> dict[str, dict[str, float]]:
    """Of every process that lived for long: MB in the middle and at the end of the run, and an hour's growth."""
    end = max((at for rows in damage.memory.values() for at, _ in rows), default=0.0)
    found = {}
    for name, rows in damage.memory.items():
        late = [row for row in rows if row[0] >= end * LONG_LIVED_SHARE]
        if late and late[0][0] <= end * 0.6 and late[-1][0] >= end * 0.95:
            middle, last = (sum(v for _, v in part) / len(part) for part in (late[:6], late[-6:]))
            found[name] = {"middle_mb": middle, "end_mb": last, "mb_per_hour": slope(late)}
    return found


def wrong_in(damaged: dict[str, Any], plain: dict[str, Any], grown: dict[str, dict[str, float]]) -> list[str]:
    """What does not hold of what must."""
    found = [f"{name}: {each}" for name, row in (("damaged", damaged), ("plain", plain)) for each in row["wrong"]]
    found += [
        f"{name}: {damaged[name]}, not {plain[name]}" for name in ("steps", "samples") if damaged[name] != plain[name]
    ]
    found += [f"{damaged['corrupt']} samples were left out"] if damaged["corrupt"] else []
    if damaged["steps_of_other_samples"] or damaged["largest_loss_difference"] > LOSS_DIFFERS:
        found.append("steps have other samples or losses than without faults")
    for name, row in grown.items():
        if row["end_mb"] - row["middle_mb"] > max(GROWTH_MB, GROWTH_SHARE * row["middle_mb"]):
            found.append(f"{name} grew from {row['middle_mb']:.0f} to {row['end_mb']:.0f} MB")
    return found


def soak(arguments: argparse.Namespace) -> int:
    cpu, ranks = (4, 2) if arguments.smoke else (arguments.cpu_faults, arguments.rank_faults)
    epochs = 4 if arguments.smoke else max(int(arguments.minutes * 60 / (arguments.step_s * STEPS_AN_EPOCH)), 4)
    steps, pace_s = epochs * STEPS_AN_EPOCH, 0.05 if arguments.smoke else arguments.step_s
    faults = drawn(arguments.seed, steps, cpu, ranks)
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        damaged, damage, seen = trained(Path(one), steps, pace_s, faults, arguments.seed)
        plain, _, other_seen = trained(Path(other), steps, 0.0, [], arguments.seed)
    grown = growth(damage)
    pairs = list(zip(seen, other_seen, strict=False))
    damaged["steps_of_other_samples"] = sum(ids != others for (ids, _), (others, _) in pairs)
    damaged["largest_loss_difference"] = max(abs(a - b) for (_, a), (_, b) in pairs)
    undone = [fault.kind for fault in faults if fault.at_s is None]
    problems = wrong_in(damaged, plain, grown) + ([f"not done: {undone}"] if undone else [])
    print(json.dumps({"damaged": damaged, "plain": plain, "grown": grown}, indent=1))
    print(f"faults: {len(faults) - len(undone)} of {len(faults)}; wrong: {problems or 'nothing'}")
    if not arguments.smoke:
        rows = {"damaged": damaged, "plain": plain, "memory": grown, "faults": [asdict(fault) for fault in faults]}
        write("soak", rows, {}, seed=arguments.seed, nodes=NODES, command=sys.argv, wrong=problems)
    return 1 if problems else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=30.0, help="of steps; recovering comes on top")
    parser.add_argument("--step-s", type=float, default=0.15, help="a step takes at least")
    parser.add_argument("--cpu-faults", type=int, default=120)
    parser.add_argument("--rank-faults", type=int, default=15)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--scenario", help="one of those that `list` names")
    arguments = parser.parse_args()
    prepare_environment()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    if arguments.scenario:
        from damage import scenario

        raise SystemExit(scenario(arguments.scenario))
    raise SystemExit(soak(arguments))


if __name__ == "__main__":
    main()
