"""How hosts become one cluster, or fail to, saying why."""

from __future__ import annotations

import json
import sys
import time

import pytest
from patience import patient
from simulated_job import GONE_WITHIN_S, NODES, ONE, THREE, TOKEN, TWO, nodes_of, on_simulated_hosts

pytestmark = on_simulated_hosts
JOIN_WITHIN_S = 15  # Ray starts in 5 s on a quiet machine

FIVE = {
    "b-cpu": ("ml.c5.xlarge", ["algo-5", "algo-1"]),
    "c-gpu": ("ml.g5.xlarge", ["algo-4", "algo-2"]),
    "a-cpu": ("ml.m5.xlarge", ["algo-3"]),
}


@pytest.mark.both_ways
@pytest.mark.parametrize(
    ("groups", "head"), [(ONE, "algo-1"), (TWO, "algo-1"), (THREE, "algo-2"), (FIVE, "algo-2")], ids=[1, 2, 3, 5]
)
def test_hosts_of_any_number_and_order_become_one_cluster(job, groups, head):
    started = job(groups)
    started.write("program.py", NODES)
    started.start("--", "program.py")
    names = sorted(started.hosts.names)
    started.check(dict.fromkeys(names, 0), failure=None)
    nodes = {node["raytrain-host"]: node for node in nodes_of(started.hosts[head])}
    assert sorted(nodes) == names
    for group, (kind, members) in groups.items():
        for name in members:
            node = nodes[name]
            assert node["raytrain-group"] == group and node["raytrain-instance-type"] == kind
            assert node[f"group:{group}"] == 1 and node[f"instance:{kind}"] == 1
            assert node["CPU"] >= 1
    others = [name for name in names if name != head]
    assert not any("NODES" in started.hosts[name].output for name in others)
    assert f"head {head}" in started.head_log(head)
    assert "read by the toolkit" in started.head_log(head)
    assert TOKEN not in "".join(host.output for host in started.hosts.hosts.values())


@pytest.mark.both_ways
def test_a_coordinator_and_one_worker_are_one_cluster(job):
    coordinator = {"head": ("ml.t3.large", ["algo-2"]), "work": ("ml.g5.xlarge", ["algo-1"])}
    started = job(coordinator)
    started.write("program.py", NODES)
    started.start("--head-group", "head", "--head-cpus", "0", "--head-gpus", "0", "--", "program.py")
    started.check({"algo-1": 0, "algo-2": 0}, failure=None)
    nodes = {node["raytrain-host"]: node for node in nodes_of(started.hosts["algo-2"])}
    assert sorted(nodes) == ["algo-1", "algo-2"]
    assert "CPU" not in nodes["algo-2"] and nodes["algo-2"]["memory"] < 2
    assert nodes["algo-1"]["CPU"] >= 1


SETTINGS = """
@ray.remote(num_cpus=1, label_selector={"raytrain-host": "algo-2"})
def settings():
    import os, socket
    names = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")
    path = os.environ["RAY_AUTH_TOKEN_PATH"]
    return *map(os.environ.get, names), os.path.exists(path), "RAY_AUTH_TOKEN" not in os.environ
print("SETTINGS", *ray.get(settings.remote()))
"""


def test_a_host_is_sized_by_its_cpu_quota_and_set_up_for_itself(job):
    started = job(TWO, cpus={"algo-2": 1.0})
    started.write("program.py", NODES + SETTINGS)
    started.start("--", "program.py", GLOO_SOCKET_IFNAME="mine")
    started.check({"algo-1": 0, "algo-2": 0}, failure=None)
    assert "SETTINGS eth0 mine True True" in started.head_log("algo-1")
    nodes = {node["raytrain-host"]: node for node in nodes_of(started.hosts["algo-1"])}
    assert nodes["algo-2"]["CPU"] == 1


def test_a_host_that_never_comes_is_named_and_nothing_runs(job):
    started = job(THREE)
    started.write("program.py", "print('RUNS')")
    began, within = time.monotonic(), f"{patient(JOIN_WITHIN_S):g}"
    started.start("--join-timeout", within, "--", "program.py", names=["algo-1", "algo-2"])
    assert started.wait() == {"algo-1": 2, "algo-2": 2}
    assert float(within) <= time.monotonic() - began < float(within) + patient(GONE_WITHIN_S)
    missing = "algo-3 (cpu, ml.c5.4xlarge): nothing came from 10.213.7.3"
    failure = f"2 of 3 hosts joined within {within} s; missing: {missing}"
    assert started.hosts["algo-1"].failure == started.hosts["algo-2"].failure == failure
    assert "RUNS" not in started.outputs


def test_a_host_with_another_token_is_refused_at_once(job):
    started = job(TWO)
    started.write("program.py", "print('RUNS')")
    words = ("--join-timeout", f"{patient(JOIN_WITHIN_S):g}", "--", "program.py")
    started.start(*words, names=["algo-1"])
    started.start(*words, names=["algo-2"], RAY_AUTH_TOKEN="f" * 32)
    assert started.wait() == {"algo-1": 2, "algo-2": 2}
    assert started.spread_s() > 1  # algo-2 did not wait for the head's time to be up
    assert started.hosts["algo-2"].failure == "the head algo-1 refuses algo-2: its token is not the head's"
    assert "its call was refused, its token is not the head's" in started.hosts["algo-1"].failure
    assert "RUNS" not in started.outputs


def test_several_hosts_without_a_token_refuse_to_start(job):
    started = job(TWO)
    started.write("program.py", "print('RUNS')")
    started.start("--", "program.py", names=["algo-1"], RAY_AUTH_TOKEN="")
    assert started.wait() == {"algo-1": 2}
    assert "RAY_AUTH_TOKEN must hold one word of at least 16 characters" in started.hosts["algo-1"].failure
    command = [sys.executable, "-m", "raytrain", "bootstrap", "--", "program.py"]
    started.hosts.start("algo-2", command, watch=True)
    assert started.wait() == {"algo-1": 2, "algo-2": 2}
    assert "no token for Ray's authentication" in started.hosts["algo-2"].failure


def test_insecure_runs_without_a_token(job):
    started = job(TWO)
    started.write("program.py", NODES)
    command = [sys.executable, "-m", "raytrain", "bootstrap", "--insecure", "--", "program.py"]
    for name in started.hosts.names:
        started.hosts.start(name, command, watch=True)
    started.check({"algo-1": 0, "algo-2": 0}, failure=None)
    assert "whoever reaches this host's ports can run code here" in started.head_log("algo-1")


def test_a_name_that_does_not_resolve_for_ten_seconds(job):
    started = job(TWO)
    started.write("program.py", NODES)
    worker = started.hosts["algo-2"]
    worker.know({"algo-2": worker.address})
    for host in started.hosts.hosts.values():  # nor does the platform say which interface to use
        config = json.loads((host.ml / "input/config/resourceconfig.json").read_text())
        host.configure("resourceconfig.json", {**config, "network_interface_name": None})
    started.start("--", "program.py")
    started.until("algo-2", "the head algo-1 does not answer yet: ")  # said after ten seconds
    assert "NODES" not in started.outputs
    worker.know({"algo-1": started.hosts["algo-1"].address, "algo-2": worker.address})
    started.check({"algo-1": 0, "algo-2": 0}, failure=None)


def test_a_worker_killed_before_it_joined(job):
    started = job(TWO)
    started.write("program.py", "print('RUNS')")
    started.start("--", "program.py")
    started.until("algo-2", "the head algo-1 answers")
    started.hosts["algo-2"].kill()
    assert started.wait() == {"algo-1": 2, "algo-2": 137}
    assert started.hosts["algo-1"].failure == "algo-2 (cpu, ml.c5.4xlarge) cannot join: its bootstrap is gone"
    assert "RUNS" not in started.outputs


def test_a_worker_killed_after_it_joined_while_another_is_missing(job):
    started = job(THREE)
    started.write("program.py", "print('RUNS')")
    started.start("--", "program.py", names=["algo-1", "algo-2"])
    started.until("algo-2", "algo-1 (cpu, ml.c5.4xlarge) is in")
    began = time.monotonic()
    started.hosts["algo-1"].kill()
    assert started.wait() == {"algo-1": 137, "algo-2": 2}
    assert time.monotonic() - began < patient(2 * GONE_WITHIN_S)  # it cannot be whole any more
    assert started.hosts["algo-2"].failure == "algo-1 (cpu, ml.c5.4xlarge) cannot join: its bootstrap is gone"


@pytest.mark.parametrize("port", [6379, 6380])
def test_a_taken_port_on_the_head(job, port):
    started = job(TWO)
    started.write("program.py", "print('RUNS')")
    hold = f"s = socket.create_server(('', {port})); open('held', 'w'); time.sleep(600)"
    started.write("holder.py", f"import socket, time; {hold}")
    held = f"{sys.executable} holder.py & until [ -e held ]; do sleep 0.05; done"
    words = f"{held}; exec {sys.executable} -m raytrain bootstrap -- program.py"
    started.hosts.start("algo-1", ["bash", "-c", words], {"RAY_AUTH_TOKEN": TOKEN})
    if port == 6379:  # the others can still be told
        started.start("--", "program.py", names=["algo-2"])
        assert started.wait() == {"algo-1": 2, "algo-2": 2}
        assert started.hosts["algo-2"].failure == started.hosts["algo-1"].failure
    assert started.wait()["algo-1"] == 2
    assert started.hosts["algo-1"].failure.startswith(f"port {port} is taken on algo-1")
