"""What a host says of its GPUs, by a driver made up."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from raytrain.cluster.topology import Host
from raytrain.infer.contract import StreamShape
from raytrain.infer.streams import gpu_hosts
from raytrain.infer.streams.places import Places, StreamPlace


class Nvml:
    """Of GPUs with so much memory; None for one that does not tell."""

    class NVMLError(Exception):
        pass

    def __init__(self, *totals):
        self.totals = totals

    def nvmlDeviceGetCount(self):  # noqa: N802
        return len(self.totals)

    def nvmlDeviceGetHandleByIndex(self, number):  # noqa: N802
        return number

    def nvmlDeviceGetMemoryInfo(self, handle):  # noqa: N802
        if self.totals[handle] is None:
            raise self.NVMLError
        return SimpleNamespace(total=self.totals[handle])


@pytest.mark.parametrize(("nvml", "said"), [(None, None), (Nvml(), None), (Nvml(80, 40), 40), (Nvml(80, None), None)])
def test_the_smallest_gpu_counts(monkeypatch, nvml, said):
    monkeypatch.setattr(gpu_hosts, "find_nvml", lambda public: nvml)
    assert gpu_hosts.gpu_bytes(True) == said


def test_hosts_with_real_gpus_are_asked_once():
    hosts = [Host(f"gpu-{n}", "gpu", 4, 1, node_id=str(n)) for n in range(3)]
    devices = ("cuda", "cuda", "cpu")
    streams = [StreamPlace(h, StreamShape((), 1), (0,), d) for h, d in zip(hosts, devices, strict=True)] * 2
    assert gpu_hosts.real_gpu_hosts(Places(tuple(streams), 1, 1, {}, (), {})) == hosts[:2]
