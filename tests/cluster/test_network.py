"""This host's address, EFA and the settings that follow, and its CPU quota."""

from __future__ import annotations

import os
import socket

import pytest

from raytrain.cluster import network
from raytrain.cluster.hardware import usable_cpus
from raytrain.cluster.network import collective_settings, efa_devices, own_address
from raytrain.errors import ClusterError
from raytrain.ray_internals.devices import usable_gpus


def interfaces(monkeypatch, **addresses: str) -> None:
    monkeypatch.setattr(network, "_addresses", lambda: addresses)


def test_the_platforms_interface_comes_first_where_it_exists(monkeypatch):
    interfaces(monkeypatch, lo="127.0.0.1", eth0="10.0.0.5", eth1="10.1.0.5")
    monkeypatch.setattr(network, "resolve", lambda name: "10.1.0.5")
    assert own_address("eth0", "algo-1") == ("10.0.0.5", "eth0")
    assert own_address("ethwe", "algo-1") == ("10.1.0.5", "eth1")  # the platform's file can be wrong


def test_a_name_that_resolves_to_loopback_or_not_at_all_does_not_mislead(monkeypatch):
    interfaces(monkeypatch, lo="127.0.0.1", ens5="10.0.0.5")
    monkeypatch.setattr(network, "resolve", lambda name: "127.0.1.1")
    assert own_address(None, "algo-1") == ("10.0.0.5", "ens5")

    def fails(name: str) -> str:
        raise socket.gaierror("unknown")

    monkeypatch.setattr(network, "resolve", fails)
    assert own_address(None, "algo-1") == ("10.0.0.5", "ens5")
    interfaces(monkeypatch, lo="127.0.0.1")
    with pytest.raises(ClusterError, match="host algo-1 has no network address besides loopback"):
        own_address(None, "algo-1")


def test_labels_are_what_ray_accepts():
    assert network.label("algo-1") == "algo-1"
    assert network.label("a b/c!") == "a-b-c"
    assert len(network.label("x" * 99)) == 63


def test_a_missing_host_is_explained(monkeypatch):
    monkeypatch.setattr(network, "resolve", lambda name: "10.0.0.9")
    assert network.why_unreachable("algo-3") == "nothing came from 10.0.0.9"

    def fails(name: str) -> str:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(network, "resolve", fails)
    assert "its name does not resolve" in network.why_unreachable("algo-3")


def test_taken_ports_are_seen():
    with socket.socket() as holder:
        holder.bind(("", 0))
        holder.listen()
        assert not network.port_is_free(holder.getsockname()[1])
    assert network.port_is_free(network.free_port())


@pytest.fixture
def sysfs(tmp_path):
    """A function that adds an InfiniBand device, as the kernel shows one, under a driver."""

    def add(name: str, driver: str, device: str):
        pci = tmp_path / "pci" / name
        drivers = tmp_path / "drivers" / driver
        pci.mkdir(parents=True)
        drivers.mkdir(parents=True, exist_ok=True)
        (pci / "device").write_text(f"{device}\n")
        (pci / "driver").symlink_to(drivers)
        folder = tmp_path / "infiniband" / name
        folder.mkdir(parents=True)
        (folder / "device").symlink_to(pci)
        return tmp_path / "infiniband"

    return add


def test_efa_is_found_by_its_driver_and_rdma_by_its_device_id(sysfs, tmp_path):
    assert efa_devices(tmp_path / "infiniband") == {}
    sysfs("mlx5_0", "mlx5_core", "0x1019")
    (tmp_path / "infiniband" / "broken").mkdir()
    folder = sysfs("rdmap0s6", "efa", "0xefa0")
    assert efa_devices(folder) == {"rdmap0s6": 0xEFA0}
    first = collective_settings("eth0", "auto", efa_devices(folder))
    assert first == {"NCCL_SOCKET_IFNAME": "eth0", "GLOO_SOCKET_IFNAME": "eth0", "FI_PROVIDER": "efa"}
    sysfs("rdmap0s7", "efa", "0xefa2")
    later = collective_settings(None, "auto", efa_devices(folder))
    assert later == {"FI_PROVIDER": "efa", "FI_EFA_USE_DEVICE_RDMA": "1", "RDMAV_FORK_SAFE": "1"}


def test_the_user_can_say_whether_efa_is_used():
    assert collective_settings(None, "auto", {}) == {}
    assert collective_settings(None, "on", {})["FI_PROVIDER"] == "efa"
    assert collective_settings(None, "off", {"rdmap0s6": 0xEFA2}) == {"FI_PROVIDER": "tcp"}


def test_quotas_of_both_cgroup_versions(tmp_path):
    cores = len(os.sched_getaffinity(0))
    process, mounted = tmp_path / "cgroup", tmp_path / "sys"
    assert usable_cpus(process, mounted) == cores
    process.write_text("4:memory:/x\n1:cpu,cpuacct:/job/algo-1\n0::/\n")
    (mounted / "cpu,cpuacct/job/algo-1").mkdir(parents=True)
    (mounted / "cpu,cpuacct/job/algo-1/cpu.cfs_quota_us").write_text("-1\n")
    (mounted / "cpu,cpuacct/job/algo-1/cpu.cfs_period_us").write_text("100000\n")
    assert usable_cpus(process, mounted) == cores
    (mounted / "cpu,cpuacct/job/cpu.cfs_quota_us").write_text("150000\n")  # of the cgroup above
    (mounted / "cpu,cpuacct/job/cpu.cfs_period_us").write_text("100000\n")
    assert usable_cpus(process, mounted) == 1
    process.write_text("0::/docker/abc\n")
    mounted.joinpath("cpu.max").write_text("max 100000\n")  # what a container sees as its root
    assert usable_cpus(process, mounted) == cores
    mounted.joinpath("cpu.max").write_text("50000 100000\n")
    assert usable_cpus(process, mounted) == 1


@pytest.mark.parametrize(("visible", "expected"), [(None, 4), ("", 0), ("0,2", 2), ("0,1,2,3,4,5", 4)])
def test_no_more_gpus_are_declared_than_this_process_may_see(monkeypatch, visible, expected):
    from ray._private.accelerators import NvidiaGPUAcceleratorManager

    monkeypatch.setattr(NvidiaGPUAcceleratorManager, "get_current_node_num_accelerators", staticmethod(lambda: 4))
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert usable_gpus(public=False) == expected
