"""A run on this machine: nothing of it can be reached from the network, and no secret of its user is written down."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import psutil
import pytest
from conftest import RAYTRAIN, run_cli
from patience import patient, wait_for

from raytrain.cluster.network import interface_of
from raytrain.ray_internals.loopback import LOOPBACK
from raytrain.record.schema import read_record

MINE = """
import time
from pathlib import Path

import torch


class Waiting(torch.nn.Module):
    def __init__(self, num_classes, api_key, folder):
        super().__init__()
        assert api_key.startswith("planted-"), "what is written down is masked, not what is used"
        self.folder = Path(folder)
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(num_classes))
        self.layers(torch.zeros(1, 3, 8, 8))

    def forward(self, image):
        if self.training:
            (self.folder / f"reached-{torch.distributed.get_rank()}").touch()
            while not (self.folder / "go").exists():
                time.sleep(0.02)
        return self.layers(image)
"""
ENVIRONMENT = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "MY_APPS_DSN")
PLANTED = "planted-"


@pytest.mark.ray
def test_a_run_on_this_machine_is_private(job_file, tmp_path, images):
    (tmp_path / "mine.py").write_text(MINE)
    secrets = {name: f"{PLANTED}{number}-{os.urandom(8).hex()}" for number, name in enumerate(ENVIRONMENT)}
    options = {"num_classes": 3, "api_key": f"{PLANTED}in-the-yaml", "folder": str(tmp_path)}
    job = job_file(
        model={"name": "mine:Waiting", "options": options},
        sagemaker={"role": "none", "environment": {"DB_PASSWORD": f"{PLANTED}for-the-cloud"}},
        training__epochs=1,
    )
    written = {name: (tmp_path / name).open("wb") for name in ("stdout", "stderr")}
    run = subprocess.Popen(
        [*RAYTRAIN, "train", str(job), "--nodes", "gpu=1x1x2,cpu=1x1"],
        env={**os.environ, **secrets, "RAYTRAIN_PUBLIC_RAY": "0"},
        stdin=subprocess.DEVNULL,
        **written,
    )
    try:
        both = [tmp_path / f"reached-{rank}" for rank in (0, 1)]
        wait_for(lambda: run.poll() is not None or all(each.exists() for each in both), 120, "both ranks train")
        assert run.poll() is None, (tmp_path / "stderr").read_text()
        family = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]
        listening = check_loopback(family)
        commands = [" ".join(each.cmdline()) for each in family]
        token = check_token(family)
        (tmp_path / "go").touch()
        assert run.wait(patient(120)) == 0, (tmp_path / "stderr").read_text()
    finally:
        run.kill()
        run.wait()
    assert {"gcs_server", "raylet", "python", "ray::RayTrainWorker"} <= listening
    assert not [command for command in commands if PLANTED in command]
    page = run_cli("report", tmp_path / "runs" / "small", "-o", tmp_path / "runs" / "page.html")
    assert page.returncode == 0, page.stderr
    [session] = {found for command in commands for found in re.findall(r"/\S*/session_\d[^/\s]*", command)}
    files = [
        *(each for each in (tmp_path / "runs").rglob("*") if each.is_file()),
        *(each for each in (Path(session) / "logs").rglob("*") if each.is_file()),
        *(tmp_path / name for name in written),
    ]
    assert len(files) > 10
    found = {str(each): what for each in files if (what := planted_in(each.read_bytes(), token))}
    assert found == {}
    record = read_record(tmp_path / "runs" / "small" / "record.json")
    assert record.job["model"]["options"]["api_key"] == "***"
    assert record.job["sagemaker"]["environment"] == {"DB_PASSWORD": "***"}
    assert not {*record.environment} & {*secrets, "PATH", "HOME"}, "the environment is never written down whole"


def check_loopback(family: list[psutil.Process]) -> set[str]:
    """The names of those of these processes that listen; all do on the loopback interface alone."""
    found: dict[str, set[str]] = {}
    for process in family:
        name = Path(" ".join(process.cmdline()).partition(" ")[0]).name.partition(".")[0]
        for each in process.net_connections("inet"):
            if each.status == psutil.CONN_LISTEN or (each.status == psutil.CONN_NONE and not each.raddr):  # TCP, UDP
                found.setdefault(name, set()).add(each.laddr.ip.removeprefix("::ffff:"))
    assert set().union(*found.values()) == {"127.0.0.1"}, found
    return set(found)


def check_token(family: list[psutil.Process]) -> bytes:
    """Ray's token, which is in a file that only this user reads, and which every node was started with."""
    nodes = [each for each in family if each.name() in ("gcs_server", "raylet")]
    assert len(nodes) == 3
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):  # what ranks say to each other
        assert {each.environ()[name] for each in nodes} == {interface_of(LOOPBACK)}
    paths = {each.environ()["RAY_AUTH_TOKEN_PATH"] for each in nodes if each.environ()["RAY_AUTH_MODE"] == "token"}
    [path] = map(Path, paths)
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    return path.read_bytes()


def planted_in(data: bytes, token: bytes) -> list[bytes]:
    return [what for what in (PLANTED.encode(), token) if what in data]
