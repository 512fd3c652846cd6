"""Fixtures that several rooms share: small real image folders, and jobs on them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from raytrain.config import Job
from raytrain.record import RunRecord

pytest_plugins = ["cloud_job", "feeding"]
ROOT = Path(__file__).parent.parent
RAYTRAIN = [sys.executable, "-m", "raytrain"]


@pytest.fixture(scope="session", autouse=True)
def nobodys_prices(tmp_path_factory):
    """No test, and no process of one, reads or writes the prices of whoever runs the tests."""
    for folder in (ROOT, Path.cwd()):
        assert not (folder / "prices.yaml").exists(), f"move {folder}/prices.yaml away: the tests would read it"
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as changed:
        changed.setenv("XDG_CACHE_HOME", str(home / "cache"))
        changed.setenv("XDG_CONFIG_HOME", str(home / "config"))
        yield


def write_images(folder: Path, classes: dict[str, int], side: int = 16, seed: int = 0) -> Path:
    """Class folders of random JPEG images whose brightness tells the class."""
    rng = np.random.default_rng(seed)
    for label, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            image = rng.integers(0, 40, (side, side, 3), dtype=np.uint8) + np.uint8(60 * label)
            (folder / name / f"{number:03d}.jpg").write_bytes(cv2.imencode(".jpg", image)[1].tobytes())
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """train: 3 classes of 40; validation: 3 classes of 10."""
    root = tmp_path_factory.mktemp("images")
    write_images(root / "train", {"dark": 40, "grey": 40, "light": 40})
    write_images(root / "validation", {"dark": 10, "grey": 10, "light": 10}, seed=1)
    return root


@pytest.fixture
def job_tree(images, tmp_path) -> dict:
    """A small job on those images, as a job file would hold it."""
    return {
        "name": "small",
        "run_dir": str(tmp_path / "runs"),
        "data": {
            "train": {"kind": "image_folder", "path": str(images / "train")},
            "validation": {"kind": "image_folder", "path": str(images / "validation")},
            "stages": ["decode", {"random_shift": {"pixels": 1}}, {"resize": {"size": 8}}],
            "batch_size": 16,
            "normalize": {"mean": [0.5], "std": [0.5]},
        },
        "model": {
            "name": "timm.models:VisionTransformer",
            "options": {
                "img_size": 8,
                "patch_size": 4,
                "embed_dim": 16,
                "depth": 1,
                "num_heads": 2,
                "num_classes": 3,
                "global_pool": "avg",
                "class_token": False,
            },
        },
        "training": {"epochs": 2, "optimizer": {"name": "adamw", "lr": 0.01}},
    }


def figures(**changes):
    """Of one rank."""
    return {
        "rank": 0,
        "device": "cpu",
        "wait_s": 2.0,
        "transfer_s": 1.0,
        "compute_s": 7.0,
        "transfer_overlaps": False,
        "evaluate_s": 0.5,
        "checkpoint_s": 0.25,
        "num_batches": 10,
        "num_samples": 640,
        "wire_bytes": 1000,
        "read_bytes": 500,
        **changes,
    }


@pytest.fixture
def record(job_tree) -> RunRecord:
    """A record of a small run."""

    host = {"cpus": 2, "gpus": 0, "instance_type": None, "emulated": True, "samples_prepared": 320}
    stage = {
        "name": "decode",
        "num_samples": 640,
        "num_batches": 10,
        "seconds": 3.2,
        "seconds_per_sample": 0.005,
        "batch_mean_s": 0.32,
        "batch_p90_s": 0.4,
        "batch_p99_s": 0.5,
    }
    return RunRecord(
        name="small",
        status="finished",
        error=None,
        started_at="2026-01-01T00:00:00.000+00:00",
        command=["raytrain"],
        job=Job.from_dict(job_tree).model_dump(mode="json"),
        versions={"python": "3.11"},
        hardware={"cpu_model": "x", "cpu_cores": 2, "memory_bytes": 1, "platform": "Linux", "gpus": []},
        environment={},
        cluster_attached=False,
        emulated_gpus=False,
        world_size=1,
        cpu_slots=4,
        hosts=[
            {**host, "name": "train-1", "group": "train", "is_head": True},
            {**host, "name": "cpu-1", "group": "cpu", "is_head": False},
        ],
        num_train=640,
        num_validation=64,
        startup={
            "manifest_s": 0.1,
            "cluster_s": 1.0,
            "trainer_s": 1.5,
            "first_batch_ready_s": 2.0,
            "first_batch_s": 3.0,
            "first_step_s": None,
        },
        totals={
            "wall_s": 12.0,
            "samples": 640,
            "samples_per_s": 64.0,
            "wait_share": 0.2,
            "bottleneck": "input: stage 'decode' takes 5.00 ms of a CPU per sample",
            "attempts": 1,
        },
        ranks=[figures()],
        stages=[stage],
        epochs=[{"epoch": 1, "loss": 0.5, "validation_accuracy": 0.9}],
        corrupt={"count": 2, "share": 0.003, "listed": ["train: a.jpg: bad"]},
        torch_in_preprocessing_workers=False,
        resumed_from=None,
        checkpoint=None,
    )


@pytest.fixture
def job_file(job_tree, tmp_path):
    """A function that writes `job_tree`, changed by dotted keys, and returns the file's path."""

    def write(**changes) -> Path:
        tree = yaml.safe_load(yaml.safe_dump(job_tree))
        for key, value in changes.items():
            node = tree
            *parents, last = key.split("__")
            for part in parents:
                node = node.setdefault(part, {})
            node[last] = value
        path = tmp_path / f"{tree['name']}.yaml"
        path.write_text(yaml.safe_dump(tree))
        return path

    return write


def run_cli(*arguments: object, cwd: Path | None = None, timeout: float = 120, **environment: str):
    """The command line in a process of its own, output captured."""
    return subprocess.run(
        [*RAYTRAIN, *map(str, arguments)],
        cwd=cwd or ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )


def ray_processes() -> set[int]:
    """Process ids of every Ray process of this machine."""
    import psutil

    found = set()
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        command = " ".join(process.info["cmdline"] or [])
        if process.info["status"] != psutil.STATUS_ZOMBIE and (
            "ray::" in command or "/raylet/raylet" in command or "/gcs/gcs_server" in command
        ):
            found.add(process.info["pid"])
    return found


@pytest.fixture
def job(tmp_path):
    """A function that makes a job of groups on simulated hosts; the hosts are gone afterwards."""
    from simulated_job import Job

    from raytrain.cluster.simulated import SimulatedHosts

    made: list[SimulatedHosts] = []

    def make(groups, cpus=None) -> Job:
        names = sorted(name for _, members in groups.values() for name in members)
        hosts = SimulatedHosts(names, tmp_path / "hosts", cpus or {})
        made.append(hosts.__enter__())
        return Job(hosts, groups)

    yield make
    for hosts in made:
        hosts.__exit__()
