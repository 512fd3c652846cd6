"""A host of a rank that is drained, and one that dies: on a real cluster of several nodes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from counting_job import train_loop
from nodes_that_go import add_node, drain, kill_node
from patience import patient

from raytrain import Job, Pipeline
from raytrain.cluster import local
from raytrain.config.cluster import parse_nodes
from raytrain.data import decode, image_folder, resize
from raytrain.errors import TrainingError
from raytrain.record.schema import read_record
from raytrain.record.status import Status
from raytrain.run.driver import run
from raytrain.train import rank_hosts
from raytrain.train.checkpoints import checkpoint, shelf

EPOCHS = 4
EVERY_ID_ONCE = Counter(range(120))


def trained(images, runs: Path, act, step_s: float) -> list[str]:
    """A run; `act` hears of the steps and attempts. Returns what was told."""
    (runs / "step_s").write_text(str(step_s))
    told = []

    def watch(news: str | Status) -> None:
        if isinstance(news, str):
            told.append(news)
        elif news.progress:
            act(max(each.step for each in news.progress.values()), news.attempts)

    training = {"epochs": EPOCHS, "checkpoint": {"every_steps": 3}, "max_failures": 1}
    job = Job.from_dict({"name": "counting", "run_dir": str(runs), "training": training})
    pipeline = Pipeline(image_folder(images / "train"), [decode(), resize(8)], batch_size=8)
    try:
        run(train_loop, pipeline, job, watch=watch)
    except TrainingError as error:
        told.append(f"error: {error}")
    return told


def attempts_in(runs: Path) -> list[tuple[int, list[dict]]]:
    """The steps with which rank 0 began each attempt, and those of all ranks in it."""
    found: list[tuple[int, list[dict]]] = []
    for line in map(json.loads, (runs / "trace.jsonl").read_text().splitlines()):
        if line["event"] == "step":
            found[-1][1].append(line)
        elif line["rank"] == 0:
            found.append((line["steps"], []))
    return found


@pytest.mark.ray
@pytest.mark.timeout(200)
def test_ranks_leave_a_host_that_is_drained_and_do_not_wait_for_ever_for_one_that_died(images, tmp_path, monkeypatch):
    """Two ranks on two hosts. The host of one is drained when another has come, which dies in turn, and none comes."""
    monkeypatch.setattr(rank_hosts, "WAIT_S", patient(4))
    running = local.start(parse_nodes("gpu=2x1x1,cpu=1x1"))
    try:
        nodes = {node.node_id: node for node in running._nodes.cluster.worker_nodes}
        [leaves] = [nodes[host.node_id] for host in running.topology.hosts if host.gpus and host.node_id in nodes]
        hosts = []

        def act(step: int, attempts: int) -> None:
            if step >= 3 and not hosts:
                hosts.append(add_node(running, "spare", "gpu", gpus=1))
                drain(leaves.node_id)
                hosts.append(0)
            if attempts == 2 and hosts[1] == 0:
                hosts[1] = step
            if attempts == 2 and step >= hosts[1] + 4 and len(hosts) == 2:
                kill_node(running, hosts[0])
                hosts.append(None)

        told = trained(images, tmp_path, act, step_s=0.35)[1:]
        assert told[0].endswith(" is about to go; the ranks begin anew after the step in flight"), told
        assert told[1] == "the ranks have begun anew from the last checkpoint (attempt 2)"
        assert "1 of 2 ranks have no place; waiting" in told[2], told
        assert told[-1].startswith("error: ") and "1 of 2 ranks have no place, and no other host has come" in told[-1]
        (_, before), (begun, between), *_ = attempts_in(tmp_path)
        assert 3 <= begun == max(line["steps"] for line in before), "no step is done again"
        record = read_record(tmp_path / "counting" / "record.json")
        assert (record.status, record.world_size) == ("failed", 2)

        facts, state = checkpoint.load(shelf.latest(tmp_path / "counting" / "checkpoints"))
        assert facts.steps >= begun
        counted = before + [line for line in between if line["steps"] <= facts.steps]
        ids = [Counter(i for line in counted if line["epoch"] == epoch for i in line["ids"]) for epoch in range(EPOCHS)]
        consumed = np.flatnonzero(np.unpackbits(state["consumed"].numpy())).tolist()
        assert ids[: facts.epoch + 1] == [EVERY_ID_ONCE] * facts.epoch + [Counter(consumed)]
    finally:
        running.close()
