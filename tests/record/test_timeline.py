"""What is noted of a run while it goes on."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raytrain.cluster.topology import Host, Topology
from raytrain.record.rows import COLUMNS
from raytrain.record.schema import POINTS, HostLoad
from raytrain.record.status import RankTimes, Status
from raytrain.record.timeline import Machine, ProgressLog, host_load, host_timeline
from raytrain.run.load import THIS_MACHINE, machines


def figures(at, samples, wait_s=0.0, train_s=0.0, began_at=0.0):
    return RankTimes(began_at, at, samples, wait_s, train_s)


def status(*ranks, **results):
    """Of ranks at work and, by name, of those that are done."""
    return Status(
        progress={rank: SimpleNamespace(times=times) for rank, times in enumerate(ranks)},
        results={int(rank[-1]): SimpleNamespace(times=times) for rank, times in results.items()},
    )


def samples_of(progress) -> float:
    """What a reader adds up to."""
    times = [0.0, *progress.at_s]
    return sum(rate * (b - a) for rate, a, b in zip(progress.samples_per_s, times, times[1:], strict=False))


def test_points_are_rates_of_all_ranks_and_shares_of_their_time():
    log = ProgressLog()
    assert log.progress(100.0) is None and log.began_at is None
    log.note(Status())
    log.note(status(figures(None, 0)))
    assert log.progress(100.0) is None
    log.note(status(figures(110.0, 8, 1.0, 1.0), figures(110.2, 8, 1.0, 1.0)))
    log.note(status(figures(110.5, 16, 1.0, 1.5), figures(110.7, 16, 1.0, 1.5)))  # too soon for a point
    log.note(status(figures(112.0, 40, 1.5, 3.0), figures(112.2, 40, 1.5, 3.0)))
    log.note(status(figures(112.0, 40, 1.5, 3.0), figures(112.2, 40, 1.5, 3.0)))
    assert log.began_at == pytest.approx(110.1)
    progress = log.progress(100.0)
    assert progress.at_s == [10.1, 12.1]
    assert progress.samples_per_s == [pytest.approx(16 / 10.1, abs=1e-3), 32.0]
    assert progress.wait_share == [1.0, 0.25]


def test_the_end_has_a_point_unless_it_comes_at_once():
    log = ProgressLog()
    log.note(status(figures(10.0, 10, 0, 1)))
    log.note(status(figures(12.0, 30, 0, 3)))
    log.note(status(figures(12.7, 37, 0, 3.7)))
    assert log.progress(0.0).at_s == [10.0, 12.0, 12.7]
    log = ProgressLog()
    log.note(status(figures(10.0, 10, 0, 1)))
    log.note(status(figures(12.0, 30, 0, 3)))
    log.note(status(figures(12.1, 31, 0, 3.1)))
    log.note(status(figures(12.1, 31, 0, 3.1), rank0=figures(12.2, 32, 0.0, 3.2)))
    progress = log.progress(0.0)
    assert progress.at_s == [10.0, 12.2]
    assert samples_of(progress) == pytest.approx(32, abs=0.1)


def test_ranks_that_start_again_go_on_from_where_the_run_was():
    log = ProgressLog()
    log.note(status(figures(10.0, 8, 1, 2), figures(10.0, 8, 1, 2)))
    log.note(status(figures(12.0, 24, 1, 4), figures(12.0, 24, 1, 4)))
    # rank 0 is back, of rank 1 the last words before still stand; then both, then only the results of the second try
    log.note(status(figures(20.0, 8, 1, 1, began_at=15.0), figures(12.0, 24, 1, 4)))
    log.note(status(figures(21.0, 16, 1, 2, began_at=15.0), figures(21.0, 16, 1, 2, began_at=15.1)))
    last = figures(22.0, 20, 1, 3, began_at=15.0), figures(22.0, 20, 1, 3, began_at=15.1)
    log.note(status(figures(21.0, 16, 1, 2, began_at=15.0), figures(12.0, 24, 1, 4), rank0=last[0], rank1=last[1]))
    progress = log.progress(0.0)
    assert progress.at_s == [10.0, 12.0, 16.0, 21.0, 22.0]
    assert progress.samples_per_s == [1.6, 16.0, 2.0, 4.8, 8.0]
    assert samples_of(progress) == pytest.approx(2 * (24 + 20), abs=0.1)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0.05, 3), st.integers(0, 50), st.floats(0, 1), st.booleans()), min_size=1, max_size=80
    ),
    st.sampled_from([4, 7, 20]),
)
def test_however_long_a_run_every_sample_is_in_its_timeline(steps, most):
    log = ProgressLog(most)
    at, began_at, done, waited, trained, total = 5.0, 1.0, 0, 0.0, 0.0, 0
    for pause, count, share, again in steps:
        at += pause
        if again:
            done, waited, trained, began_at = 0, 0.0, 0.0, at - pause / 2
        done, total = done + count, total + count
        waited, trained = waited + share * pause, trained + pause
        log.note(status(figures(at, done, waited, trained, began_at)))
        assert len(log._points) <= most
    progress = log.progress(0.0)
    assert samples_of(progress) == pytest.approx(total, abs=0.05 + 0.01 * len(steps))
    assert progress.at_s == sorted(set(progress.at_s))
    assert progress.at_s[-1] == pytest.approx(at, abs=1e-3)
    assert all(0 <= share <= 1 for share in progress.wait_share)


def test_a_days_run_has_no_more_points_than_a_record_takes():
    log = ProgressLog()
    for second in range(5000):
        log.note(status(figures(10.0 + second, 8 * (second + 1), 0.5 * second, 1.0 * second)))
    progress = log.progress(0.0)
    assert POINTS / 2 < len(progress.at_s) <= POINTS
    assert progress.samples_per_s[1:] == [8.0] * (len(progress.at_s) - 1)
    assert samples_of(progress) == pytest.approx(40_000, abs=10)


def host(name, group, address, emulated=False):
    return Host(name, group, 2, 0, address=address, node_id=f"node-of-{name}", emulated=emulated)


def test_each_machine_is_watched_once():
    emulated = Topology((host("train-1", "train", "10.0.0.1", True), host("cpu-1", "cpu", "10.0.0.1", True)))
    one = [Machine(THIS_MACHINE, None, "")]
    assert machines(emulated, attached=False) == machines(emulated, attached=True) == one
    assert machines(Topology(emulated.hosts[:1]), attached=False) == one
    # simulated hosts: a GPU that is only declared makes a host emulated, but not part of this machine
    hosts = Topology((host("algo-2", "gpu", "10.0.0.2", True), host("algo-1", "cpu", "10.0.0.1")))
    assert machines(hosts, attached=True) == [
        Machine("algo-2", "gpu", "node-of-algo-2"),
        Machine("algo-1", "cpu", "node-of-algo-1"),
    ]
    two_nodes = Topology((host("a-1", "a", "10.0.0.1"), host("a-2", "a", "10.0.0.1"), host("a-3", "a", "10.0.0.3")))
    assert [machine.name for machine in machines(two_nodes, attached=True)] == ["a-1", "a-3"]


MACHINE = Machine("cpu-1", "cpu", "node")


def rows(count, gpu=None):
    return [(1000.0 + n, 100.0 * (n % 2), 50.0, 8.0, 4.0, gpu, gpu) for n in range(count)]


def test_a_load_is_of_the_time_from_the_first_step_on():
    load = host_load(MACHINE, [(990.0, 400.0, 99.0, 99.0, 99.0, None, None), *rows(10)], since=1000.0)
    assert (load.host, load.group, load.gpu_percent, load.disk_percent) == ("cpu-1", "cpu", None, None)
    assert (load.cpu_percent.mean, load.cpu_percent.max) == (50.0, 100.0)
    assert load.received_mbit_per_s.mean == 8.0
    assert host_load(MACHINE, rows(4, gpu=70.0), None).gpu_percent.mean == 70.0
    assert host_load(MACHINE, rows(4), since=2000.0) == HostLoad(host="cpu-1", group="cpu")


def test_a_hosts_timeline_has_what_was_measured():
    assert host_timeline(MACHINE, [], 990.0) is None
    short = host_timeline(MACHINE, rows(3, gpu=70.0), 990.0)
    assert (short.at_s, short.cpu_percent, short.gpu_percent) == ([10.0, 11.0, 12.0], [0.0, 100.0, 0.0], [70.0] * 3)
    assert host_timeline(MACHINE, [*rows(3, gpu=70.0), *rows(1)], 990.0).gpu_percent is None
    long = host_timeline(MACHINE, rows(2 * POINTS), 990.0)
    assert (len(long.at_s), set(long.cpu_percent), long.at_s[-1]) == (POINTS, {50.0}, 9.0 + 2 * POINTS)
    assert set(type(long).model_fields) == {"host", "at_s", *COLUMNS}
