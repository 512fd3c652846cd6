"""NVIDIA's daemon, in the place of which a program stands that writes what it is called with: there is no GPU here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from raytrain.errors import ClusterError, ConfigError
from raytrain.infer.streams.mps import Mps

STAND_IN = """#!/bin/sh
{ echo "arguments: $*"; echo "pipe: $CUDA_MPS_PIPE_DIRECTORY"; [ "$1" = -d ] || cat; } >> "$CALLS"
if [ -n "$FAILS" ]; then echo "An instance of this daemon is" >&2; echo "already running" >&2; exit 1; fi
"""


@pytest.fixture
def calls(tmp_path, monkeypatch) -> Path:
    program = tmp_path / "bin" / "nvidia-cuda-mps-control"
    program.parent.mkdir()
    program.write_text(STAND_IN)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return tmp_path / "calls"


@pytest.mark.process
def test_it_is_started_and_stopped(calls, tmp_path):
    mps = Mps(tmp_path / "mps")
    mps.start()
    mps.stop()
    pipe = mps.environment["CUDA_MPS_PIPE_DIRECTORY"]
    assert calls.read_text().splitlines() == ["arguments: -d", f"pipe: {pipe}", "arguments: ", f"pipe: {pipe}", "quit"]
    assert all(Path(path).is_dir() and Path(path).is_relative_to(tmp_path) for path in mps.environment.values())


@pytest.mark.process
def test_it_fails(calls, tmp_path, monkeypatch):
    monkeypatch.setenv("FAILS", "1")
    with pytest.raises(ClusterError) as told:
        Mps(tmp_path / "mps").start()
    assert str(told.value) == "nvidia-cuda-mps-control failed: An instance of this daemon is already running"


def test_it_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="nvidia-cuda-mps-control is not on this host's PATH; it comes with NVIDIA's"):
        Mps(tmp_path / "mps").start()


@pytest.mark.process
def test_it_does_not_answer(calls, tmp_path, monkeypatch):
    monkeypatch.setattr("raytrain.infer.streams.mps.TIMEOUT_S", 0.01)
    (tmp_path / "bin" / "nvidia-cuda-mps-control").write_text("#!/bin/sh\nexec sleep 100\n")
    with pytest.raises(ClusterError, match="nvidia-cuda-mps-control has not answered for 0 s; see "):
        Mps(tmp_path / "mps").start()
