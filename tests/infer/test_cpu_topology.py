"""Hosts as Linux shows them, built by hand."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees_of_cpus import c5_4xlarge, host, hybrid, two_sockets

from raytrain.infer.streams.topology import Cache, as_ranges, from_ranges, read_topology


def test_two_sockets_with_a_node_each(tmp_path):
    """Linux numbers the first threads of all cores, then the second ones: CPU 0 and 8 are a core."""
    found = read_topology(two_sockets(tmp_path), range(16))
    assert [core.cpus for core in found.cores] == [(n, n + 8) for n in range(8)]
    assert [core.node for core in found.cores] == [core.socket for core in found.cores] == [0] * 4 + [1] * 4
    assert (found.nodes, found.sockets, found.quota) == ((0, 1), (0, 1), None)
    assert found.cpus == tuple(range(16))
    assert found.caches[-2:] == (
        Cache(3, 16 << 20, (0, 1, 2, 3, 8, 9, 10, 11)),
        Cache(3, 16 << 20, (4, 5, 6, 7, 12, 13, 14, 15)),
    )
    assert {cache.level for cache in found.caches} == {2, 3}
    assert [cache.cpus for cache in found.caches if cache.level == 2] == [(n, n + 8) for n in range(8)]
    assert all(core.fast for core in found.cores)


def test_a_c5_4xlarge(tmp_path):
    found = read_topology(c5_4xlarge(tmp_path), range(16))
    assert [core.cpus for core in found.cores] == [(n, n + 8) for n in range(8)]
    assert (found.nodes, found.sockets) == ((0,), (0,))


def test_cpus_that_are_offline_are_not_there(tmp_path):
    """A core whose second thread is off has one."""
    root = host(tmp_path, {n: (n % 4, 0, 0) for n in range(8)}, offline=(5, 3, 7))
    found = read_topology(root, range(8))
    assert [core.cpus for core in found.cores] == [(0, 4), (1,), (2, 6)]


def test_a_machine_that_says_nothing(tmp_path):
    """Each CPU is a core, all of one node."""
    found = read_topology(tmp_path, (0, 1, 2))
    assert [core.cpus for core in found.cores] == [(0,), (1,), (2,)]
    assert (found.nodes, found.caches) == ((0,), ())
    for cpu in range(2):  # folders without topology
        (tmp_path / "cpu" / f"cpu{cpu}").mkdir(parents=True)
    assert [core.cpus for core in read_topology(tmp_path, range(8)).cores] == [(0,), (1,)]


def test_a_container_with_a_cpuset(tmp_path):
    found = read_topology(two_sockets(tmp_path), (2, 3, 10, 5))
    assert [core.cpus for core in found.cores] == [(2, 10), (3,), (5,)]
    assert [core.node for core in found.cores] == [0, 0, 1]
    assert found.caches[-1] == Cache(3, 16 << 20, (5,))


def test_a_container_with_a_quota(tmp_path):
    root = two_sockets(tmp_path)
    assert read_topology(root, range(16), quota=4).quota == 4
    assert read_topology(root, range(4), quota=4).quota is None


def test_kinds_of_cores(tmp_path):
    """By frequency or Arm's capacity; cores that may clock a little higher than the others are of their kind."""
    found = read_topology(hybrid(tmp_path / "intel"), range(8))
    assert [(core.cpus, core.fast) for core in found.cores] == [
        ((0, 1), True),
        ((2, 3), True),
        *(((cpu,), False) for cpu in (4, 5, 6, 7)),
    ]
    arm = host(tmp_path / "arm", {n: (n, 0, 0) for n in range(4)}, capacity={0: 512, 1: 512, 2: 1024, 3: 1024})
    assert [(core.cpus[0], core.fast) for core in read_topology(arm, range(4)).cores] == [
        (2, True),
        (3, True),
        (0, False),
        (1, False),
    ]


def test_without_some_cores(tmp_path):
    whole = read_topology(two_sockets(tmp_path), range(16), quota=6)
    left = whole.without((0, 1, 12))
    assert [core.cpus for core in left.cores] == [(2, 10), (3, 11), (5, 13), (6, 14), (7, 15)]
    assert left.quota == 3


@pytest.mark.process
@pytest.mark.skipif(shutil.which("lscpu") is None, reason="lscpu is not installed")
def test_this_host_is_as_lscpu_sees_it():
    found = read_topology()
    assert set(found.cpus) == os.sched_getaffinity(0)
    told = subprocess.run(["lscpu", "--parse=CPU,CORE,SOCKET,NODE"], capture_output=True, text=True, check=True).stdout
    cores: dict[tuple[str, str, str], list[int]] = {}
    for line in told.splitlines():
        cpu, *place = line.split(",")
        if not line.startswith("#") and int(cpu) in found.cpus:
            cores.setdefault(tuple(place), []).append(int(cpu))
    assert {(str(c.socket), str(c.node), c.cpus) for c in found.cores} == {
        (socket or "0", node or "0", tuple(cpus)) for (_, socket, node), cpus in cores.items()
    }


@given(st.sets(st.integers(0, 300)))
def test_lists_of_cpus(cpus):
    assert set(from_ranges(as_ranges(cpus))) == cpus


def test_lists_of_cpus_as_linux_writes_them():
    assert as_ranges([0, 1, 2, 3, 8]) == "0-3,8"
    assert from_ranges("0-1,4\n") == (0, 1, 4)
    assert from_ranges("") == from_ranges("none") == ()
