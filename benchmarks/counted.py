"""A training whose loop writes down every sample of every step, and what of that counts in the end."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from raytrain.cluster import local
from raytrain.cluster.topology import EMULATED_GPU, EMULATED_LABEL, GROUP_LABEL, HOST_LABEL
from raytrain.ray_internals.train import RANK_CLASSES

SHAPE = (32, 32, 3)
STORE_BYTES = 100 << 20
GONE_WITHIN_S = 30.0


def write_down(folder: Path, rank: int, **facts: Any) -> None:
    with open(folder / f"trace-{rank}.jsonl", "a") as file:
        file.write(json.dumps(facts) + "\n")


def train(ctx: Any) -> None:
    """Batches of `pace_s` seconds; what it trains is a small convolution."""
    import torch

    folder = Path(ctx.job.run_dir)
    pace_s = float((folder / "pace_s").read_text())
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, stride=4), torch.nn.Flatten(), torch.nn.Linear(8 * 8 * 8, 10))
    model, optimizer = ctx.prepare(model, torch.optim.SGD(model.parameters(), lr=0.01))
    write_down(folder, ctx.rank, event="begin", pid=os.getpid(), steps=ctx.steps, at=time.time())
    for epoch in ctx.epochs():
        for batch in ctx.batches("train"):
            loss = torch.nn.functional.cross_entropy(model(batch.image), batch.label)
            (loss * batch.weight).backward()
            optimizer.step()
            optimizer.zero_grad()
            time.sleep(pace_s)
            facts = {"epoch": epoch, "steps": ctx.steps + 1, "ids": batch.ids.tolist(), "loss": loss.item()}
            write_down(folder, ctx.rank, event="step", pid=os.getpid(), **facts)
            ctx.report(loss)


def seen_to(image: np.ndarray, rng: np.random.Generator, work_s: float = 0.0) -> np.ndarray:
    """A random stage of about so many seconds of a core."""
    until = time.thread_time() + work_s
    image = image + rng.standard_normal(image.shape, dtype=np.float32)
    while time.thread_time() < until:
        np.ascontiguousarray(image[::-1])
    return image


def job_tree(folder: Path, num_samples: int, **training: Any) -> dict[str, Any]:
    """Of a job that trains on noise."""
    return {
        "name": "counted",
        "run_dir": str(folder),
        "data": {
            "train": {"kind": "synthetic", "num_samples": num_samples, "shape": list(SHAPE), "num_classes": 10},
            "stages": [{"counted:seen_to": {"work_s": 0.004}}],
            "global_batch_size": 32,
        },
        "training": {"loop": "counted:train", "checkpoint": {"every_steps": 25}, "max_failures": 1000, **training},
    }


class Trace:
    """What the ranks have written down, each on whatever host it was.

    Attributes:
        attempts: by rank, the steps of each attempt in order, and the steps that it began with.
    """

    def __init__(self, *folders: Path):
        found: dict[int, list[tuple[float, int, list[dict[str, Any]]]]] = {}
        for path in (path for folder in folders for path in folder.glob("trace-*.jsonl")):
            attempts = found.setdefault(int(path.stem.partition("-")[2]), [])
            for line in map(json.loads, path.read_text().splitlines()):
                if line["event"] == "begin":
                    attempts.append((line["at"], line["steps"], []))
                else:
                    attempts[-1][2].append(line)
        self.attempts = {
            rank: [(steps, lines) for _, steps, lines in sorted(each, key=lambda attempt: attempt[0])]
            for rank, each in found.items()
        }

    @property
    def steps(self) -> int:
        """The furthest that any rank has done."""
        return max((line["steps"] for _, _, lines in self._each() for line in lines), default=0)

    def counted(self) -> list[dict[str, Any]]:
        """Steps that the last attempt has built on, and its own: others have been done again."""
        kept = []
        for begins, number, lines in self._each():
            later = begins[number + 1 :]
            kept += [line for line in lines if all(line["steps"] <= begun for begun in later)]
        return kept

    @property
    def done_again(self) -> int:
        """Steps of a rank."""
        return sum(len(lines) for _, _, lines in self._each()) - len(self.counted())

    def wrong(self, num_samples: int, epochs: int) -> list[str]:
        """Ids of an epoch that were consumed more or less than once."""
        ids: dict[int, Counter[int]] = {}
        for line in self.counted():
            ids.setdefault(line["epoch"], Counter()).update(line["ids"])
        found = []
        for epoch in range(epochs):
            wrong = {i: n for i in range(num_samples) if (n := ids.get(epoch, Counter())[i]) != 1}
            if wrong:
                found.append(f"epoch {epoch + 1}: {len(wrong)} ids, such as {dict(list(wrong.items())[:5])}")
        return found

    def by_step(self) -> list[tuple[list[int], float]]:
        """Of each step that counts: the samples of all ranks, and the mean of their losses."""
        found: dict[int, tuple[list[int], float]] = {}
        for line in self.counted():
            ids, total = found.get(line["steps"], ([], 0.0))
            found[line["steps"]] = ids + line["ids"], total + line["loss"] * len(line["ids"])
        return [(sorted(ids), total / max(len(ids), 1)) for _, (ids, total) in sorted(found.items())]

    def _each(self) -> Iterator[tuple[list[int], int, list[dict[str, Any]]]]:
        for attempts in self.attempts.values():
            begins = [begun for begun, _ in attempts]
            yield from ((begins, number, lines) for number, (_, lines) in enumerate(attempts))


class Nodes:
    """Emulated hosts of a cluster that this process has started, which die and come."""

    def __init__(self, running: local.RunningCluster):
        self._nodes, self._cluster, self._made = running._nodes, running._nodes.cluster, 0
        self._by_id = {node.node_id: node for node in (self._cluster.head_node, *self._cluster.worker_nodes)}

    def ids(self, group: str) -> list[str]:
        """Living nodes of a group but for the head's."""
        import ray

        living = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Labels"].get(GROUP_LABEL) == group]
        return sorted(id_ for id_ in living if id_ in self._by_id and self._by_id[id_] is not self._cluster.head_node)

    def kill(self, node_id: str) -> None:
        """A power cut."""
        self._cluster.remove_node(self._by_id.pop(node_id), allow_graceful=False)

    def add(self, group: str, cpus: int, gpus: int = 0) -> str:
        self._made += 1
        labels = {GROUP_LABEL: group, EMULATED_LABEL: "true", HOST_LABEL: f"{group}-new-{self._made}"}
        resources = {EMULATED_GPU: gpus} if gpus else {}
        before = set(self._cluster.worker_nodes)
        self._nodes.add(
            num_cpus=cpus, num_gpus=0, resources=resources, labels=labels, object_store_memory=STORE_BYTES
        )  # without Ray's agents, as the others are
        [node] = set(self._cluster.worker_nodes) - before
        self._by_id[node.node_id] = node
        return str(node.node_id)

    def drain(self, node_id: str, within_s: float = 60.0) -> None:
        """Ray's notice that a node is about to go."""
        from ray._private.worker import global_worker
        from ray.core.generated import autoscaler_pb2

        deadline_ms = int((time.time() + within_s) * 1000)
        reason = autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
        accepted, why = global_worker.gcs_client.drain_node(node_id, reason, "a test", deadline_ms)
        if not accepted:
            raise SystemExit(f"Ray does not drain the node: {why}")


def processes() -> dict[str, list[psutil.Process]]:
    """Ray's processes below this one, by what they are: `rank`, `worker` (idle ones too), `Feed` and so on."""
    found: dict[str, list[psutil.Process]] = {}
    for process in psutil.Process().children(recursive=True):
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        title = " ".join(words)
        kind = _kind(title)
        if kind:
            found.setdefault(kind, []).append(process)
    return found


def _kind(title: str) -> str | None:
    if title.startswith("ray::"):
        name = title.removeprefix("ray::").split(".")[0].split(":")[0].split(" ")[0]
        if name.startswith(RANK_CLASSES):
            return "rank"
        if "Agent" in name:  # a node ends with its agents
            return None
        return name if name in ("Feed", "Keeper", "Sampler") else "worker"
    return next((name for name in ("gcs_server", "raylet") if f"/{name} " in title or title.endswith(f"/{name}")), None)


def slope(rows: Sequence[tuple[float, float]]) -> float:
    """Per hour, of (seconds, value), by least squares."""
    if len(rows) < 3:
        return 0.0
    at, values = np.array(rows, dtype=np.float64).T
    return float(np.polyfit(at / 3600, values, 1)[0])
