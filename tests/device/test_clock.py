"""The clocks of a worker's stages and of a rank on the CPU, by hand."""

from __future__ import annotations

import pytest

from raytrain.data import stage_clock
from raytrain.data.samples.block import Header
from raytrain.data.stage_clock import StageClock
from raytrain.device import clock as rank_clock
from raytrain.device.clock import HostClock
from raytrain.device.meter import RankMeter, StageMeter


class Times:
    """Clocks that go when they are told to: wall, the own thread's and the whole process's."""

    def __init__(self) -> None:
        self.wall, self.thread, self.process = 100.0, 10.0, 50.0

    def perf_counter(self) -> float:
        return self.wall

    def thread_time(self) -> float:
        return self.thread

    def process_time(self) -> float:
        return self.process

    def go(self, wall: float, own: float, others: float = 0.0) -> None:
        self.wall, self.thread, self.process = self.wall + wall, self.thread + own, self.process + own + others


@pytest.fixture
def times(monkeypatch):
    made = Times()
    for module in (stage_clock, rank_clock):
        monkeypatch.setattr(module, "time", made)
    return made


def test_a_stage_has_wall_time_and_the_cpu_time_of_all_threads(times):
    clock = StageClock(["read", "decode", "resize"])
    times.go(wall=2.0, own=0.25, others=0.5)  # reads for two seconds, partly in other threads
    clock.lap("read")
    clock.settle(["read"])
    for _ in range(2):
        times.go(wall=9.0, own=1.0)  # of nobody: between two samples
        clock.begin()
        times.go(wall=3.0, own=1.0)  # kept from its core for two seconds
        clock.lap("decode")
        times.go(wall=1.0, own=0.5, others=2.0)  # more than one core at a time
        clock.lap("resize")
    clock.settle(["decode", "resize"])
    assert clock.wall_s == {"read": 2.0, "decode": 6.0, "resize": 2.0}
    # the others' 4 s after reading are shared out 6 : 2
    assert clock.cpu_s == {"read": 0.75, "decode": 2.0 + 3.0, "resize": 1.0 + 1.0}


def test_clocks_that_disagree_take_nothing_away(times):
    clock = StageClock(["read"])
    clock.settle(["read"])  # in no time
    times.go(wall=1.0, own=0.5, others=-0.125)
    clock.lap("read")
    clock.settle(["read"])
    assert (clock.wall_s, clock.cpu_s) == ({"read": 1.0}, {"read": 0.5})


def test_a_stages_batches_are_added_up():
    meter = RankMeter()
    for number, (wall_s, cpu_s) in enumerate([(1.0, 0.5), (3.0, 0.25)]):
        meter.received("train", Header(0, number, {"read": wall_s}, {"read": cpu_s}), 8, 100)
    meter.received("validation", Header(1, 0, {"read": 9.0}, {"read": 9.0}), 4, 100)
    found = meter.stage_figures()[0]
    expected = {"num_samples": 16, "num_batches": 2, "cpu_s": 0.75, "wall_s": 4.0}
    expected |= {"batch_wall_p90_s": pytest.approx(2.8), "batch_wall_p99_s": pytest.approx(2.98)}
    assert found.model_dump() == {"name": "read", **expected}
    both = StageMeter(4, 2.0, [5.0])
    both.add(meter.stages["read"])
    assert both == StageMeter(20, 2.75, [5.0, 1.0, 3.0])


def test_a_cpu_ranks_first_wait_is_start_up(times):
    meter = RankMeter()
    clock = HostClock(meter)
    for number, waited in enumerate([30.0, 0.5]):
        clock.waiting()
        times.go(wall=waited, own=0.0)
        clock.arrived()
        meter.first_batch_at = 1.0 + number
        times.go(wall=0.25, own=0.25)
        clock.ready(None)
        times.go(wall=2.0, own=2.0)
        clock.done(aside_s=0.5)
    assert (meter.wait_s, meter.transfer_s, meter.compute_s) == (0.5, 0.5, 3.0)
