"""Samplers in processes of their own, against loads that are known; and the rows they keep."""

from __future__ import annotations

import subprocess
import sys
import time
from statistics import median
from types import SimpleNamespace

import psutil
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import factor, patient

from raytrain.cluster import load
from raytrain.cluster.load import HostMeter
from raytrain.ray_internals import devices
from raytrain.ray_internals.devices import Gpus
from raytrain.record.rows import COLUMNS, Timeline, halved, mean_row

SAMPLE = """
import sys, time
from raytrain.cluster.load import Sampler
heavy = [name for name in ("numpy", "pydantic", "pandas", "torch", "ray", "pynvml") if name in sys.modules]
assert not heavy, heavy
began = time.time()
sampler = Sampler(1200, every_s=0.25)
time.sleep(float(sys.argv[1]))
readings_a_row, first, rows = sampler.rows(1, 0)
assert (readings_a_row, first) == (1, 0)
for row in rows:
    assert began < row[0] <= time.time()
    print(*row)
"""
BURN = "import time\nend = time.monotonic() + 600\nwhile time.monotonic() < end: pass"


def sample(seconds: float) -> dict[str, list[float | None]]:
    """What a sampler in a process of its own saw, column by column."""
    command = [sys.executable, "-c", SAMPLE, str(seconds)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=patient(60))
    assert ran.returncode == 0, ran.stderr
    rows = [[None if word == "None" else float(word) for word in line.split()] for line in ran.stdout.splitlines()]
    return dict(zip(("at", *COLUMNS), map(list, zip(*rows, strict=True)), strict=True))


def mean(values):
    return sum(values) / len(values)


@pytest.mark.process
def test_a_core_that_is_kept_busy_is_seen():
    """Against what the burning process says of itself, and what psutil says of the machine."""
    burner = subprocess.Popen([sys.executable, "-c", BURN])
    try:
        clock = psutil.Process(burner.pid)
        before, began = clock.cpu_times(), time.monotonic()
        psutil.cpu_percent()
        busy = sample(2.5)
        reference = psutil.cpu_percent() * psutil.cpu_count()
        after, elapsed = clock.cpu_times(), time.monotonic() - began
    finally:
        burner.kill()
        burner.wait()
    own = 100 * (after.user + after.system - before.user - before.system) / elapsed
    assert own > 30 / factor(), "it burns"
    assert own - 10 < mean(busy["cpu_percent"]) < 100 * psutil.cpu_count() + 5
    assert mean(busy["cpu_percent"]) == pytest.approx(reference, abs=30)
    gaps = [later - earlier for earlier, later in zip(busy["at"], busy["at"][1:], strict=False)]
    assert 2 <= len(busy["at"]) <= 10 and min(gaps) > 0.2, "a row every 0.25 s, and no two at once when late"
    assert median(gaps) < 0.35 * max(factor(), 2), "nor much later"
    assert all(0 < percent < 100 for percent in busy["memory_percent"])
    assert all(value >= 0 for name in ("received_mbit_per_s", "sent_mbit_per_s") for value in busy[name])


def test_memory_in_use_is_psutils():
    assert HostMeter().read()[2] == pytest.approx(psutil.virtual_memory().percent, abs=5)


def test_traffic_is_counted_but_for_loopback(monkeypatch):
    def counters(received, sent):
        return SimpleNamespace(bytes_recv=received, bytes_sent=sent)

    states = [
        {"lo": counters(0, 0), "eth0": counters(1000, 0), "eth1": counters(0, 0), "gone": counters(9, 9)},
        {"lo": counters(10**9, 10**9), "eth0": counters(251_000, 500_000), "eth1": counters(250_000, 0)}
        | {"new": counters(10**9, 10**9)},
    ]
    monkeypatch.setattr(load.psutil, "net_io_counters", lambda **_: states.pop(0))
    clock = [100.0, 102.0]
    monkeypatch.setattr(load.time, "monotonic", lambda: clock.pop(0))
    row = dict(zip(("at", *COLUMNS), HostMeter().read(), strict=True))
    assert (row["received_mbit_per_s"], row["sent_mbit_per_s"]) == (pytest.approx(2.0), pytest.approx(2.0))


class Nvml:
    """Of a host with two GPUs, the second of which may be broken."""

    class NVMLError(Exception):
        pass

    def __init__(self, broken=False, count=2):
        self.broken, self.count = broken, count

    def nvmlDeviceGetCount(self):  # noqa: N802 - NVML's names
        return self.count

    def nvmlDeviceGetHandleByIndex(self, number):  # noqa: N802
        return number

    def nvmlDeviceGetUtilizationRates(self, handle):  # noqa: N802
        if self.broken and handle == 1:
            raise self.NVMLError
        return SimpleNamespace(gpu=90 if handle == 0 else 40, memory=7)

    def nvmlDeviceGetMemoryInfo(self, handle):  # noqa: N802
        return SimpleNamespace(used=20, total=80)


def test_gpus_are_summed_up():
    assert Gpus(Nvml()).read() == (130.0, 50.0)
    assert Gpus(Nvml(broken=True)).read() == (None, 50.0)
    assert Gpus(Nvml(count=0)).read() == (None, None)


def test_a_host_without_nvml_has_no_gpu_figures(monkeypatch):
    def missing(_):
        raise OSError("cannot open shared object file")

    monkeypatch.setattr(devices.ctypes, "CDLL", missing)
    assert HostMeter().read()[-2:] == (None, None)


def test_a_driver_that_does_not_answer(monkeypatch):
    from ray._private import thirdparty
    from ray._private.thirdparty import pynvml  # noqa: F401 - an import would put the real one back

    monkeypatch.setattr(devices.ctypes, "CDLL", lambda _: None)
    dead = Nvml()
    dead.nvmlInit = lambda: (_ for _ in ()).throw(dead.NVMLError)
    monkeypatch.setattr(thirdparty, "pynvml", dead, raising=False)
    assert devices.find_gpus(public=False) is None
    dead.nvmlInit = lambda: None
    assert HostMeter().read()[-2:] == (130.0, 50.0)


def test_rays_copy_of_nvml_has_what_is_called():
    from ray._private.thirdparty import pynvml

    named = [name for name in dir(Nvml) if name.startswith(("nvml", "NVML"))]
    assert [name for name in (*named, "nvmlInit") if not hasattr(pynvml, name)] == []
    with pytest.raises(pynvml.NVMLError):
        pynvml.nvmlDeviceGetCount()  # not before nvmlInit, driver or not


def row(second: int, value: float | None) -> tuple:
    return (float(second), value, *[value] * (len(COLUMNS) - 1))


@settings(deadline=None)
@given(st.lists(st.floats(0, 400), min_size=1, max_size=300), st.sampled_from([2, 4, 10, 50]))
def test_a_timeline_is_bounded_and_keeps_its_mean(values, most):
    timeline = Timeline(most)
    for second, value in enumerate(values):
        timeline.add(row(second, value))
        assert len(timeline.rows) < most
    kept = len(timeline.rows) * timeline.readings_a_row
    assert 0 <= len(values) - kept < timeline.readings_a_row
    if kept:
        assert mean([r[1] for r in timeline.rows]) == pytest.approx(mean(values[:kept]), abs=1e-6)
    times = [r[0] for r in timeline.rows]
    assert times == [float(n * timeline.readings_a_row - 1) for n in range(1, len(times) + 1)]


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), max_size=60), st.sampled_from([2, 6, 20]))
def test_a_copy_that_asks_now_and_then_is_the_same(asked_after, most):
    original, copy, second = Timeline(most), Timeline(most), 0
    for pause in asked_after:
        for _ in range(pause):
            original.add(row(second, second))
            second += 1
        answer = original.news(copy.readings_a_row, len(copy.rows))
        copy.take(answer)
        assert (copy.readings_a_row, copy.rows) == (original.readings_a_row, original.rows)


def test_what_a_part_lacks_the_mean_lacks():
    assert mean_row([row(1, 2.0), (2.0, 4.0, *[None] * 5)]) == (2.0, 3.0, *[None] * 5)
    assert halved([row(1, 1.0), row(2, 3.0), row(3, 5.0)]) == [row(2, 2.0), row(3, 5.0)]
