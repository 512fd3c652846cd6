"""What Prometheus is told, and what is refused before anything starts."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

from raytrain.bootstrap import prometheus
from raytrain.bootstrap.host import Options
from raytrain.bootstrap.prometheus import check, configuration, region
from raytrain.errors import ConfigError

PROMETHEUS = Path(sys.prefix) / "bin" / "prometheus"
REAL = str(PROMETHEUS) if PROMETHEUS.exists() else shutil.which("prometheus")
AMAZONS = "https://aps-workspaces.eu-west-1.amazonaws.com/workspaces/ws-1/api/v1/remote_write"
NODES = [
    {
        "Alive": True,
        "NodeManagerAddress": "10.0.0.1",
        "MetricsExportPort": 1234,
        "Labels": {"raytrain-host": "algo-1", "raytrain-group": "gpu", "raytrain-instance-type": "ml.g5.xlarge"},
    },
    {"Alive": False, "NodeManagerAddress": "10.0.0.2", "MetricsExportPort": 1, "Labels": {}},
]


def options(**asked) -> Options:
    return Options(program=("x",), **asked)


@pytest.fixture
def release(tmp_path) -> str:
    """A program that calls itself a release of the Prometheus project."""
    path = tmp_path / "prometheus"
    path.write_text("#!/bin/sh\necho prometheus, version 3.5.0\n")
    path.chmod(0o755)
    return str(path)


def test_amazons_service_is_signed_for_in_the_region_of_its_address():
    assert region(options(remote_write=AMAZONS)) == "eu-west-1"
    assert region(options(remote_write="https://example.com/write")) is None
    assert region(options(remote_write="https://proxy/write", remote_write_region="us-east-1")) == "us-east-1"


@pytest.mark.process
def test_the_configuration_names_hosts_and_signs(release):
    asked = options(prometheus=release, remote_write=AMAZONS)
    check(asked)
    found = configuration(asked, NODES, None, "vit-1")
    [targets] = found["scrape_configs"][0]["static_configs"]
    assert targets["targets"] == ["10.0.0.1:1234"]
    assert targets["labels"] == {"host": "algo-1", "group": "gpu", "instance_type": "ml.g5.xlarge"}
    assert found["global"]["external_labels"] == {"training_job": "vit-1"}
    assert found["remote_write"][0]["sigv4"] == {"region": "eu-west-1"}
    assert "basic_auth" not in found["remote_write"][0]


@pytest.mark.process
@pytest.mark.skipif(REAL is None, reason="no prometheus on this machine")
@pytest.mark.parametrize(
    "asked", [{"remote_write": AMAZONS}, {"remote_write": "http://h/w", "remote_write_user": "me"}]
)
def test_the_real_program_accepts_the_configuration(asked, tmp_path):
    password = tmp_path / "password"
    password.write_text("x")
    file = tmp_path / "prometheus.yml"
    file.write_text(yaml.safe_dump(configuration(options(**asked), NODES, password, "vit-1")))
    promtool = Path(REAL).resolve().with_name("promtool")
    done = subprocess.run([promtool, "check", "config", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.process
@pytest.mark.skipif(REAL is None, reason="no prometheus on this machine")
def test_a_build_that_sends_unsigned_is_refused():
    if "+ds" not in subprocess.run([REAL, "--version"], capture_output=True, text=True).stdout:
        pytest.skip("this prometheus is not Debian's build")
    with pytest.raises(ConfigError, match="Debian's build, which takes a SigV4 region and sends unsigned all the same"):
        check(options(prometheus=REAL, remote_write=AMAZONS))
    check(options(prometheus=REAL, remote_write="http://h/w"))


@pytest.mark.process
def test_a_binary_that_came_through_s3_has_lost_its_mode(release, tmp_path):
    Path(release).chmod(0o644)
    check(options(prometheus=release, remote_write=AMAZONS))
    (tmp_path / "private").mkdir()
    found = prometheus._binary(release, tmp_path / "private")
    assert "3.5.0" in subprocess.run([found], capture_output=True, text=True).stdout


@pytest.mark.process
def test_a_release_archive_is_unpacked(release, tmp_path):
    archive = tmp_path / "prometheus-3.5.0.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(release, "prometheus-3.5.0/prometheus")
    check(options(prometheus=str(archive), remote_write=AMAZONS))
    found = prometheus._binary(str(archive), tmp_path / "out")
    assert "3.5.0" in subprocess.run([found], capture_output=True, text=True).stdout
    with tarfile.open(archive, "w:gz") as file:
        file.add(release, "other")
    with pytest.raises(ConfigError, match="is an archive without a program `prometheus`"):
        prometheus._binary(str(archive), tmp_path / "out")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"remote_write": "http://h/w", "prometheus": "path"}, "no prometheus on this host's PATH"),
        ({"remote_write": "http://h/w"}, "no prometheus on this host's PATH"),
        ({"prometheus": "/no/such/file"}, "is not a file; give a binary, a release archive, or path"),
        ({"remote_write_region": "eu-west-1"}, "say how to use --remote-write; give it"),
        ({"prometheus": "RELEASE", "remote_write": "ftp://h"}, "must be an http:// or https:// address"),
        pytest.param(
            {"prometheus": "RELEASE", "remote_write": AMAZONS, "remote_write_user": "me"},
            "signs with a region or with a user and password, not with both",
            marks=pytest.mark.process,
        ),
        (
            {"prometheus": "RELEASE", "remote_write": "http://h/w", "remote_write_user": "me"},
            "needs --remote-write-password-file or RAYTRAIN_REMOTE_WRITE_PASSWORD",
        ),
        (
            {"prometheus": "RELEASE", "remote_write": "http://h/w", "remote_write_password_file": Path("/gone")},
            "must be a file, beside --remote-write-user",
        ),
        pytest.param({"prometheus": "BROKEN", "remote_write": AMAZONS}, "cannot be run", marks=pytest.mark.process),
    ],
)
def test_half_a_wish_is_refused(asked, message, release, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    (tmp_path / "broken").write_text("#!/no/such/interpreter\n")
    (tmp_path / "broken").chmod(0o755)
    names = {"RELEASE": release, "BROKEN": str(tmp_path / "broken")}
    asked = {key: names.get(value, value) if isinstance(value, str) else value for key, value in asked.items()}
    with pytest.raises(ConfigError, match=message):
        check(options(**asked))
