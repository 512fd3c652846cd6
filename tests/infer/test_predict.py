"""Whole predictions through Ray: against a plain loop, and while processes and hosts die."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
import pytest
import torch
from conftest import write_images
from predicting import check_linear, errors, linear_tree, rows

from raytrain import PredictionJob, predict
from raytrain.errors import ClusterError, ConfigError, DataError, PredictionError
from raytrain.infer.dispatch import got
from raytrain.infer.stream import NO_NUMBER
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
        "_errors-00001.parquet",
        "_predictions.json",
        *(f"part-0000{shard}.parquet" for shard in range(3)),
    ]
    assert json.loads((output / "_predictions.json").read_text())["finished"]
    assert pyarrow.parquet.read_table(output).num_rows == 38, "a folder as others read it"
    assert predict(job, watch=told.append) == record
    assert told[-1] == f"{output} is finished: 38 rows, 1 errors; nothing is left to do"
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in output.iterdir()} == before

    lost = output / "part-00001.parquet"
    lost.unlink()
    other = {**tree, "inference": {"batch_size": 4, "block": {"rows": 4}, "in_flight": 1}}  # which change no prediction
    again = predict(PredictionJob.from_dict(other))
    assert (again.samples_before, again.rows, again.errors) == (24, 38, 1)
    assert lost.read_bytes() == before[lost][1]
    del before[lost], before[output / "_errors-00001.parquet"], before[output / "_predictions.json"]
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before} == before, "not done again"

    tree["output"]["probabilities"] = 3
    with pytest.raises(ConfigError, match=r"predictions of another job \(output.probabilities\); give output.path"):
        predict(PredictionJob.from_dict(tree))


def test_samples_that_kill_their_process_are_singled_out(two_nodes, tmp_path):
    """One kills tasks, one streams; they are among those that are prepared and timed beforehand."""
    tree = linear_tree(tmp_path, "deadly", 50, {"deadly_stages:deadly": {"values": [34], "on": "x"}}, values=[20])
    tree["inference"]["max_failures"] = 0
    record = predict(PredictionJob.from_dict(tree))
    wrong = check_linear(tree, 50, failed=[20, 34])
    assert {stage for _, stage, _ in wrong.values()} == {"process"}
    assert all("died" in reason for _, _, reason in wrong.values())
    assert record.errors == 2 and record.done_again >= 6
    assert sum(stream.restarts for stream in record.streams) == 3


def test_errors_of_an_earlier_run_count(two_nodes, tmp_path):
    tree = linear_tree(tmp_path, "some", 40, {"deadly_stages:failing": {"values": [3, 25], "on": "x"}}, silent=[14])
    assert predict(PredictionJob.from_dict(tree)).errors == 3
    path = tree["data"]["source"]["path"]
    assert check_linear(tree, 40, failed=[3, 14, 25])[14] == (f"{path} (row group 0, row 14)", "model", NO_NUMBER)
    for path in (tmp_path / "some" / "predictions").glob("*-00001.parquet"):
        path.unlink()
    tree["data"]["max_corrupt_share"] = 0.03
    with pytest.raises(DataError, match=r"3 of 40 samples could not be predicted, which is more than .*=0.03 allows"):
        predict(PredictionJob.from_dict(tree))


def test_too_many_errors_end_the_run_and_what_is_wrong_is_said_at_once(two_nodes, tmp_path):
    tree = linear_tree(tmp_path, "few", 20, {"deadly_stages:failing": {"values": [3, 5], "on": "x"}})
    tree["data"]["max_corrupt_share"] = 0.0
    with pytest.raises(DataError, match=r"of 20 samples could not be .* the last is .*: ValueError: it is \d"):
        predict(PredictionJob.from_dict(tree))
    assert read_inference_record(tmp_path / "few" / "record.json").status == "failed"
    import ray

    with pytest.raises(PredictionError, match="prediction failed: ZeroDivisionError"):
        got(ray.remote(lambda: 1 / 0).remote())
    tree["inference"]["device"] = "gpu"
    with pytest.raises(ClusterError, match="inference.device is gpu, and no host of the cluster has one"):
        predict(PredictionJob.from_dict(tree))
