"""What a cgroup allows is what raytrain takes this machine to be: CPUs, memory, and all that is sized by them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from conftest import ROOT
from patience import patient

from raytrain.cluster import hardware, local
from raytrain.config.cluster import Group
from raytrain.config.job import Job
from raytrain.cost.instances import catalog
from raytrain.ray_internals.devices import usable_gpus
from raytrain.simulate.hosts import SimulatedHosts, unavailable
from raytrain.study import diagnose

GIB = 1 << 30
VERSION_1_NO_LIMIT = 9223372036854771712  # the largest number of bytes that is a whole number of pages


@pytest.fixture
def tree(tmp_path):
    """A function that writes made-up cgroup files and returns what `facts` should read in place of the real ones."""

    def write(own: str, files: dict[str, str]) -> tuple[Path, Path]:
        for name, text in {"cgroup": own, **{f"sys/{name}": text for name, text in files.items()}}.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(f"{text}\n")
        return tmp_path / "cgroup", tmp_path / "sys"

    return write


@pytest.fixture
def large_machine(monkeypatch):
    """64 cores, 512 GiB, and as much shared memory."""
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda self: list(range(64)))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=512 * GIB))
    monkeypatch.setattr(psutil, "disk_usage", lambda path: SimpleNamespace(free=512 * GIB))


@pytest.mark.parametrize(
    ("quota", "expected"), [("max", 64), ("6400000", 64), ("800000", 8), ("400000", 4), ("250000", 2), ("50000", 1)]
)
def test_whole_cpus_of_a_quota(tree, large_machine, quota, expected):
    assert hardware.usable_cpus(*tree("0::/", {"cpu.max": f"{quota} 100000"})) == expected
    version_1 = {
        "cpu/cpu.cfs_quota_us": "-1" if quota == "max" else quota,
        "cpu/cpu.cfs_period_us": "100000",
    }
    assert hardware.usable_cpus(*tree("2:cpu:/", {"cpu.max": "max 100000", **version_1})) == expected


def test_memory_limits_of_cgroup_version_1(tree, large_machine):
    assert hardware.memory_bytes(Path("/nowhere"), Path("/nowhere")) == 512 * GIB
    own, limit = "4:memory:/job/algo-1\n1:cpu,cpuacct:/other\n0::/", "memory.limit_in_bytes"
    files = {f"memory/{limit}": VERSION_1_NO_LIMIT, f"memory/job/algo-1/{limit}": VERSION_1_NO_LIMIT}
    assert hardware.memory_bytes(*tree(own, files)) == 512 * GIB
    assert hardware.memory_bytes(*tree(own, {f"memory/other/{limit}": GIB})) == 512 * GIB, "of another cgroup"
    assert hardware.memory_bytes(*tree(own, {f"memory/job/{limit}": 24 * GIB})) == 24 * GIB, "of the one above"
    assert hardware.memory_bytes(*tree(own, {f"memory/job/algo-1/{limit}": 16 * GIB})) == 16 * GIB


def test_memory_limits_of_cgroup_version_2(tree, large_machine):
    own = "0::/pods/pod/container"
    assert hardware.memory_bytes(*tree(own, {"pods/pod/memory.max": "max", "pods/memory.max": "max"})) == 512 * GIB
    assert hardware.memory_bytes(*tree(own, {"pods/pod/container/memory.max": 900 * GIB})) == 512 * GIB
    assert hardware.memory_bytes(*tree(own, {"pods/pod/memory.max": 12 * GIB})) == 12 * GIB
    assert hardware.memory_bytes(*tree("0::/docker/abc", {"memory.max": 8 * GIB})) == 8 * GIB, "a container's root"
    assert hardware.memory_bytes(*tree("1:name=x:/\n0::/", {"unified/memory.max": 4 * GIB})) == 4 * GIB, "both mounted"


def test_a_local_node_is_no_larger_than_its_container(monkeypatch, tree, large_machine):
    own, mounted = tree("0::/", {"cpu.max": "400000 100000", "memory.max": 8 * GIB})
    usable = hardware.usable_cpus(own, mounted), hardware.memory_bytes(own, mounted)
    monkeypatch.setattr(hardware, "usable_cpus", lambda: usable[0])
    monkeypatch.setattr(hardware, "memory_bytes", lambda: usable[1])
    node = local._node(None, 1)
    assert (node["num_cpus"], node["num_gpus"]) == (4, usable_gpus(public=False))
    assert node["object_store_memory"] == int(8 * GIB * 0.3)
    one_of_two = local._node(Group(name="cpu", hosts=2, cpus=32), 2)
    assert one_of_two["num_cpus"] == 32, "as the user said"
    assert one_of_two["object_store_memory"] == int(8 * GIB * 0.3 / 2)


class Enough(Exception):
    """What this test wanted to see has been seen."""


def test_diagnose_takes_no_more_cores_than_the_quota(monkeypatch, job_tree):
    taken = []

    def preprocess(opened, cores, seconds):
        taken.append(cores)
        if len(taken) == 2:
            raise Enough

    monkeypatch.setattr(diagnose, "preprocess", preprocess)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {7, 3, 5, 1})
    monkeypatch.setattr(hardware, "usable_cpus", lambda: 3)
    said = []
    with pytest.raises(Enough):
        diagnose.diagnose(Job.from_dict(job_tree), catalog(), say=said.append)
    assert taken == [[1], [1, 3, 5]]
    assert said[-1] == "2/4 preprocessing alone, on all 3 cores"


JOB = """
name: small
run_dir: /tmp/runs
data:
  train: {kind: synthetic, num_samples: 64, shape: [8, 8, 3], num_classes: 3}
  stages: [{resize: {size: 8}}]
  batch_size: 16
model:
  name: timm.models:VisionTransformer
  options: {img_size: 8, patch_size: 4, embed_dim: 8, depth: 1, num_heads: 1, num_classes: 3}
training: {epochs: 1}
"""


@pytest.mark.ray
@pytest.mark.hosts
@pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="a quota of 1.5 CPUs is none on one core")
def test_a_run_on_a_host_with_a_real_quota_takes_that_for_the_machine(tmp_path):
    with SimulatedHosts(["algo-1"], tmp_path / "hosts", {"algo-1": 1.5}) as hosts:
        (hosts["algo-1"].ml / "code").mkdir(parents=True)
        (hosts["algo-1"].ml / "code" / "job.yaml").write_text(JOB)
        hosts.start("algo-1", [sys.executable, "-m", "raytrain", "train", "job.yaml"])
        assert hosts.wait(patient(150)) == {"algo-1": 0}, hosts["algo-1"].output
        output = hosts["algo-1"].output
        record = json.loads((hosts["algo-1"].folder / "tmp/runs/small/record.json").read_text())
    assert "Ray nodes: 1, CPUs for the stages: 1, ranks: 1 (CPU)" in output
    assert record["hardware"]["cpu_cores"] == 1
    assert [host["cpus"] for host in record["hosts"]] == [1]


MEMORY_1 = Path("/sys/fs/cgroup/memory")
ASK = "import sys; sys.stdin.readline(); from raytrain.cluster import hardware; print(hardware.memory_bytes())"


@contextlib.contextmanager
def real_memory_limit(limit: int):
    """A cgroup of version 1; its cgroup.procs."""
    folder = MEMORY_1 / f"raytrain-quota-{os.getpid()}"
    folder.mkdir()
    try:
        (folder / "memory.limit_in_bytes").write_text(str(limit))
        yield folder / "cgroup.procs"
    finally:
        folder.rmdir()


@pytest.mark.process
@pytest.mark.skipif(not os.access(MEMORY_1 / "cgroup.procs", os.W_OK), reason="no memory cgroup (version 1) to write")
def test_a_real_memory_limit_is_believed():
    with real_memory_limit(GIB) as entry:
        child = subprocess.Popen(
            [sys.executable, "-c", ASK], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        entry.write_text(str(child.pid))
        output, _ = child.communicate("go\n", timeout=patient(30))
    assert int(output) == GIB < hardware.memory_bytes()
