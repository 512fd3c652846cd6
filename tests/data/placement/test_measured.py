"""What the stages cost, from what the ranks tell: by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raytrain.cost.placing import Places, Placing
from raytrain.data.placement.measured import INTERFERENCE, MOST_OVERHEAD, Measured
from raytrain.record.status import Spent

PLACES = Places(cpu_cores=4, host_cores=2, devices=1)
ALL = Placing(2, 2, 0.0, host_cores=2, rate=0.0)
QUIET = replace(ALL, host_cores=0)
NOTHING = Spent(1.0, 0.0, (0, 0.0), {}, {}, {})
CPU = {"read": (100, 0.1), "a": (100, 1.0), "b": (50, 2.0)}  # 1, 10 and 40 ms


def spent(times: int = 1, wait_s: float = 0.0, step_s: float = 0.5, began_at: float = 1.0) -> Spent:
    """So many times 100 samples."""
    return Spent(
        began_at,
        wait_s * times,
        (100 * times, step_s * times),
        {"b": (50 * times, 0.1 * times)},
        {name: (samples * times, seconds * times) for name, (samples, seconds) in CPU.items()},
        {"cpu": {"a": (50 * times, 1.0 * times)}, "host": {"a": (25 * times, 1.0 * times)}},
    )


def measured(**options) -> Measured:
    return Measured(("a", "b"), 1, frozenset({"host"}), **options)


def test_what_a_sample_costs():
    known = measured()
    known.look({0: spent()}, ALL, PLACES)
    assert known.costs() is None, "the first steps warm up"
    known.look({0: spent(2)}, ALL, PLACES)
    costs = known.costs()
    assert costs is not None
    assert costs.cpu_s == pytest.approx([0.001, 0.010, 0.040])
    assert costs.device_s == [None, None, pytest.approx(0.002)]
    assert costs.step_s == pytest.approx(0.005 * (1 - INTERFERENCE)), "nobody knows yet what a quiet host is worth"
    assert costs.interference == INTERFERENCE
    # a sample takes 20 ms of a core of CPU hosts, and 40 ms of one of the training host's
    assert known.places(PLACES).host_speed == pytest.approx(0.5)
    assert known.places(PLACES).cores(2) == pytest.approx(5)


def test_what_is_new_counts_as_much_as_what_was_known():
    known = measured()
    known.look({0: spent()}, ALL, PLACES)
    later = spent()
    later = replace(later, step=(200, 2.5), cpu_stages={**later.cpu_stages, "a": (200, 4.0)})
    known.look({0: later}, ALL, PLACES)
    assert known.cpu_s["a"] == pytest.approx((0.010 + 0.030) / 2)
    assert known.step_s == {1.0: pytest.approx(0.02)}


def test_an_attempt_that_begins_anew_is_not_what_came_before_it():
    known = measured()
    known.look({0: spent(10)}, ALL, PLACES)
    known.look({0: spent(1, began_at=2.0)}, ALL, PLACES)
    assert known.cpu_s["a"] == pytest.approx(0.010)


def test_ranks_are_taken_together():
    known = measured()
    known.look({0: spent(), 1: spent(step_s=1.5)}, ALL, PLACES)
    known.look({0: spent(2), 1: spent(2, step_s=1.5)}, ALL, PLACES)
    assert known.step_s == {1.0: pytest.approx(0.01)}
    known.look({0: spent(3), 1: spent(2, step_s=1.5)}, ALL, PLACES)
    assert known.step_s == {1.0: pytest.approx(0.01)}, "nothing is said of a step that only one has done"


def test_interference_is_what_a_busy_host_takes_from_its_devices():
    known = measured()
    known.look({0: spent()}, QUIET, PLACES)
    known.look({0: spent(2)}, QUIET, PLACES)
    costs = known.costs()
    assert costs is not None and (costs.step_s, costs.interference) == (pytest.approx(0.005), INTERFERENCE)
    half = replace(ALL, host_cores=1)
    known.look({0: replace(spent(3), step=(300, 1.625))}, half, PLACES)  # 6.25 ms with one core of two at work
    costs = known.costs()
    assert costs is not None
    assert costs.step_s == pytest.approx(0.005)
    # the device does 160 a second in place of 200 when half of the cores are busy: all of them would take 0.4
    assert costs.interference == pytest.approx(0.4)


def test_interference_shows_as_well_where_some_cores_are_always_busy():
    known = measured()
    for cores, steps in ((1, (100, 0.5)), (1, (200, 1.0)), (2, (300, 1.6))):  # 5 ms, and 6 with the second core at work
        known.look({0: replace(spent(steps[0] // 100), step=steps)}, replace(ALL, host_cores=cores), PLACES)
    costs = known.costs()
    assert costs is not None
    # rates of 200 and 166.7 a second at half and at all of the cores: 233.3 with none, of which all take 2 / 7
    assert (costs.step_s, costs.interference) == (pytest.approx(3 / 700), pytest.approx(2 / 7))


def test_stages_that_always_run_on_the_device_are_part_of_the_step():
    known = Measured(("a",), 1)
    for times in (1, 2):
        known.look({0: spent(times)}, QUIET, PLACES)
    costs = known.costs()
    assert costs is not None and costs.cpu_s == pytest.approx([0.001, 0.010]) and costs.device_s == [None, None]
    assert costs.step_s == pytest.approx(0.005 + 0.002)


@pytest.mark.parametrize(
    ("wait_s", "expected"),
    [
        (0.05, 0.0),  # the ranks set the pace
        # 0.5 + 0.5 + 0.1 s for 100 samples; 5 cores' worth of that is 55 ms a sample, of which stages are 51
        (0.5, 0.055 - 0.051),
        (9.4, MOST_OVERHEAD * 0.051),  # something else was slow
    ],
)
def test_what_handing_over_costs_beside_the_stages(wait_s, expected):
    known = measured()
    for times in (1, 2):
        known.look({0: spent(times, wait_s)}, ALL, PLACES)
    assert known.overhead_s == 0, "once is by chance"
    known.look({0: spent(3, wait_s)}, ALL, PLACES)
    assert known.overhead_s == pytest.approx(expected)
    costs = known.costs()
    assert costs is not None and costs.cpu_s[0] == pytest.approx(0.001 + expected)
    known.look({0: replace(spent(4), wait_s=3 * wait_s)}, ALL, PLACES)
    assert known.overhead_s == pytest.approx(0.9 * expected), "it is forgotten while nobody waits"
    known.look({0: spent(5, wait_s)}, ALL, PLACES, settled=False)
    assert known.overhead_s == pytest.approx(0.9 * expected), "who waited for an execution to begin says nothing"


def test_who_waits_a_little_says_nothing_of_handing_over():
    """CPUs and ranks that can do just as much wait for each other: 0.25 of the time here, of twice the cores."""
    known = measured()
    for times in (1, 2, 3):
        known.look({0: spent(times, 0.2)}, ALL, replace(PLACES, cpu_cores=2 * PLACES.cpu_cores))
    assert known.overhead_s == 0


def test_one_slow_look_does_not_make_handing_over_dear():
    known, waited = measured(), 0.0
    seen = []
    for times, slow_s in enumerate((0.5, 5.0, 0.5, 0.5, 5.0, 5.0, 5.0), start=1):
        waited += slow_s
        known.look({0: replace(spent(times), wait_s=waited)}, ALL, PLACES)
        seen.append(known.overhead_s)
    # the first look has none before it; the stages take 51 ms, and 5 cores are there for 1.1 s of 100 samples, or 5.6
    usual, slow = 0.055 - 0.051, MOST_OVERHEAD * 0.051
    assert seen == pytest.approx([0.0, 0.0, usual, usual, usual, usual, slow]), "the least of three"


def test_nothing_is_known_of_nothing():
    known = measured()
    for _ in range(3):
        known.look({0: NOTHING}, ALL, PLACES)
    assert known.costs() is None
    only_cpu = replace(spent(), device_stages={})
    for times in (1, 2, 3):
        known.look({0: replace(spent(times), device_stages=only_cpu.device_stages)}, ALL, PLACES)
    assert known.costs() is None, "what a stage takes on the device has not been seen"


def test_a_core_is_not_slow_because_it_got_the_batches_with_more_stages():
    known = measured()
    nodes = {"cpu": {"a": (50, 0.5), "b": (50, 2.0)}, "host": {"a": (50, 0.5)}}
    known.look({0: replace(spent(), nodes=nodes)}, ALL, PLACES)
    assert known.host_speed == pytest.approx(1.0)


def test_a_step_that_seems_to_have_taken_no_time_is_not_believed():
    """Stages of a GPU have been read, and the steps that they are of have not."""
    known = measured()
    first = spent()
    known.look({0: first}, ALL, PLACES)
    known.look({0: replace(spent(2), step=(200, first.step[1]))}, ALL, PLACES)
    assert known.costs() is None
    known.look({0: replace(spent(3), step=(300, 1.0))}, ALL, PLACES)
    assert known.costs() is not None
