"""The environment is read and written in one place, and what the user has set stays."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil

from raytrain.cluster import guardian
from raytrain.cluster.environ import ALLOCATOR, RAY, prepare_environment, ray_address


def test_the_users_settings_stay(monkeypatch):
    for name in (*ALLOCATOR, *RAY):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1")
    used = prepare_environment()
    assert used["MALLOC_TOP_PAD_"] == os.environ["MALLOC_TOP_PAD_"] == "1"
    assert os.environ["MALLOC_TRIM_THRESHOLD_"] == used["MALLOC_TRIM_THRESHOLD_"] == str(1 << 30)


def test_the_address_of_the_cluster_that_started_us():
    assert ray_address({"RAY_ADDRESS": "10.0.0.1:6379"}) == "10.0.0.1:6379"
    assert ray_address({"RAY_ADDRESS": ""}) is None
    assert ray_address({}) is None


SLEEP = "import time; time.sleep(60)"
SLEEPER = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}]); {SLEEP}"


def _sleeper_with_child():
    parent = subprocess.Popen([sys.executable, "-c", SLEEPER])
    deadline = time.monotonic() + 20
    while not psutil.Process(parent.pid).children() and time.monotonic() < deadline:
        time.sleep(0.05)
    return parent, psutil.Process(parent.pid).children()[0]


def test_the_guardian_ends_a_family_whose_driver_died():
    driver = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import subprocess, sys, time\nfrom raytrain.cluster import guardian\n"
            f"victim = subprocess.Popen([sys.executable, '-c', {SLEEPER!r}])\n"
            f"g = guardian.start([victim.pid])\nprint(victim.pid, g.pid, flush=True)\ntime.sleep(60)",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    victim, watcher = (psutil.Process(int(pid)) for pid in driver.stdout.readline().split())
    deadline = time.monotonic() + 20
    while not victim.children() and time.monotonic() < deadline:
        time.sleep(0.05)
    processes = [victim, *victim.children(), watcher]
    assert len(processes) == 3
    driver.kill()
    driver.wait()
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert alive == []


def test_a_dismissed_guardian_kills_nobody():
    parent, child = _sleeper_with_child()
    watcher = guardian.start([parent.pid])
    guardian.dismiss(watcher)
    assert watcher.returncode == 0
    assert child.is_running()
    guardian.kill(guardian.family([parent.pid, 2**22 + 1]), wait_s=5)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    parent.wait(timeout=5)
