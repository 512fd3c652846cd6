"""How much of the training time a GPU is busy: by hand, against a timeline of milliseconds, and by a fake NVML."""

from __future__ import annotations

import threading
import time
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raytrain.device import busy, clock
from raytrain.device.busy import LONGEST_S, BusyShare, BusyWatch, NvmlSource, Reading, find_source
from raytrain.device.clock import DeviceClock
from raytrain.device.meter import RankMeter
from raytrain.ray_internals import devices


def share_of(readings, windows) -> BusyShare:
    made = BusyShare()
    for at_s, busy_share in readings:
        made.add(Reading(at_s, busy_share))
    for window in windows:
        made.trained(*window)
    return made


def test_a_busy_share_by_hand():
    """Samples every second: of training from 10.5 to 14 and from 20 to 22, those until 12, 13, 14, 21 and 22 count."""
    idle = [(at, 0.0) for at in range(15, 21)]
    shares = [(10, 0.0), (11, 0.0), (12, 0.5), (13, 1.0), (14, 0.75), *idle, (21, 1.0), (22, 0.25)]
    found = share_of(shares, [(10.5, 14.0), (20.0, 22.0)])
    assert found.value() == pytest.approx((0.5 + 1.0 + 0.75 + 1.0 + 0.25) / 5)


def test_training_time_that_goes_on_is_one():
    """Steps and the waits between them: a sample lies in several."""
    found = share_of([(0, 0.0), (1, 0.5), (2, 1.0)], [(0.0, 0.3), (0.3, 0.9), (0.9, 1.7), (1.7, 2.0)])
    assert found.value() == 0.75
    again = share_of([(0, 0.0), (1, 0.5), (2, 1.0)], [(0.0, 1.2), (0.9, 1.7), (1.0, 1.5), (1.7, 2.0)])
    assert again.value() == 0.75, "what was told twice counts once"


def test_a_sample_that_holds_a_checkpoint_is_left_out():
    assert share_of([(0, 0.0), (1, 1.0), (2, 0.5), (3, 1.0)], [(0.0, 1.2), (1.8, 3.0)]).value() == 1.0


def test_nobody_knows_without_samples_of_half_the_training_time():
    assert BusyShare().value() is None
    assert share_of([(0, 0.0), (1, 1.0)], []).value() is None, "no training"
    assert share_of([], [(0.0, 9.0)]).value() is None, "no samples"
    assert share_of([(1, 0.5)], [(0.0, 1.5)]).value() is None, "of a first sample it is not known since when it is"
    assert share_of([(0, 0.0), (1, 0.5)], [(0.0, 2.0)]).value() == 0.5
    assert share_of([(0, 0.0), (1, 0.5)], [(0.0, 2.1)]).value() is None
    assert share_of([(0, 0.0), (1, 0.5)], [(0.5, 0.9)]).value() is None, "a pass shorter than a sample"


def test_samples_that_come_again_or_late_change_nothing():
    readings = [(0, 0.0), (1, 0.5), (1, 0.9), (2, 1.0), (0.5, 0.1), (2, 0.0), (3, 0.75)]
    assert share_of(readings, [(0.0, 3.0)]).value() == 0.75


def test_lost_samples_and_those_of_others_cover_nothing():
    """From 3 on the driver had forgotten them; then somebody else was on the GPU."""
    known = [(0, 0.0), (1, 0.5), (2, 0.5), (3, 0.5)]
    assert share_of([*known, (3 + LONGEST_S, 0.0)], [(0.0, 5.5)]).value() == pytest.approx(0.3)
    assert share_of([*known, (3.1 + LONGEST_S, 0.0)], [(0.0, 5.5)]).value() == 0.5
    assert share_of([(0, 0.0), (1, 0.5), (2, None), (3, 1.0)], [(0.0, 3.0)]).value() == 0.75
    assert share_of([(0, 0.0), (1, None), (2, None), (3, 1.0)], [(0.0, 3.0)]).value() is None


def test_clocks_that_are_put_back_count_nothing_twice():
    found = share_of([(10, 0.0), (11, 1.0), (12, 1.0)], [(10.0, 12.0)])
    found.add(Reading(9.0, 0.0))
    found.trained(8.0, 11.0)
    assert found.value() == 1.0


@given(st.data())
def test_a_timeline_of_milliseconds_agrees(data):
    """Windows and samples in any order of arrival, each in its own order."""
    edges = sorted(data.draw(st.lists(st.integers(0, 8000), min_size=2, max_size=12)))
    windows = [pair for pair in pairwise(edges) if data.draw(st.booleans())]
    ticks = data.draw(st.lists(st.integers(0, 8000), max_size=40))
    ticks = sorted(ticks) if data.draw(st.booleans()) else ticks
    readings = [(at, data.draw(st.none() | st.integers(0, 100))) for at in ticks]

    training = np.zeros(8001, bool)
    for start, end in windows:
        training[start:end] = True
    last, counted, busy_ms = None, 0, 0.0
    for at, percent in readings:
        if last is not None and at <= last:
            continue
        if last is not None and percent is not None and at - last <= LONGEST_S * 1000 and training[last:at].all():
            counted += at - last
            busy_ms += (at - last) * percent / 100
        last = at
    expected = busy_ms / counted if counted and counted >= training.sum() / 2 else None

    made, left = BusyShare(), [list(readings), list(windows)]
    while any(left):
        which = data.draw(st.integers(0, 1)) if all(left) else int(not left[0])
        first, second = left[which].pop(0)
        if which:
            made.trained(first / 1000, second / 1000)
        else:
            made.add(Reading(first / 1000, None if second is None else second / 100))
    assert made.value() == (None if expected is None else pytest.approx(expected, abs=1e-9))


class Timeline:
    """A source that tells what it is given; `asked` is set when it has been read."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), threading.Event()

    def read(self):
        answer = self.answers.pop(0) if self.answers else []
        self.asked.set()
        return [Reading(*each) for each in answer]


def test_a_watch_reads_now_and_then_and_once_more_in_the_end():
    source = Timeline([(0.0, 0.0), (1.0, 1.0)], [(2.0, 0.5)])
    watch = BusyWatch(source, every_s=1e-3)
    assert source.asked.wait(60)
    watch.trained(0.0, 2.0)
    assert watch.close() == 0.75
    watch = BusyWatch(Timeline([(0.0, 0.0), (1.0, 0.25)]), every_s=1e6)
    watch.trained(0.0, 1.0)
    assert watch.close() == 0.25, "the samples since the last look"


def test_a_driver_that_does_not_answer_holds_nobody_up(monkeypatch):
    monkeypatch.setattr(busy, "GIVE_UP_S", 0.01)
    forever = threading.Event()
    watch = BusyWatch(SimpleNamespace(read=lambda: forever.wait() and []), every_s=1e-3)
    watch.trained(0.0, 1.0)
    assert watch.close() is None
    forever.set()


def test_gaps_are_what_is_left_of_the_steps():
    """10 s waiting and 90 s in steps; 84 % of the 100 s a kernel ran."""
    meter = RankMeter(wait_s=10.0, compute_s=90.0, transfer_s=5.0, transfer_overlaps=True)
    meter.part_gaps(None)
    assert (meter.gap_s, meter.compute_s, meter.train_s) == (None, 90.0, 100.0)
    meter.part_gaps(0.84)
    assert (meter.gap_s, meter.compute_s) == (pytest.approx(6.0), pytest.approx(84.0))
    assert (meter.train_s, meter.in_steps_s, meter.wait_share) == (100.0, 90.0, 0.1)
    found = meter.figures(0, "cuda:0")
    assert (found.gap_s, found.compute_s, found.train_s) == (meter.gap_s, meter.compute_s, 100.0)
    assert found.wait_s + found.gap_s + found.compute_s == pytest.approx(found.train_s)
    meter.part_gaps(0.95)
    assert (meter.gap_s, meter.compute_s) == (0.0, 90.0), "kernels that ran while it waited are none of a step"


class Gpu:
    """In the place of a GPU and its clock: fake events, which happen `late` seconds after the host records them."""

    def __init__(self):
        self.now, self.late, self.waited = 1000.0, 0.0, 0

    def event(self):
        return Event(self, self.now + self.late)

    def time(self):
        return self.now


class Event:
    def __init__(self, gpu, at):
        self.gpu, self.at = gpu, at

    def query(self):
        return self.gpu.now >= self.at

    def synchronize(self):
        self.gpu.waited += self.gpu.now < self.at
        self.gpu.now = max(self.gpu.now, self.at)

    def elapsed_time(self, other):
        return (other.at - self.at) * 1e3


class Told:
    """In the place of a watch: what it was told, and a busy share."""

    def __init__(self, share=None):
        self.windows, self.share = [], share

    def trained(self, start_s, end_s):
        self.windows.append((start_s, end_s))

    def close(self):
        return self.share


@pytest.fixture
def gpu(monkeypatch):
    made = Gpu()
    monkeypatch.setattr(clock, "event", made.event)
    monkeypatch.setattr(clock, "time", made)
    return made


def train(device_clock, gpu, steps):
    """A pass; each step is its wait, what it takes, and how much of that a checkpoint takes at its end."""
    device_clock.begin()
    for wait_s, step_s, aside_s in steps:
        device_clock.waiting()
        gpu.now += wait_s
        device_clock.arrived()
        device_clock.ready(None)
        gpu.now += step_s
        device_clock.done(aside_s)


def test_a_gpu_ranks_training_time_is_told_as_it_was(gpu):
    """Two passes with an evaluation of 50 s between them, and a checkpoint of 2 s in a step of 5 s."""
    meter, told = RankMeter(), Told(0.5)
    device_clock = DeviceClock(meter, told)
    train(device_clock, gpu, [(7.0, 1.0, 0.0), (0.5, 5.0, 2.0), (0.25, 1.0, 0.0)])
    gpu.now += 50.0
    train(device_clock, gpu, [(3.0, 4.0, 0.0)])
    device_clock.close()
    real = [(start, end) for start, end in told.windows if end > start]
    assert real == [(1007.0, 1008.0), (1008.0, 1011.5), (1013.5, 1014.75), (1067.75, 1071.75)]
    assert sum(end - start for start, end in real) == meter.train_s == pytest.approx(0.75 + 1 + 3 + 1 + 4)
    assert meter.gap_s == pytest.approx(9.0 - 0.5 * 9.75) and meter.compute_s == pytest.approx(0.5 * 9.75)


def test_a_gpu_that_runs_behind_its_host_is_told_by_its_own_time(gpu):
    """The first batch's copy takes 0.25 s, then the host is 0.5 s ahead. It waits for the GPU once a pass, where that
    begins, and for the last steps."""
    told = Told()
    device_clock = DeviceClock(RankMeter(), told)
    device_clock.begin()
    gpu.late = 0.25
    device_clock.arrived()
    gpu.late = 0.5
    for _ in range(3):
        device_clock.ready(None)
        gpu.now += 1.0
        device_clock.done(0.0)
        device_clock.waiting()
        device_clock.arrived()
    assert gpu.waited == 1
    device_clock.close()
    assert told.windows[0][0] == 1000.25 and told.windows[-1][1] == 1003.75
    assert all(before[1] == after[0] for before, after in zip(told.windows, told.windows[1:], strict=False))


def test_a_host_that_is_far_ahead_sleeps_with_two_steps_still_to_come(gpu):
    """Launching takes no time, and a step a second of the GPU."""
    device_clock = DeviceClock(RankMeter())
    device_clock.begin()
    done_at = 1000.0
    for step in range(6):
        device_clock.waiting()
        still_to_come = done_at - gpu.now
        assert still_to_come == min(step, 2), "neither more, nor fewer than there could be"
        gpu.late = still_to_come
        device_clock.arrived()
        done_at = max(done_at, gpu.now) + 1.0
        gpu.late = done_at - gpu.now
        device_clock.done(0.0)
    device_clock.close()


class Nvml:
    """A fake NVML of a host with one GPU, `GPU-a`: it raises and returns what NVML's reference says, and asks no
    driver."""

    NVML_GPU_UTILIZATION_SAMPLES, NVML_DEVICE_MIG_ENABLE = 1, 1

    class NVMLError(Exception):
        pass

    def __init__(self):
        self.samples, self.pids, self.mig = [], [4711], 0

    def nvmlDeviceGetHandleByUUID(self, uuid):  # noqa: N802 - NVML's names
        if uuid != "GPU-a":
            raise self.NVMLError("not found")
        return uuid

    def nvmlDeviceGetMigMode(self, handle):  # noqa: N802
        if self.mig is None:
            raise self.NVMLError("not supported")
        return [self.mig, 0]

    def nvmlDeviceGetComputeRunningProcesses(self, handle):  # noqa: N802
        if self.pids is None:
            raise self.NVMLError("no permission")
        return [SimpleNamespace(pid=pid, usedGpuMemory=1) for pid in self.pids]

    def nvmlDeviceGetSamples(self, handle, kind, last_seen_us):  # noqa: N802
        assert (handle, kind) == ("GPU-a", self.NVML_GPU_UTILIZATION_SAMPLES)
        found = [(at_us, percent) for at_us, percent in self.samples if at_us > last_seen_us]
        if not found:
            raise self.NVMLError("not found")
        return 1, [SimpleNamespace(timeStamp=at_us, sampleValue=SimpleNamespace(uiVal=v)) for at_us, v in found]


def test_nvml_is_asked_for_what_is_new():
    nvml = Nvml()
    source = NvmlSource(nvml, "GPU-a")
    assert source.read() == []
    nvml.samples = [(1_000_000, 50), (1_500_000, 100)]
    assert source.read() == [(1.0, 0.5), (1.5, 1.0)]
    assert source.read() == []
    nvml.samples = [(1_500_000, 100), (2_500_000, 10), (2_000_000, 20)]
    assert source.read() == [(2.0, 0.2), (2.5, 0.1)]


def test_samples_of_a_gpu_that_others_compute_on_are_not_used():
    nvml = Nvml()
    source = NvmlSource(nvml, "GPU-a")
    for at, (pids, known) in enumerate([([1, 2], False), ([7, 7], True), ([], True), (None, None), ([1], True)], 1):
        nvml.pids = pids
        nvml.samples = [(at * 1_000_000, 50)]
        assert source.read() == ([] if known is None else [(float(at), 0.5 if known else None)])


@pytest.mark.parametrize(("mig", "told"), [(0, True), (None, True), (1, False)])
def test_a_device_is_found_by_its_uuid(monkeypatch, mig, told):
    nvml = Nvml()
    nvml.mig = mig
    monkeypatch.setattr(busy, "find_nvml", lambda public: nvml)
    known = {"cuda:0": "a", "cuda:1": "b"}
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=known.get(str(device)))
    )
    assert (find_source(torch.device("cuda:0"), public=False) is not None) == told
    assert find_source(torch.device("cuda:1"), public=False) is None
    assert find_source(torch.device("cuda:2"), public=False) is None
    assert find_source(torch.device("cpu"), public=False) is None
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace())
    assert find_source(torch.device("cuda:0"), public=False) is None, "a torch that does not know it"


def test_without_nvml_nothing_is_said(monkeypatch):
    def missing(_):
        raise OSError("cannot open shared object file")

    monkeypatch.setattr(devices.ctypes, "CDLL", missing)
    assert find_source(torch.device("cuda:0"), public=False) is None


def test_rays_copy_of_nvml_has_what_is_asked():
    from ray._private.thirdparty import pynvml

    named = [name for name in dir(Nvml) if name.startswith(("nvml", "NVML"))]
    assert [name for name in named if not hasattr(pynvml, name)] == []
    assert pynvml.NVML_GPU_UTILIZATION_SAMPLES == Nvml.NVML_GPU_UTILIZATION_SAMPLES
    assert pynvml.NVML_DEVICE_MIG_ENABLE == Nvml.NVML_DEVICE_MIG_ENABLE
    sample = pynvml.c_nvmlSample_t()
    sample.timeStamp, sample.sampleValue.uiVal = 1, 84
    assert (sample.timeStamp, sample.sampleValue.uiVal) == (1, 84)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("idle", [0.0, 0.5])
def test_a_real_gpu_is_as_busy_as_its_host_lets_it(idle):
    """Four seconds of steps, the host busy with its own Python for a share `idle` of each."""
    device = torch.device("cuda")
    source = find_source(device, public=False)
    if source is None:
        pytest.skip("no NVML that tells")
    meter = RankMeter()
    device_clock = DeviceClock(meter, BusyWatch(source))
    matrix = torch.randn(4096, 4096, device=device)
    began = time.perf_counter()
    device_clock.begin()
    while time.perf_counter() - began < 4:
        device_clock.waiting()
        device_clock.arrived()
        device_clock.ready(None)
        step_began = time.perf_counter()
        for _ in range(20):
            matrix @ matrix
        torch.cuda.synchronize()
        took_s = time.perf_counter() - step_began
        while time.perf_counter() - step_began < took_s / (1 - idle):
            pass
        device_clock.done(0.0)
    device_clock.close()
    if meter.gap_s is None:
        pytest.skip("another process computes on this GPU")
    assert meter.wait_s + meter.gap_s + meter.compute_s == pytest.approx(meter.train_s)
    assert meter.gap_s / meter.train_s == pytest.approx(idle, abs=0.1)
