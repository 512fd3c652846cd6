"""Whole predictions through Ray: against a plain loop, and while processes and hosts die."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import cv2
import numpy as np
import predicting
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
import pytest
import torch
import yaml
from conftest import RAYTRAIN, ROOT, run_cli, write_images
from patience import patient, wait_for

from raytrain import PredictionJob, predict
from raytrain.cluster import local
from raytrain.config.cluster import parse_nodes
from raytrain.errors import ClusterError, ConfigError, DataError, PredictionError
from raytrain.infer.dispatch import got
from raytrain.infer.progress import Progress
from raytrain.record.inference import read_inference_record

pytestmark = pytest.mark.ray
SIDE = 16
OPTIONS = {
    "img_size": SIDE,
    "patch_size": 8,
    "embed_dim": 16,
    "depth": 1,
    "num_heads": 2,
    "num_classes": 3,
    "global_pool": "avg",
    "class_token": False,
}
NAMES = ["dark", "grey", "light"]


def rows(folder) -> pa.Table:
    found = sorted(Path(folder).glob("part-*.parquet"))
    return pa.concat_tables([pyarrow.parquet.read_table(path) for path in found])


def errors(folder) -> dict[int, tuple[str, str, str]]:
    found = [pyarrow.parquet.read_table(path) for path in sorted(Path(folder).glob("errors-*.parquet"))]
    return {row["id"]: (row["where"], row["stage"], row["reason"]) for table in found for row in table.to_pylist()}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """39 JPEG files, of which one is cut off; and a model's weights."""
    from timm.models import VisionTransformer

    folder = tmp_path_factory.mktemp("pictures")
    write_images(folder / "images", dict.fromkeys(NAMES, 13), SIDE)
    broken = folder / "images" / "grey" / "005.jpg"
    broken.write_bytes(broken.read_bytes()[:40])
    torch.manual_seed(0)
    model = VisionTransformer(**OPTIONS)
    torch.nn.init.normal_(model.head.weight)  # so that classes differ
    torch.save(model.state_dict(), folder / "weights.pt")
    return folder


def picture_tree(pictures: Path, runs: Path, **inference) -> dict:
    return {
        "name": "pictures",
        "run_dir": str(runs),
        "model": {
            "name": "timm.models:VisionTransformer",
            "options": OPTIONS,
            "weights": str(pictures / "weights.pt"),
            "classes": NAMES,
            "embeddings": True,
        },
        "data": {
            "source": {"kind": "image_folder", "path": str(pictures / "images")},
            "stages": ["decode"],
            "normalize": {"mean": [0.5], "std": [0.5]},
        },
        "output": {"fields": ["label"], "probabilities": 2, "shard_rows": 15},
        "inference": {"batch_size": 4, "block": {"rows": 8}, **inference},
    }


def plain_loop(pictures: Path) -> tuple[list[int], torch.Tensor]:
    """Ids and outputs, as anyone would write it."""
    from timm.models import VisionTransformer

    model = VisionTransformer(**OPTIONS).eval()
    model.load_state_dict(torch.load(pictures / "weights.pt", weights_only=True))
    ids, outputs = [], []
    for number, path in enumerate(sorted((pictures / "images").glob("*/*.jpg"))):
        image = cv2.imread(str(path))
        if image is not None:
            x = torch.from_numpy(image[..., ::-1].copy()).float().permute(2, 0, 1) / 127.5 - 1
            with torch.no_grad():
                outputs.append(model(x[None])[0])
            ids.append(number)
    return ids, torch.stack(outputs)


def test_predictions_are_those_of_a_plain_loop_and_go_on_where_they_were(two_nodes, pictures, tmp_path):
    tree = picture_tree(pictures, tmp_path)
    job, told = PredictionJob.from_dict(tree), []
    record = predict(job, watch=told.append)
    output = tmp_path / "pictures" / "predictions"
    found, (ids, outputs) = rows(output), plain_loop(pictures)
    shares = outputs.softmax(1)

    assert found.column("id").to_pylist() == ids and len(ids) == 38
    assert found.column("label").to_pylist() == [number // 13 for number in ids]
    assert found.column("prediction").to_pylist() == [NAMES[number] for number in shares.argmax(1)]
    assert len(set(found.column("prediction").to_pylist())) > 1
    assert found.column("prediction_index").to_pylist() == shares.argmax(1).tolist()
    np.testing.assert_allclose(found.column("probability").to_numpy(), shares.max(1).values, atol=1e-5)
    top = shares.topk(2, dim=1)
    assert found.column("top").to_pylist() == [[NAMES[n] for n in row] for row in top.indices]
    np.testing.assert_allclose(found.column("top_probability").to_pylist(), top.values, atol=1e-5)
    assert found.column("embedding").type == pa.list_(pa.float32(), 16)
    [(index, (where, stage, _))] = errors(output).items()
    assert (index, stage) == (18, "decode") and where.endswith("grey/005.jpg")

    assert (record.status, record.rows, record.errors) == ("finished", 38, 1)
    assert not record.torch_in_preprocessing_workers
    assert sum(stream.samples for stream in record.streams) == 38
    assert all(stream.alone_samples_per_s > 0 for stream in record.streams)
    assert [stage.name for stage in record.stages] == ["read", "decode"]
    assert min(record.figures.model, record.figures.prepare, record.figures.together) > 0
    assert read_inference_record(tmp_path / "pictures" / "record.json") == record

    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in output.iterdir()}
    assert sorted(path.name for path in before) == [
        "errors-00001.parquet",
        *(f"part-0000{shard}.parquet" for shard in range(3)),
        "predictions.json",
    ]
    assert json.loads((output / "predictions.json").read_text())["finished"]
    assert predict(job, watch=told.append) == record
    assert told[-1] == f"{output} is finished: 38 rows, 1 errors; nothing is left to do"
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in output.iterdir()} == before

    lost = output / "part-00001.parquet"
    lost.unlink()
    other = {**tree, "inference": {"batch_size": 4, "block": {"rows": 4}, "in_flight": 1}}  # which change no prediction
    again = predict(PredictionJob.from_dict(other))
    assert (again.samples_before, again.rows, again.errors) == (24, 38, 1)
    assert lost.read_bytes() == before[lost][1]
    del before[lost], before[output / "errors-00001.parquet"], before[output / "predictions.json"]
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before} == before, "not done again"

    tree["output"]["probabilities"] = 3
    with pytest.raises(ConfigError, match=r"predictions of another job \(output.probabilities\); give output.path"):
        predict(PredictionJob.from_dict(tree))


def linear_tree(folder: Path, name: str, count: int, stage: dict | None = None, **model) -> dict:
    predicting.write_rows(folder / "rows.parquet", count)
    return {
        "name": name,
        "run_dir": str(folder),
        "model": {"name": "predicting:linear", "inputs": "x", "options": model},
        "data": {
            "source": {"kind": "parquet", "path": str(folder / "rows.parquet")},
            "stages": [{"predicting:deadly": {"on": "x", **stage}}] if stage else [],
        },
        "output": {"fields": ["name", "weight"], "shard_rows": 20},
        "inference": {"batch_size": 4, "block": {"rows": 8}, "max_failures": 1},
    }


def check_linear(tree: dict, count: int, failed=()) -> dict[int, tuple[str, str, str]]:
    """All rows but those that failed, each once, and what they should be. Returns the errors."""
    output = Path(tree["run_dir"]) / tree["name"] / "predictions"
    found, wrong = rows(output), errors(output)
    left = [number for number in range(count) if number not in failed]
    assert sorted(wrong) == sorted(failed)
    assert found.column("id").to_pylist() == left
    assert found.column("name").to_pylist() == [f"row {number}" for number in left]
    assert found.column("weight").to_pylist() == [number / 2 for number in left]
    x = pyarrow.parquet.read_table(Path(tree["run_dir"]) / "rows.parquet").column("x").to_pylist()
    torch.manual_seed(0)
    model = predicting.linear()
    shares = model(torch.tensor(x)[left]).softmax(1)
    np.testing.assert_allclose(found.column("probability").to_numpy(), shares.max(1).values.detach(), atol=1e-5)
    assert found.column("prediction").to_pylist() == shares.argmax(1).tolist()
    return wrong


def test_samples_that_kill_their_process_are_singled_out(two_nodes, tmp_path):
    """One kills tasks, one streams, and one a task and a stream once, which costs nobody anything."""
    tree = linear_tree(tmp_path, "deadly", 50, {"values": [13], "once": ""}, values=[37])
    tree["inference"]["max_failures"] = 0
    record = predict(PredictionJob.from_dict(tree))
    wrong = check_linear(tree, 50, failed=[13, 37])
    assert {stage for _, stage, _ in wrong.values()} == {"process"}
    assert all("died" in reason for _, _, reason in wrong.values())
    assert record.errors == 2 and record.done_again >= 6
    assert sum(stream.restarts for stream in record.streams) == 3

    again = linear_tree(tmp_path, "once", 50, {"values": [13], "once": str(tmp_path / "task")}, values=[37])
    again["model"]["options"]["once"] = str(tmp_path / "stream")
    predict(PredictionJob.from_dict(again))
    check_linear(again, 50)


def test_too_many_errors_end_the_run_and_what_is_wrong_is_said_at_once(two_nodes, tmp_path):
    tree = linear_tree(tmp_path, "few", 20, {"values": [3, 5], "once": ""})
    tree["data"]["max_corrupt_share"] = 0.0
    with pytest.raises(DataError, match=r"of 20 samples could not be predicted, which is more than data.max_corrupt"):
        predict(PredictionJob.from_dict(tree))
    assert read_inference_record(tmp_path / "few" / "record.json").status == "failed"
    import ray

    with pytest.raises(PredictionError, match="prediction failed: ZeroDivisionError"):
        got(ray.remote(lambda: 1 / 0).remote())
    tree["inference"]["device"] = "gpu"
    with pytest.raises(ClusterError, match="inference.device is gpu, and no host of the cluster has one"):
        predict(PredictionJob.from_dict(tree))


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
