"""Beside other Ray clusters of the machine: theirs are left alone, and attaching says at once what is in the way."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest
from conftest import run_cli
from docs_lines import as_it_stands
from patience import patient, wait_for

from raytrain.cluster import finding
from raytrain.errors import ClusterError
from raytrain.ray_internals.loopback import OFF_THE_NETWORK
from raytrain.record.schema import read_record

USERS_OWN = """
import sys, ray
ray.init(num_cpus=2, include_dashboard=False, logging_level="error")
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module", autouse=True)
def ray_as_it_is():
    """What a process knows of it is kept, and tests here change it."""
    assert OFF_THE_NETWORK.broken() == []


@pytest.fixture
def folder():
    """Short: Ray's sockets lie below it, and a socket's name has an end."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="ray") as path:
        yield Path(path)


@contextlib.contextmanager
def listening(handler):
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_what_listens_there_is_not_ray(capfd):
    with listening(SimpleHTTPRequestHandler) as address, pytest.raises(ClusterError) as caught:
        finding.find(address)
    assert str(caught.value) == (
        f"cannot attach to the Ray cluster at {address}: what answers there is not Ray; "
        "its port is 6379 unless another was given"
    )
    capfd.readouterr()  # what the server logs


def test_what_listens_there_never_answers(monkeypatch):
    monkeypatch.setattr(finding, "ANSWER_S", 0.1)
    monkeypatch.setattr(finding, "TRY_S", 0.2)
    over = threading.Event()

    class Silent(socketserver.BaseRequestHandler):
        def handle(self):
            over.wait()

    with listening(Silent) as address:
        with pytest.raises(ClusterError, match=f"cannot attach to the Ray cluster at {address}: timed out"):
            finding.find(address)
        over.set()


def test_a_server_that_is_busy_at_first_is_tried_again(monkeypatch):
    """It answers the second connection, and its answer comes byte by byte."""
    monkeypatch.setattr(finding, "TRY_S", 0.5)
    monkeypatch.setattr(finding, "ANSWER_S", 60.0)
    over, seen = threading.Event(), []

    class BusyAtFirst(socketserver.BaseRequestHandler):
        def handle(self):
            seen.append(1)
            if len(seen) == 1:
                over.wait()
                return
            self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]):
                self.request.sendall(bytes([byte]))
            over.wait()

    monkeypatch.setattr(finding, "_check_token", lambda address, found: None)
    with listening(BusyAtFirst) as address:
        assert finding.find(address) == address
        over.set()
    assert len(seen) == 2


@pytest.mark.parametrize("remembered", ["error", None])
def test_no_cluster_is_remembered(monkeypatch, remembered):
    def nothing(_):
        if remembered:
            raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray._private.services.canonicalize_bootstrap_address", nothing)
    with pytest.raises(ClusterError, match="--address auto: no Ray cluster runs on this machine; start one or use"):
        finding.find("auto")


def test_the_token_is_shown_to_a_cluster_of_this_machine_alone(monkeypatch):
    """`auto` is RAY_ADDRESS where that is set, and the cluster that it names may be anybody's."""
    shown = []
    monkeypatch.setattr(finding, "_await_answer", lambda host, port: None)
    monkeypatch.setattr(finding, "_check_token", lambda address, found: shown.append((address, found)))
    monkeypatch.setattr("ray._private.services.canonicalize_bootstrap_address", lambda _: "10.0.0.1:6379")
    for address, variable in (("auto", None), ("10.0.0.3:6379", None), ("auto", "10.0.0.2:6379")):
        monkeypatch.setenv("RAY_ADDRESS", variable) if variable else monkeypatch.delenv("RAY_ADDRESS", raising=False)
        finding.find(address)
    assert shown == [("10.0.0.1:6379", True), ("10.0.0.3:6379", False), ("10.0.0.2:6379", False)]


def test_over_tls_nothing_is_said_in_clear(monkeypatch):
    monkeypatch.setenv("RAY_USE_TLS", "1")
    heard, done = [], threading.Event()

    class Tls(socketserver.BaseRequestHandler):
        def handle(self):
            heard.append(self.request.recv(100))
            done.set()

    monkeypatch.setattr(finding, "_check_token", lambda address, found: None)
    with listening(Tls) as address:
        finding.find(address)
        done.wait()
    assert heard == [b""]


@pytest.mark.ray
def test_a_run_leaves_the_machines_current_cluster_alone(checkout, folder):
    current = folder / "ray" / "ray_current_cluster"
    current.parent.mkdir()
    current.write_text("10.9.8.7:6379")
    line = as_it_stands("raytrain train launch/digits.yaml")
    result = run_cli(*line, "--set", "training.epochs=1", cwd=checkout, RAY_TMPDIR=str(folder))
    assert result.returncode == 0, result.stderr
    assert current.read_text() == "10.9.8.7:6379"
    assert [path.name for path in current.parent.glob("session_2*")], "Ray ran in this folder"


@pytest.mark.both_ways
@pytest.mark.ray
def test_a_users_own_cluster_is_entered_with_the_users_token(job_file, checkout, folder, way):
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
        if way == "private":
            _check_refused(job_file, address, home)
        (folder / "ray" / "ray_current_cluster").write_text(address)
        line = as_it_stands("raytrain train launch/digits.yaml --address auto")
        found = run_cli(*line, "--set", "training.epochs=1", cwd=checkout, **home)
        assert found.returncode == 0, found.stderr
        assert read_record(checkout / "runs" / "digits" / "record.json").cluster_attached
        assert way == "public" or not re.search(r"\.cc:|oken", found.stderr), found.stderr
        assert users_own.poll() is None
    finally:
        users_own.communicate(timeout=patient(60))


def _check_refused(job_file, address, home):
    """Without the token, and with another: one line, at once."""
    named = run_cli("train", job_file(), "--address", address, **home)
    assert named.returncode == 2
    assert f"raytrain: the Ray cluster at {address} wants a token; set RAY_AUTH_MODE=token" in named.stderr
    other = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 32}
    wrong = run_cli("train", job_file(), "--address", address, **home, **other)
    assert wrong.returncode == 2
    assert f"raytrain: the Ray cluster at {address} does not accept this token" in wrong.stderr
    for refused in (named, wrong):
        assert len(refused.stderr.splitlines()) == 2, "what it starts with, and the error"
