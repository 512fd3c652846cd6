"""A host of a rank that is drained, and one that dies: on a real cluster of several nodes."""

from __future__ import annotations

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

EPOCHS = 8
EVERY_ID_ONCE = Counter(range(120))


def trained(images, runs: Path, act, resume: bool = False):
    """A run of 8 epochs of 8 steps; `act` hears of the steps, and what is told is returned."""
    told = []

    def watch(news: str | Status) -> None:
        if isinstance(news, str):
            told.append(news)
        elif news.progress:
            act(max(each.step for each in news.progress.values()))

    training = {"epochs": EPOCHS, "checkpoint": {"every_steps": 3}, "max_failures": 1}
    job = Job.from_dict({"name": "counting", "run_dir": str(runs), "training": training})
    pipeline = Pipeline(image_folder(images / "train"), [decode(), resize(8)], batch_size=8)
    try:
        run(train_loop, pipeline, job, watch=watch, resume=resume)
    except TrainingError as error:
        told.append(f"error: {error}")
    return told


def attempts_in(runs: Path) -> list[tuple[int, list[dict]]]:
    """The steps that each attempt of rank 0 began with, and those that both ranks have done."""
    from test_driver import trace

    found: list[tuple[int, list[dict]]] = []
    for line in trace(runs):
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
        [second] = [node for node in running._nodes.cluster.worker_nodes if node.node_id in _gpu_nodes()]
        spare = []

        def act(step: int) -> None:
            if step >= 6 and not spare:
                spare.append(add_node(running, "spare", "gpu", gpus=1))
                drain(second.node_id)
            if step >= 26 and len(spare) == 1:
                kill_node(running, spare[0])
                spare.append(None)

        told = trained(images, tmp_path, act)
        lines = [each for each in told if "place" in each or "go" in each]
        assert lines[0] == "gpu-2 is about to go; the ranks begin anew after the step in flight", told
        assert "1 of 2 ranks have no place; waiting" in lines[1]
        assert lines[-1].startswith("error: ") and "no other host has come for" in lines[-1]
        assert "go on with --resume on other hosts" in lines[-1]
        (_, before), (begun, between) = attempts_in(tmp_path)
        assert begun == max(line["steps"] for line in before) >= 6, "no step is done again"
        record = read_record(tmp_path / "counting" / "record.json")
        assert (record.status, record.totals.attempts, record.world_size) == ("failed", 2, 2)

        latest = shelf.latest(tmp_path / "counting" / "checkpoints")
        facts, state = checkpoint.load(latest)
        told = trained(images, tmp_path, lambda step: None, resume=True)
        assert not [each for each in told if each.startswith("error")], told
        record = read_record(tmp_path / "counting" / "record.json")
        assert (record.status, record.world_size, record.resumed_from) == ("finished", 1, str(latest))
        *_, (resumed, after) = attempts_in(tmp_path)
        assert resumed == facts.steps >= 23
        counted = before + [line for line in between if line["steps"] <= resumed] + after
        ids = [Counter(i for line in counted if line["epoch"] == epoch for i in line["ids"]) for epoch in range(EPOCHS)]
        assert ids == [EVERY_ID_ONCE] * EPOCHS
        consumed = np.zeros(120) if state["consumed"] is None else state["consumed"].numpy()[:120]
        assert 0 <= int(consumed.sum()) < 120
    finally:
        running.close()


def _gpu_nodes() -> set[str]:
    import ray

    return {node["NodeID"] for node in ray.nodes() if "raytrain-emulated-gpu" in node["Resources"]}
