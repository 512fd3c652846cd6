"""Simulated hosts are hosts: what one has of its own, how it is killed, and that nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from patience import patient, wait_for
from simulated_job import needs_hosts

from raytrain.errors import ClusterError
from raytrain.simulate import hosts as simulated
from raytrain.simulate import quota
from raytrain.simulate.hosts import SimulatedHosts, unavailable


@pytest.fixture
def hosts(tmp_path):
    with SimulatedHosts(["algo-1", "algo-2"], tmp_path / "hosts", {"algo-2": 0.5}) as made:
        yield made


@needs_hosts
def test_each_host_has_its_own_name_address_and_files(hosts):
    script = """
    uname -n; cat /proc/sys/kernel/hostname; pwd
    echo $$; ls /proc | grep -c '^[0-9]*$'
    echo mine > /tmp/file; echo mine > /dev/shm/file; echo mine > /opt/ml/file
    python3 -c "import socket; print(socket.gethostbyname('algo-2'))"
    """
    before = set(os.listdir("/tmp")), set(os.listdir("/dev/shm"))
    for name in ("algo-1", "algo-2"):
        hosts.start(name, ["bash", "-c", script])
    assert hosts.wait(patient(30)) == {"algo-1": 0, "algo-2": 0}
    lines = hosts["algo-1"].output.split()
    assert lines[:4] == ["algo-1", "algo-1", "/opt/ml/code", "1"]
    assert int(lines[4]) <= 4 and lines[5] == hosts["algo-2"].address
    assert (hosts["algo-1"].ml / "file").read_text() == "mine\n"
    assert (hosts["algo-1"].folder / "tmp/file").read_text() == "mine\n"
    assert not {"file"} & (set(os.listdir("/tmp")) - before[0] | set(os.listdir("/dev/shm")) - before[1])


@needs_hosts
def test_hosts_talk_until_one_is_unplugged_or_killed(hosts):
    serve = (
        "import http.server; http.server.HTTPServer(('', 8000), http.server.SimpleHTTPRequestHandler).serve_forever()"
    )
    hosts.start("algo-1", [sys.executable, "-c", serve])
    hosts.start("algo-2", ["sleep", "600"])
    ask = (
        "import sys, urllib.request\n"
        "try: print(urllib.request.urlopen('http://algo-1:8000/', timeout=2).status)\n"
        "except OSError as error: print('silence')\n"
    )
    look = [sys.executable, "-c", ask]
    wait_for(lambda: "200" in hosts.look("algo-2", look), 20, "algo-1 serves", lambda: hosts["algo-1"].output)
    hosts.unplug("algo-1")
    assert "silence" in hosts.look("algo-2", look)
    hosts.plug("algo-1")
    assert "200" in hosts.look("algo-2", look)
    hosts.delay("algo-1", 0.1)
    took = "import time\nbegan = time.monotonic()\n" + ask + "print(time.monotonic() - began)"
    assert float(hosts.look("algo-2", [sys.executable, "-c", took]).split()[-1]) >= 0.4, "there and back, twice"
    hosts.unplug("algo-1")
    with pytest.raises(ClusterError, match="still running after 0.1 s: algo-1, algo-2"):
        hosts.wait(0.1)
    below = hosts["algo-1"].init()
    assert below.is_running()
    hosts["algo-1"].kill()
    hosts["algo-2"].kill()
    assert hosts.wait(patient(10)) == {"algo-1": 137, "algo-2": 137}
    with pytest.raises(ClusterError, match="the simulated host algo-1 is not running"):
        hosts["algo-1"].init()
    assert not below.is_running() or below.status() == psutil.STATUS_ZOMBIE


@needs_hosts
def test_a_watched_host_passes_signals_on_and_tells_what_was_left(hosts):
    script = "trap 'exit 9' TERM; setsid sleep 600 & echo READY; while :; do sleep 0.1; done"
    host = hosts.start("algo-1", ["bash", "-c", script], watch=True)
    wait_for(lambda: "READY" in host.output, 20, "the host is ready", lambda: host.output)
    host.signal(signal.SIGTERM)
    assert hosts.wait(patient(20)) == {"algo-1": 9}
    assert any("sleep 600" in line for line in host.left_behind)


@needs_hosts
def test_a_cpu_quota_holds(hosts):
    burn = "import time\nend = time.monotonic() + 2\nwhile time.monotonic() < end: pass\nprint(time.process_time())"
    hosts.start("algo-2", [sys.executable, "-c", burn])
    hosts.wait(patient(30))
    assert float(hosts["algo-2"].output) < 1.6  # of 2 seconds, with a quota of half a CPU


@pytest.mark.hosts
@needs_hosts
def test_nothing_is_left_behind_not_even_by_one_that_was_killed(tmp_path):
    code = f"""
import time
from pathlib import Path
from raytrain.simulate.hosts import SimulatedHosts
with SimulatedHosts(["algo-1"], Path({str(tmp_path / "killed")!r}), {{"algo-1": 0.5}}) as hosts:
    hosts.start("algo-1", ["sleep", "600"])
    print(hosts["algo-1"].init().pid, flush=True)
    time.sleep(600)
"""

    def ours(pid: int) -> list[str]:
        places = (Path("/var/run/netns"), simulated.CGROUPS / "cpu", simulated.CGROUPS)
        return [str(path) for place in places for path in place.glob(f"raytrain-{pid}-*")]

    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    init = psutil.Process(int(owner.stdout.readline()))
    assert ours(owner.pid)
    owner.kill()
    owner.wait()
    psutil.wait_procs([init], timeout=patient(10))
    with SimulatedHosts(["algo-1"], tmp_path / "next"):
        assert ours(os.getpid()) and not ours(owner.pid)  # the next one cleans up
    assert not ours(os.getpid())
    assert not init.is_running()


def test_a_machine_without_what_it_takes_is_told_so(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert unavailable() == "simulating hosts needs root"
    with pytest.raises(ClusterError, match="simulating hosts needs root"), SimulatedHosts(["a"], tmp_path):
        pass
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(simulated.shutil, "which", lambda tool: None)
    assert "needs util-linux (unshare, nsenter, setpriv, mount not found)" in unavailable()
    monkeypatch.setattr(simulated.sys, "platform", "darwin")
    assert "this is not Linux" in unavailable()


@needs_hosts
def test_a_network_that_is_not_allowed(hosts):
    with pytest.raises(ClusterError, match="this machine does not allow a simulated network: .*File exists"):
        hosts._connect()  # once more


def test_a_quota_that_is_not_allowed(monkeypatch, tmp_path):
    monkeypatch.setattr(quota, "CGROUPS", tmp_path / "gone")
    with pytest.raises(ClusterError, match="this machine does not allow a CPU quota"):
        quota.cgroup("raytrain-1-1-1", 0.5)
