"""A real process, bound."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT
from patience import patient

from raytrain.infer.streams.topology import from_ranges

pytestmark = pytest.mark.process

BOUND = """
import ctypes, json, os, re, sys, threading
from pathlib import Path
cpu, node = json.loads(sys.argv[1]), json.loads(sys.argv[2])
ended = threading.Event()
threads = [threading.Thread(target=ended.wait) for _ in range(3)]
for thread in threads: thread.start()
from raytrain.infer.contract import StreamShape
from raytrain.infer.streams.binding import bind
said = bind(StreamShape((cpu,), 1, node))
import torch
torch.mm(torch.ones(512, 512), torch.ones(512, 512))
later = threading.Thread(target=ended.wait); later.start()
mode, mask = ctypes.c_int(), (ctypes.c_ulong * 16)()
failed = 0
if node is not None:
    numa = ctypes.CDLL("libnuma.so.1")
    failed = numa.get_mempolicy(ctypes.byref(mode), mask, ctypes.c_ulong(1024), None, 0)
allowed = [re.search(r"Cpus_allowed_list:\\s*(\\S+)", (task / "status").read_text())[1]
           for task in Path("/proc/self/task").iterdir()]
print(json.dumps({"allowed": allowed, "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
                  "said": said, "policy": [failed, mode.value, mask[0]]}))
ended.set()
"""


def bound(cpu: int | None, node: int | None, code: str = BOUND) -> dict:
    ended = subprocess.run(
        [sys.executable, "-c", code, json.dumps(cpu), json.dumps(node)],
        capture_output=True,
        text=True,
        timeout=patient(60),
        cwd=ROOT,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_every_thread_is_on_the_streams_cores():
    """Those that ran before, torch's own, and those that start later."""
    cpu = max(os.sched_getaffinity(0))
    found = bound(cpu, None)
    assert len(found["allowed"]) >= 5
    assert {from_ranges(each) for each in found["allowed"]} == {(cpu,)}
    assert found["threads"] == [1, 1]
    assert found["said"] is None


def test_a_stream_without_cores_of_its_own_runs_anywhere():
    """As on a host that is emulated: it has its threads alone."""
    found = bound(None, None, BOUND.replace("(cpu,), 1", "(), 2"))
    assert {frozenset(from_ranges(each)) for each in found["allowed"]} == {frozenset(os.sched_getaffinity(0))}
    assert found["threads"] == [2, 1]


@pytest.mark.parametrize("libnuma", [True, False])
def test_memory_is_of_the_node(libnuma):
    """Through libnuma and without, where the machine has it and the container may."""
    code = BOUND
    if not libnuma:
        code = BOUND.replace("said = bind", "real = ctypes.CDLL\n" + HIDDEN + "\nsaid = bind").replace(
            "import torch\n", "import torch; ctypes.CDLL = real\n", 1
        )
    found = bound(min(os.sched_getaffinity(0)), 0, code)
    if found["policy"][0]:
        pytest.skip("this container may not ask for its memory policy")
    if found["said"]:
        assert found["said"].startswith("memory is not bound to node 0: ")
        pytest.skip(found["said"])
    assert found["policy"] == [0, 2, 1], "MPOL_BIND to node 0"


HIDDEN = """
def hidden(name, **options):
    if name == "libnuma.so.1": raise OSError
    return real(name, **options)
ctypes.CDLL = hidden
"""


def test_a_node_that_is_not_there_is_told():
    found = bound(min(os.sched_getaffinity(0)), 63)
    assert found["said"].startswith("memory is not bound to node 63: ")


def test_torch_that_has_run_before_keeps_its_threads():
    code = BOUND.replace("said = bind", "import torch; torch.set_num_interop_threads(2)\nsaid = bind")
    found = bound(min(os.sched_getaffinity(0)), None, code)
    assert found["threads"] == [1, 2]
    assert found["said"] == "torch keeps its 2 inter-op threads, since it has run before"
