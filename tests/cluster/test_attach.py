"""Beside other Ray clusters of the machine: theirs are left alone, and attaching says at once what is in the way."""

from __future__ import annotations

import contextlib
import os
import re
import socketserver
import subprocess
import sys
import tempfile
import threading
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest
from conftest import run_cli
from patience import patient, wait_for

from raytrain.cluster import emulated
from raytrain.errors import ClusterError
from raytrain.record import read_record

USERS_OWN = """
import sys, ray
ray.init(num_cpus=2, include_dashboard=False, logging_level="error")
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder():
    """Short: Ray's sockets lie below it, and a socket's name has an end."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="ray") as path:
        yield Path(path)


@contextlib.contextmanager
def listening(handler):
    with socketserver.TCPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_what_listens_there_is_not_ray(capfd):
    with listening(SimpleHTTPRequestHandler) as address, pytest.raises(ClusterError) as caught:
        emulated.find(address)
    assert str(caught.value) == (
        f"cannot attach to the Ray cluster at {address}: what answers there is not Ray; "
        "its port is 6379 unless another was given"
    )
    capfd.readouterr()  # what the server logs


def test_what_listens_there_never_answers(monkeypatch):
    monkeypatch.setattr(emulated, "CONNECT_TIMEOUT_S", 0.2)
    over = threading.Event()

    class Silent(socketserver.BaseRequestHandler):
        def handle(self):
            over.wait()

    with listening(Silent) as address:
        with pytest.raises(ClusterError, match=f"cannot attach to the Ray cluster at {address}: timed out"):
            emulated.find(address)
        over.set()


@pytest.mark.ray
def test_a_run_leaves_the_machines_current_cluster_alone(job_file, folder):
    current = folder / "ray" / "ray_current_cluster"
    current.parent.mkdir()
    current.write_text("10.9.8.7:6379")
    result = run_cli("train", job_file(training__epochs=1), "--nodes", "train=1x1", RAY_TMPDIR=str(folder))
    assert result.returncode == 0, result.stderr
    assert current.read_text() == "10.9.8.7:6379"
    assert [path.name for path in current.parent.glob("session_2*")], "Ray ran in this folder"


@pytest.mark.ray
def test_a_users_own_cluster_is_entered_with_the_users_token(job_file, folder, tmp_path):
    """A plain `ray.init()` makes a token, and lets nobody in without it."""
    home = {"RAY_TMPDIR": str(folder), "HOME": str(folder)}
    users_own = subprocess.Popen(
        [sys.executable, "-c", USERS_OWN],
        env={**os.environ, **home},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        address = users_own.stdout.readline().strip()
        assert wait_for((folder / ".ray" / "auth_token").exists, 10, "there is a token")
        named = run_cli("train", job_file(), "--address", address, **home)
        assert named.returncode == 2
        assert f"raytrain: the Ray cluster at {address} wants a token; set RAY_AUTH_MODE=token" in named.stderr
        other = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 32}
        wrong = run_cli("train", job_file(), "--address", address, **home, **other)
        assert wrong.returncode == 2
        assert f"raytrain: the Ray cluster at {address} does not accept this token" in wrong.stderr
        for refused in (named, wrong):
            assert len(refused.stderr.splitlines()) == 2, "what it starts with, and the error"
        (folder / "ray" / "ray_current_cluster").write_text(address)
        found = run_cli("train", job_file(training__epochs=1), "--address", "auto", **home)
        assert found.returncode == 0, found.stderr
        assert read_record(tmp_path / "runs" / "small" / "record.json").cluster_attached
        assert not re.search(r"\.cc:|oken|WARN|INFO", found.stderr), found.stderr
        assert users_own.poll() is None
    finally:
        users_own.communicate(timeout=patient(60))
