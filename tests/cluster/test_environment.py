"""The environment is read and written in one place, and what the user has set stays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from patience import patient, wait_for

from raytrain.cluster import environment, guardian
from raytrain.cluster.environment import ALLOCATOR, RAY, prepare_environment, ray_address, without_own
from raytrain.errors import ClusterError, ConfigError


def test_the_users_settings_stay(monkeypatch):
    for name in (*ALLOCATOR, *RAY):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1")
    used = prepare_environment()
    assert used["MALLOC_TOP_PAD_"] == os.environ["MALLOC_TOP_PAD_"] == "1"
    assert os.environ["MALLOC_TRIM_THRESHOLD_"] == used["MALLOC_TRIM_THRESHOLD_"] == str(1 << 30)


def test_only_what_the_user_set_is_sent_to_the_ranks():
    own = {"RAY_TRAIN_V2_ENABLED": "1", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
    assert without_own(own) == {}
    users = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "9", "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "60"}
    assert without_own({**own, **users}) == users


def test_the_address_of_the_cluster_that_started_us():
    assert ray_address({"RAY_ADDRESS": "10.0.0.1:6379"}) == "10.0.0.1:6379"
    assert ray_address({"RAY_ADDRESS": ""}) is None
    assert ray_address({}) is None


SLEEP = "import time; time.sleep(600)"
SLEEPER = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}]); {SLEEP}"


def _sleeper_with_child():
    parent = subprocess.Popen([sys.executable, "-c", SLEEPER])
    return parent, wait_for(psutil.Process(parent.pid).children, 20, "it has a child")[0]


@pytest.mark.process
def test_the_guardian_ends_a_family_whose_driver_died():
    driver = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import subprocess, sys, time\nfrom raytrain.cluster import guardian\n"
            f"victim = subprocess.Popen([sys.executable, '-c', {SLEEPER!r}])\n"
            f"g = guardian.start([victim.pid])\nprint(victim.pid, g.pid, flush=True)\ntime.sleep(600)",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    victim, watcher = (psutil.Process(int(pid)) for pid in driver.stdout.readline().split())
    processes = [victim, *wait_for(victim.children, 20, "it has a child"), watcher]
    assert len(processes) == 3
    driver.kill()
    driver.wait()
    _, alive = psutil.wait_procs(processes, timeout=patient(20))
    assert alive == []


@pytest.mark.process
def test_a_dismissed_guardian_kills_nobody():
    parent, child = _sleeper_with_child()
    watcher = guardian.start([parent.pid])
    guardian.dismiss(watcher)
    assert watcher.returncode == 0
    assert child.is_running()
    guardian.kill(guardian.family([parent.pid, 2**22 + 1]), wait_s=patient(5))
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    parent.wait(timeout=patient(5))


@pytest.fixture
def container(tmp_path, monkeypatch):
    """A SageMaker container's folder, without the toolkit."""
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setitem(sys.modules, "sagemaker_training.environment", None)
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "input/config").mkdir(parents=True)
    return tmp_path


def test_a_container_without_the_toolkit_is_read_by_ourselves(container):
    assert environment.read_resource_config() is None
    path = container / "input/config/resourceconfig.json"
    path.write_text('{"current_host": "algo-1"}')
    config, reader = environment.read_resource_config()
    assert config == {"current_host": "algo-1"} and reader == "raytrain, since the toolkit is not installed"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "resourceconfig.json cannot be read: Expecting"),
        ("[" * 100_000, "resourceconfig.json cannot be read: it is nested too deep"),
        ('{"current_host": "\\ud800"}', "resourceconfig.json cannot be read: "),
        ("[]", "must hold a JSON object"),
    ],
)
def test_a_broken_resource_config(container, text, message):
    (container / "input/config/resourceconfig.json").write_text(text)
    with pytest.raises(ClusterError, match=message):
        environment.read_resource_config()


@pytest.mark.process
def test_a_toolkit_that_stumbles_is_named_and_passed_by(tmp_path):
    config = tmp_path / "input/config"
    config.mkdir(parents=True)
    (config / "resourceconfig.json").write_text('{"current_host": "algo-1", "hosts": ["algo-1"]}')
    code = "from raytrain.cluster.environment import read_resource_config; print(read_resource_config()[1])"
    asked = [sys.executable, "-c", code]
    found = {**os.environ, "SAGEMAKER_BASE_DIR": str(tmp_path)}
    done = subprocess.run(asked, env=found, capture_output=True, text=True)
    assert "raytrain, since the toolkit failed: FileNotFoundError" in done.stdout  # it wants hyperparameters.json too
    for name in ("hyperparameters.json", "inputdataconfig.json"):
        (config / name).write_text("{}")
    done = subprocess.run(asked, env=found, capture_output=True, text=True)
    assert done.stdout == "the toolkit\n", done.stderr


def test_the_failure_file_is_written_only_in_a_job(container):
    environment.write_failure("why")
    assert not (container / "output").exists()
    (container / "input/config/resourceconfig.json").write_text("{}")
    environment.write_failure("x" * 5000)
    assert (container / "output/failure").read_text() == "x" * 1024
    environment.write_failure("ValueError: no such user: api_key=abc at s3://a:b@c")
    assert (container / "output/failure").read_text() == "ValueError: no such user: api_key=*** at s3://***@c"


def test_the_tokens_places_in_their_order(container, monkeypatch):
    assert environment.read_token(None) is None
    places = {name: name[0] * 32 for name in ("own", "path", "variable", "channel", "file")}
    (container / "home/.ray").mkdir(parents=True)
    (container / "home/.ray/auth_token").write_text(places["own"] + "\n")
    assert environment.read_token(None) == places["own"]
    (container / "path").write_text(places["path"])
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(container / "path"))
    assert environment.read_token(None) == places["path"]
    monkeypatch.setenv("RAY_AUTH_TOKEN", places["variable"])
    assert environment.read_token(None) == places["variable"]
    (container / "input/data/raytrain_token").mkdir(parents=True)
    (container / "input/data/raytrain_token/token").write_text(places["channel"])
    assert environment.read_token(None) == places["channel"]
    (container / "file").write_text(places["file"])
    assert environment.read_token(container / "file") == places["file"]


def test_a_token_that_is_none(container):
    (container / "file").write_text("short")
    with pytest.raises(ConfigError, match="must hold one word of at least 16 characters"):
        environment.read_token(container / "file")
    with pytest.raises(ConfigError, match="--token-file: .*gone cannot be read"):
        environment.read_token(container / "gone")


def test_the_job_and_its_region(monkeypatch):
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "TRAINING_JOB_NAME", "TRAINING_JOB_ARN"):
        monkeypatch.delenv(name, raising=False)
    assert environment.training_job() == (None, None)
    monkeypatch.setenv("TRAINING_JOB_NAME", "vit-1")
    monkeypatch.setenv("TRAINING_JOB_ARN", "arn:aws:sagemaker:eu-west-1:123456789012:training-job/vit-1")
    assert environment.training_job() == ("vit-1", "eu-west-1")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    assert environment.training_job() == ("vit-1", "us-east-1")


def test_what_ray_may_delete_is_told_by_its_path():
    cache = "/tmp/ray/session_x/runtime_resources/working_dir_files/_ray_pkg_0123/runs/a"
    assert environment.may_be_deleted(Path(cache))
    assert not environment.may_be_deleted(Path("/home/me/working/runs/a"))


@pytest.mark.parametrize(("text", "public"), [(None, False), ("", False), ("0", False), ("1", True)])
def test_the_public_way_is_the_users_choice(monkeypatch, text, public):
    monkeypatch.setattr(os, "environ", {} if text is None else {"RAYTRAIN_PUBLIC_RAY": text})
    assert environment.public_ray() is public
    assert ("RAY_TRAIN_ENABLE_PRINT_PATCH" in prepare_environment()) is public, "else a rank's lines come twice"


def test_another_word_for_the_public_way_is_refused(monkeypatch):
    monkeypatch.setenv("RAYTRAIN_PUBLIC_RAY", "yes")
    with pytest.raises(ConfigError, match="RAYTRAIN_PUBLIC_RAY must be 0 or 1, not 'yes'"):
        prepare_environment()


@pytest.mark.parametrize(
    ("text", "expected"), [(None, 25.0), ("10", 5.0), ("100", 90.0), ("120", 108.0), ("4", 2.0), ("0", 0.0)]
)
def test_a_stop_takes_nearly_all_the_time_that_there_is(monkeypatch, text, expected):
    monkeypatch.delenv("RAYTRAIN_STOP_GRACE_S", raising=False)
    if text is not None:
        monkeypatch.setenv("RAYTRAIN_STOP_GRACE_S", text)
    assert environment.stop_grace_s() == pytest.approx(expected)


@pytest.mark.parametrize("text", ["soon", "-1", "inf", "nan"])
def test_a_grace_that_is_none(monkeypatch, text):
    monkeypatch.setenv("RAYTRAIN_STOP_GRACE_S", text)
    with pytest.raises(ConfigError, match=f"RAYTRAIN_STOP_GRACE_S must be seconds, such as 30, not '{text}'"):
        environment.prepare_environment()


def test_settings_for_what_is_started_are_gone_afterwards(monkeypatch):
    monkeypatch.setenv("OURS_TOO", "the user's")
    monkeypatch.delenv("OURS", raising=False)
    with environment.started_with({"OURS": "1", "OURS_TOO": "2"}):
        assert (os.environ["OURS"], os.environ["OURS_TOO"]) == ("1", "the user's")
    assert "OURS" not in os.environ and os.environ["OURS_TOO"] == "the user's"


def test_a_cluster_of_this_machine_has_a_token_unless_the_user_has_said_which(monkeypatch):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    made = environment.own_token()
    path = Path(made["RAY_AUTH_TOKEN_PATH"])
    assert made["RAY_AUTH_MODE"] == "token" and environment.own_token() == made, "one a process"
    assert (len(path.read_text()), path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (
        64,
        0o600,
        0o700,
    )
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x" * 64)
    assert environment.own_token() == {"RAY_AUTH_MODE": "token"}
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert environment.own_token() == {}
