"""One damage each, on emulated or simulated hosts: `python benchmarks/soak.py --scenario NAME`."""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from counted import Nodes, Trace, job_tree
from harness import RESULTS, write

from raytrain.cluster import local
from raytrain.config.cluster import parse_nodes
from raytrain.config.job import Job
from raytrain.errors import RaytrainError
from raytrain.record.schema import read_record
from raytrain.record.status import Status
from raytrain.run.driver import run
from raytrain.simulate.hosts import SimulatedHosts

ROOT = Path(__file__).parents[1]
NUM_SAMPLES, EPOCHS = 1200, 4
STEPS = 38  # of an epoch of two ranks with batches of 16
TOKEN = "0123456789abcdef" * 4
HOSTS = {"gpu": ("ml.g5.xlarge", ["algo-1", "algo-2"]), "cpu": ("ml.c5.4xlarge", ["algo-3"])}
WAIT_S = 400.0


# --- on emulated hosts ---


def emulated(
    nodes: str, act: Callable[[int, Nodes], None], resume: bool = False, **training: Any
) -> Callable[..., Any]:
    """A run of four epochs on `nodes`; `act` is told the furthest step, a few times a second."""

    def go(folder: Path, running: Any) -> dict[str, Any]:
        there = Nodes(running)
        told: list[str] = []

        def watch(news: str | Status) -> None:
            if isinstance(news, str):
                told.append(news)
            elif news.progress:
                act(max(each.step for each in news.progress.values()), there)

        began, error = time.monotonic(), None
        job = Job.from_dict(job_tree(folder, NUM_SAMPLES, epochs=EPOCHS, **training))
        try:
            run(None, None, job, watch=watch, resume=resume)
        except RaytrainError as raised:
            error = str(raised)
        record = read_record(folder / "counted" / "record.json")
        trace = Trace(folder)
        return {
            "wall_s": round(time.monotonic() - began, 1),
            "status": record.status,
            "error": error,
            "attempts": record.totals.attempts,
            "steps": trace.steps,
            "steps_done_again": trace.done_again,
            "wrong": [] if error else trace.wrong(NUM_SAMPLES, EPOCHS),
            "told": told,
        }

    return go


def on(nodes: str, *runs: Callable[..., Any], pace_s: float = 0.15) -> list[dict[str, Any]]:
    """Runs one after the other on one cluster."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pace_s").write_text(str(pace_s))
        running = local.start(parse_nodes(nodes))
        try:
            return [each(folder, running) for each in runs]
        finally:
            running.close()


def preemption() -> tuple[Any, list[str]]:
    """Four hosts of a rank are drained, each when another has come."""
    nodes, left, came = "gpu=2x1x1,cpu=1x1", [15, 45, 80, 115], []

    def act(step: int, there: Nodes) -> None:
        if left and step >= left[0]:
            left.pop(0)
            victim = came[-1] if came else there.ids("gpu")[0]
            came.append(there.add("gpu", 1, 1))
            there.drain(victim)

    [found] = on(nodes, emulated(nodes, act, checkpoint={}, max_failures=0), pace_s=0.4)
    wrong = found["wrong"] + ([f"{found['steps_done_again']} steps again"] if found["steps_done_again"] > 4 else [])
    return found, wrong + ([] if found["attempts"] == 5 else [f"{found['attempts']} attempts"])


def rank_host() -> tuple[Any, list[str]]:
    """A rank's host dies and none comes; then the run goes on with one rank."""
    nodes, left = "gpu=2x1x1,cpu=1x1", [60]

    def act(step: int, there: Nodes) -> None:
        if left and step >= left[0]:
            left.pop(0)
            there.kill(there.ids("gpu")[0])

    first, second = on(nodes, emulated(nodes, act), emulated(nodes, lambda *_: None, resume=True))
    said = first["error"] or ""
    wrong = [] if "have no place, and no other host has come for 120 s" in said else [f"it says {said!r}"]
    wrong += [] if first["wall_s"] < 200 else ["it ends late"]
    return [first, second], wrong + second["wrong"] + ([second["error"]] if second["error"] else [])


def every_cpu_host() -> tuple[Any, list[str]]:
    """All CPU hosts die, one after the other; the ranks' hosts go on."""
    nodes, left = "gpu=1x2x2,cpu=2x1", [20, 50]

    def act(step: int, there: Nodes) -> None:
        if left and step >= left[0]:
            left.pop(0)
            there.kill(there.ids("cpu")[0])

    [found] = on(nodes, emulated(nodes, act))
    return found, found["wrong"] + ([found["error"]] if found["error"] else [])


# --- on simulated hosts ---


class Flaky:
    """Noise of which one read in a hundred fails once, one is cut off, and one takes two seconds."""

    def __init__(self, num_samples: int, folder: str):
        self.num_samples, self.folder = num_samples, folder

    def __len__(self) -> int:
        return self.num_samples

    @property
    def labels(self) -> list[int]:
        return [index % 10 for index in range(self.num_samples)]

    def __getitem__(self, index: int) -> dict[str, Any]:
        import numpy as np

        mark = Path(self.folder, f"read-{index}")
        kind = random.Random(index).choices(["", "error", "cut", "slow"], [97, 1, 1, 1])[0]
        if kind == "error" and not mark.exists():
            mark.touch()
            raise OSError(5, "Input/output error")
        if kind == "cut":
            raise ValueError("the object ends after 100 of 3,072 bytes")
        if kind == "slow":
            time.sleep(2.0)
        image = np.random.default_rng(index).standard_normal((32, 32, 3), dtype=np.float32)
        return {"image": image, "label": index % 10}


def network(
    victim: str, seconds: float, latency_s: float = 0.0, ends: bool = False
) -> Callable[[], tuple[Any, list[str]]]:
    """A host's cable is pulled for so long, or all that it sends and gets comes late.

    Args:
        ends: the job may end, with its reason, since it has lost a rank.
    """

    def go() -> tuple[Any, list[str]]:
        with tempfile.TemporaryDirectory() as name:
            names = sorted(host for _, members in HOSTS.values() for host in members)
            with SimulatedHosts(names, Path(name) / "hosts") as hosts:
                return _network(hosts, victim, seconds, latency_s, ends)

    return go


def _network(hosts: SimulatedHosts, victim: str, seconds: float, latency_s: float, ends: bool) -> tuple[Any, list[str]]:
    hosts.place(HOSTS)
    epochs = 2 if latency_s else EPOCHS  # a step takes some seconds then
    tree = job_tree(Path("/opt/ml/checkpoints"), NUM_SAMPLES, epochs=epochs)
    for host in hosts.hosts.values():
        for folder in ("code", "checkpoints"):
            (host.ml / folder).mkdir(exist_ok=True)
        (host.ml / "checkpoints/pace_s").write_text("0.3")
        (host.ml / "code/job.yaml").write_text(yaml.safe_dump(tree))
        shutil.copy(ROOT / "source_dir/train.py", host.ml / "code")
        shutil.copy(ROOT / "benchmarks/counted.py", host.ml / "code")
    began = time.monotonic()
    for name in hosts.names:
        gpus = "1" if name in HOSTS["gpu"][1] else "0"
        environment = {"RAY_AUTH_TOKEN": TOKEN, "RAYTRAIN_EMULATED_GPUS": gpus, "RAY_worker_niceness": "0"}
        command = [sys.executable, "-m", "raytrain", "bootstrap", "--grace", "20", "--", "train.py", "job.yaml"]
        hosts.start(name, command, environment)

    def trace() -> Trace:
        return Trace(*(host.ml / "checkpoints" for host in hosts.hosts.values()))

    while trace().steps < 20:
        if time.monotonic() > began + WAIT_S or hosts["algo-1"].process.poll() is not None:
            raise SystemExit(hosts["algo-1"].output[-4000:])
        time.sleep(0.5)
    hit_at = time.monotonic()
    if latency_s:
        hosts.delay(victim, latency_s)
    else:
        hosts.unplug(victim)
        time.sleep(seconds)
        hosts.plug(victim)
    statuses = hosts.wait(WAIT_S)
    found = {
        "statuses": statuses,
        "from_damage_to_end_s": round(time.monotonic() - hit_at, 1),
        "failure": hosts["algo-1"].failure,
        "steps": trace().steps,
        "steps_done_again": trace().done_again,
        "wrong": [],
        "told": [line for line in hosts["algo-1"].output.splitlines() if line.startswith("raytrain")][-12:],
    }
    if statuses["algo-1"] == 0:
        found["wrong"] = trace().wrong(NUM_SAMPLES, epochs)
    elif not (ends and found["failure"]):
        found["wrong"] = [f"the job ended: {found['failure']}"]
    return found, list(found["wrong"])


def storage() -> tuple[Any, list[str]]:
    """A data set of one's own: errors that pass, objects that are cut off, slow reads, one in a hundred each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pace_s").write_text("0.05")
        tree = job_tree(folder, NUM_SAMPLES, epochs=2)
        source = {"kind": "damage:Flaky", "num_samples": NUM_SAMPLES, "folder": name}
        tree["data"] |= {"train": source, "max_corrupt_share": 0.03, "stage_timeout_s": 30}
        running = local.start(parse_nodes("gpu=1x1x2,cpu=1x1"))
        try:
            record = run(None, None, Job.from_dict(tree))
        finally:
            running.close()
        kinds = [
            random.Random(index).choices(["", "error", "cut", "slow"], [97, 1, 1, 1])[0] for index in range(NUM_SAMPLES)
        ]
        of = {kind: {index for index, each in enumerate(kinds) if each == kind} for kind in ("error", "cut", "slow")}
        expected = [of["cut"] | of["error"], of["cut"]]  # an error passes, and a data set of one's own tries by itself
        consumed = Trace(folder).counted()
        missing = [
            set(range(NUM_SAMPLES)) - {i for line in consumed if line["epoch"] == epoch for i in line["ids"]}
            for epoch in range(2)
        ]
        found = {"corrupt": record.corrupt.train, **{kind: len(ids) for kind, ids in of.items()}}
        found |= {"left_out": [len(each) for each in missing], "listed": record.corrupt.listed[:3]}
        return found, [] if missing == expected else ["others were left out than should have been"]


SCENARIOS: dict[str, Callable[[], tuple[Any, list[str]]]] = {
    "preemption": preemption,
    "rank-host": rank_host,
    "every-cpu-host": every_cpu_host,
    "storage": storage,
    "network-cpu-5s": network("algo-3", 5),
    "network-cpu-60s": network("algo-3", 60),
    "network-rank-5s": network("algo-2", 5),
    "network-rank-60s": network("algo-2", 60, ends=True),
    "latency-cpu": network("algo-3", 0, latency_s=0.1),
    "latency-rank": network("algo-2", 0, latency_s=0.1),
}


def scenario(name: str) -> int:
    if name not in SCENARIOS:
        print("\n".join(SCENARIOS))
        return 0 if name == "list" else 2
    found, wrong = SCENARIOS[name]()
    print(json.dumps(found, indent=1))
    print(f"{name}: {wrong or 'holds'}")
    path = RESULTS / "damage.json"
    before = json.loads(path.read_text())["rows"] if path.exists() else {}
    write("damage", {**before, name: {"found": found, "wrong": wrong}}, {})
    return 1 if wrong else 0
