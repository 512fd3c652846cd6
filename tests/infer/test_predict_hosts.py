"""Predictions whose hosts die, or that are stopped: each has a cluster of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess

import pytest
import yaml
from conftest import RAYTRAIN, ROOT, run_cli
from patience import patient, wait_for
from predicting import check_linear, linear_tree

from raytrain import PredictionJob, predict
from raytrain.cluster import local
from raytrain.config.cluster import parse_nodes
from raytrain.infer.progress import Progress
from raytrain.record.inference import read_inference_record

pytestmark = pytest.mark.ray


def test_hosts_that_die_cost_no_row(tmp_path):
    """One that prepares and one that predicts; two streams share each emulated GPU."""
    running = local.start(parse_nodes("gpu=2x1x1,cpu=1x1"))
    try:
        gate = tmp_path / "gate"
        tree = linear_tree(tmp_path, "hosts", 120, gate=str(gate), gate_from=30)
        tree["inference"] |= {"tasks_per_gpu": 2, "max_failures": 3}
        killed = []

        def watch(told) -> None:
            if isinstance(told, Progress) and told.done > 8 and not killed:
                nodes = running._nodes.cluster
                groups = {host.node_id: host.group for host in running.topology.hosts}
                for group in ("cpu", "gpu"):
                    victim = next(node for node in nodes.worker_nodes if groups[node.node_id] == group)
                    nodes.remove_node(victim, allow_graceful=False)
                    killed.append(group)
                gate.touch()

        record = predict(PredictionJob.from_dict(tree), watch=watch)
        check_linear(tree, 120)
        assert killed == ["cpu", "gpu"]
        assert len(record.streams) == 4 and record.done_again > 0
        assert all(stream.device == "cpu" for stream in record.streams), "there is no GPU"
        assert sum(host.samples_prepared for host in record.hosts) >= 120
    finally:
        running.close()


def test_a_stop_keeps_what_is_finished(tmp_path):
    gate = tmp_path / "gate"
    tree = linear_tree(tmp_path, "stopped", 80, gate=str(gate), gate_from=45)
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(tree))
    output = tmp_path / "stopped" / "predictions"
    paths = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command, environment = [*RAYTRAIN, "infer", tmp_path / "job.yaml"], {**os.environ, **paths}
    running = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: (output / "part-00001.parquet").exists() or running.poll(), 120, "two shards")
        running.terminate()
        _, said = running.communicate(timeout=patient(60))
    finally:
        running.kill()
    assert running.returncode == 143, said
    assert said.endswith("raytrain: stopped; run it again to go on\n")
    assert read_inference_record(tmp_path / "stopped" / "record.json").status == "stopped"
    times = {path: path.stat().st_mtime_ns for path in output.glob("part-*")}
    assert len(times) == 2
    gate.touch()
    result = run_cli("infer", tmp_path / "job.yaml", "--json", cwd=tmp_path, **paths)
    assert result.returncode == 0, result.stderr
    record = json.loads(result.stdout)
    assert (record["samples_before"], record["rows"]) == (40, 80)
    assert re.search(r"model alone +decoding and stages alone +together", result.stderr)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    check_linear(tree, 80)
