"""What a whole run computes, through Ray and the command line, against a training written by hand."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import run_cli, write_images
from patience import patient
from timm.models import VisionTransformer

from raytrain.data.order import Position, StreamPlan, StreamSpec
from raytrain.record.schema import read_record
from raytrain.train.checkpoints import checkpoint, shelf

pytestmark = pytest.mark.ray
BATCH, SIDE = 4, 16
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("exact")
    write_images(root / "train", {"dark": 13, "grey": 13, "light": 13}, SIDE)
    write_images(root / "validation", {"dark": 5, "grey": 4, "light": 4}, SIDE, seed=1)
    return root


def samples(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised images and labels in the order of the manifest; a broken file is NaN."""
    images, labels = [], []
    for label, name in enumerate(("dark", "grey", "light")):
        for path in sorted((folder / name).iterdir()):
            image = cv2.imread(str(path))
            image = np.full((SIDE, SIDE, 3), np.nan) if image is None else image[..., ::-1]
            images.append(torch.from_numpy(np.ascontiguousarray(image)).float().permute(2, 0, 1) / 127.5 - 1)
            labels.append(label)
    return torch.stack(images), torch.tensor(labels)


def job(folder: Path, runs: Path, **training) -> dict:
    return {
        "name": "exact",
        "run_dir": str(runs),
        "data": {
            "train": {"kind": "image_folder", "path": str(folder / "train")},
            "validation": {"kind": "image_folder", "path": str(folder / "validation")},
            "stages": ["decode"],
            "batch_size": BATCH,
            "normalize": {"mean": [0.5], "std": [0.5]},
            "max_corrupt_share": 0.5,
        },
        "model": {"name": "timm.models:VisionTransformer", "options": OPTIONS},
        "training": {"epochs": 2, "optimizer": {"name": "sgd", "lr": 0.05, "weight_decay": 0.1}, **training},
    }


def train(tree: dict, path: Path, *words: str):
    import yaml

    path.write_text(yaml.safe_dump(tree))
    result = run_cli("train", path, *words)
    assert result.returncode == 0, result.stderr
    return read_record(Path(tree["run_dir"]) / "exact" / "record.json")


def test_two_ranks_and_every_setting_train_what_one_process_trains(folder, tmp_path):
    """Windows of two, clipping, smoothing, a schedule, decay, a whole batch of broken files, and validation."""
    shutil.copytree(folder, tmp_path / "images")
    plan = StreamPlan(StreamSpec(39, 13, BATCH, 0, epochs=2), Position(), 2)
    broken = plan.segment_keys(0)[:BATCH]  # the first batch of the first rank has no sample
    paths = [p for name in ("dark", "grey", "light") for p in sorted((tmp_path / "images" / "train" / name).iterdir())]
    for index in broken:
        paths[index].write_bytes(b"broken")
    settings = {
        "accumulate": 2,
        "clip_norm": 0.5,
        "label_smoothing": 0.2,
        "schedule": {"name": "cosine", "warmup_share": 0.4, "final_share": 0.1},
    }
    tree = job(tmp_path / "images", tmp_path / "runs", **settings)
    record = train(tree, tmp_path / "job.yaml", "--nodes", "gpu=1x2x2")
    assert record.world_size == 2
    assert record.unusual.stand_ins >= 1

    torch.manual_seed(0)
    model = VisionTransformer(**OPTIONS)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9)
    images, labels = samples(tmp_path / "images" / "train")
    windows = [(0, first) for first in range(0, 5, 2)] + [(2, first) for first in range(0, 5, 2)]
    losses: dict[int, list[torch.Tensor]] = {0: [], 2: []}
    warmup = round(0.4 * len(windows))
    for update, (segment, first) in enumerate(windows):
        through = (update - warmup) / (len(windows) - warmup)
        share = (update + 1) / warmup if update < warmup else 0.1 + 0.9 * (1 + math.cos(math.pi * through)) / 2
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * share
        keys = plan.segment_keys(segment)
        stop = plan.bounds(segment, min(2 * (first + 2), 10) - 1)[1]
        ids = [int(i) for i in keys[plan.bounds(segment, 2 * first)[0] : stop] if i not in set(broken)]
        each = F.cross_entropy(model(images[ids]), labels[ids], label_smoothing=0.2, reduction="none")
        losses[segment].append(each.detach())
        optimizer.zero_grad()
        each.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    trained = checkpoint.load_object(Path(record.checkpoint), 0)
    for name, value in model.state_dict().items():
        assert torch.allclose(trained[name], value, atol=1e-5), name
    assert [entry["loss"] for entry in record.epochs] == pytest.approx(
        [torch.cat(each).mean().item() for each in losses.values()], rel=1e-4
    )
    images, labels = samples(tmp_path / "images" / "validation")
    model.eval()
    with torch.no_grad():
        logits = model(images)
    assert record.epochs[-1]["validation_loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-4)
    assert record.epochs[-1]["validation_accuracy"] == pytest.approx(
        (logits.argmax(1) == labels).double().mean().item()
    )


def test_a_run_in_three_parts_is_one_run_bit_by_bit(folder, tmp_path):
    """With dropout, momentum and bf16: model, optimizer and random numbers have to come back, twice. The batches of the
    one run come from three CPUs of two hosts, in whatever order, those of the parts from one."""
    options = {**OPTIONS, "proj_drop_rate": 0.3}
    whole = job(folder, tmp_path / "whole", epochs=3, precision="bf16", threads=1)
    parts = job(folder, tmp_path / "parts", epochs=3, precision="bf16", threads=1, checkpoint={"keep": 1})
    for tree in (whole, parts):
        tree["model"]["options"] = options
        tree["data"] |= {"global_batch_size": tree["data"].pop("batch_size")}
    expected = train(whole, tmp_path / "whole.yaml", "--nodes", "train=1x1,cpu=1x2")
    for epochs in (1, 2, 3):
        words = ("--resume",) if epochs > 1 else ()
        record = train(
            parts, tmp_path / "parts.yaml", "--nodes", "train=1x1", "--set", f"training.epochs={epochs}", *words
        )
    states = [checkpoint.load_object(Path(each.checkpoint), 0) for each in (expected, record)]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    told = [[(e["epoch"], e["loss"], e["validation_loss"]) for e in each.epochs] for each in (expected, record)]
    assert told[0] == told[1]
    facts = shelf.read_facts(Path(record.checkpoint))
    assert (facts.samples, facts.updates) == (3 * 39, 3 * 10)
    kept = list((tmp_path / "parts" / "exact" / "checkpoints").glob("*/checkpoint_*"))
    best = max(e["validation_accuracy"] for e in record.epochs)
    assert len(kept) == len({record.checkpoint, record.best_checkpoint}), "over all attempts"
    assert shelf.read_facts(Path(record.best_checkpoint)).score == best


@pytest.mark.parametrize("tail", ["share", "drop_last"])
def test_batch_norm_survives_the_tail_of_a_job(tmp_path, tail):
    """130 images in batches of 64 on two ranks: the last layers of this ResNet see one value a channel and sample."""
    write_images(tmp_path / "images", {"a": 65, "b": 65}, 32)
    tree = {
        "name": "exact",
        "run_dir": str(tmp_path / "runs"),
        "data": {
            "train": {"kind": "image_folder", "path": str(tmp_path / "images")},
            "stages": ["decode"],
            "batch_size": 64,
            "tail": tail,
            "normalize": {},
        },
        "model": {"name": "resnet18", "options": {"num_classes": 2}},
        "training": {"epochs": 1},
    }
    record = train(tree, tmp_path / "job.yaml", "--nodes", "gpu=1x2x2")
    expected = (65, 65) if tail == "share" else (64, 64)
    assert tuple(rank.num_samples for rank in record.ranks) == expected
    assert [rank.num_batches for rank in record.ranks] == ([2, 2] if tail == "share" else [1, 1])
    assert record.unusual.dropped == (0 if tail == "share" else 2)
    assert math.isfinite(record.epochs[0]["loss"])


def test_a_run_that_diverges_says_where_and_fails(folder, tmp_path):
    import yaml

    tree = job(folder, tmp_path / "runs", optimizer={"name": "sgd", "lr": 1e30})
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(tree))
    result = run_cli("train", tmp_path / "job.yaml", "--nodes", "train=1x1")
    assert result.returncode == 1, result.stderr
    last = result.stderr.strip().splitlines()[-1]
    plan = StreamPlan(StreamSpec(39, 13, BATCH, 0, epochs=2), Position(), 1)
    record = read_record(tmp_path / "runs" / "exact" / "record.json")
    assert record.status == "failed" and f"raytrain: {record.error}" == last
    for step in range(2, 11):
        start, stop = plan.bounds(0, step - 1)
        ids = plan.segment_keys(0)[start:stop].tolist()
        if f"at step {step} (epoch 1) of samples {', '.join(map(str, ids))};" in last:
            break
    else:
        pytest.fail(last)
    assert last.count(str(folder / "train")) == 3 and last.endswith("; …)")
    assert "Traceback" not in result.stderr


@pytest.mark.process
def test_a_loop_without_a_job_is_one_line(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("from raytrain import fit\nfit(lambda ctx: None)\n")
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("raytrain.errors.ConfigError: no job was given; fit(train_loop, pipeline, Job.from_yaml(")
    assert re.findall(r'File "(.*)", line (\d+)', result.stderr) == [(str(script), "2")], "only the script's own line"


def test_a_state_that_could_not_be_read_again_is_refused_at_the_first_checkpoint(folder, tmp_path):
    """By the rank that writes it, and not hours later by the resume."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nimport numpy as np\nimport torch\nfrom raytrain import Job, Pipeline, fit\n"
        "from raytrain.data import decode, image_folder\n"
        "class Best:\n    def state_dict(self):\n        return {'best': np.float64(3)}\n"
        "def loop(ctx):\n"
        "    model, _ = ctx.prepare(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 3)), Best())\n"
        "    for _ in ctx.epochs():\n        for batch in ctx.batches():\n            ctx.report(0.5)\n"
        "fit(loop, Pipeline(image_folder(sys.argv[1]), [decode()], batch_size=8),\n"
        "    Job.from_dict({'name': 'bad', 'training': {'epochs': 1}}), nodes='gpu=1x2x2')\n"
    )
    words = [sys.executable, str(script), str(folder / "train")]
    result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=patient(120))
    assert result.returncode == 1
    assert f'File "{script}", line 14, in <module>' in result.stderr
    *_, message, place = result.stderr.strip().splitlines()
    assert "CheckpointError: the state of Best holds more than tensors and plain values" in message
    assert place == f"in {script}:11", "where in the loop"
    assert result.stderr.count("the state of Best") == 1
    assert not list((tmp_path / "runs" / "bad").rglob("checkpoint.json"))
