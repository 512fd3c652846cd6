"""Which cores streams have."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from trees_of_cpus import c5_4xlarge, hybrid, two_sockets

from raytrain.config.inference import Streams
from raytrain.errors import ConfigError
from raytrain.infer.contract import StreamShape
from raytrain.infer.streams.shapes import left_over, plan_streams
from raytrain.infer.streams.topology import Core, CpuTopology, read_topology


@pytest.fixture
def two(tmp_path) -> CpuTopology:
    return read_topology(two_sockets(tmp_path), range(16))


def cpus(shapes):
    return [shape.cpus for shape in shapes]


def test_throughput_is_a_stream_a_core(two):
    """On its first hardware thread, with the memory of its node."""
    shapes = plan_streams(two, Streams(), "throughput")
    assert shapes == tuple(StreamShape((cpu,), 1, cpu // 4) for cpu in range(8))
    assert left_over(two, shapes) == tuple(range(16)), "all cores have a stream: the rest shares them"


def test_latency_is_a_stream_a_node(two):
    assert plan_streams(two, Streams(), "latency") == (StreamShape((0, 1, 2, 3), 4, 0), StreamShape((4, 5, 6, 7), 4, 1))


def test_both_threads_of_a_core(two):
    shapes = plan_streams(two, Streams(threads_per_core=2), "latency")
    assert shapes[1] == StreamShape((4, 5, 6, 7, 12, 13, 14, 15), 8, 1)


def test_one_node_needs_no_binding_of_memory(tmp_path):
    c5 = read_topology(c5_4xlarge(tmp_path), range(16))
    assert plan_streams(c5, Streams(count=2), "throughput") == (
        StreamShape((0, 1, 2, 3), 4),
        StreamShape((4, 5, 6, 7), 4),
    )


@pytest.mark.parametrize(
    ("asked", "objective", "expected"),
    [
        ({"count": 3}, "throughput", [(0, 1), (2, 3), (4, 5)]),  # 3 x 2 and two nodes: none crosses
        ({"count": 2}, "throughput", [(0, 1, 2, 3), (4, 5, 6, 7)]),
        ({"count": 1}, "throughput", [(0, 1, 2, 3, 4, 5, 6, 7)]),
        ({"cores": 3}, "throughput", [(0, 1, 2), (4, 5, 6)]),
        ({"cores": 3}, "latency", [(0, 1, 2), (4, 5, 6)]),
        ({"cores": 1}, "latency", [(0,), (4,)]),
        ({"cores": 5}, "throughput", [(0, 1, 2, 3, 4)]),
        ({"count": 2, "cores": 1}, "throughput", [(0,), (1,)]),
        ({"count": 2, "cores": 1}, "latency", [(0,), (4,)]),
        ({"count": 3, "cores": 1}, "latency", [(0,), (4,), (1,)]),
        ({"count": 1, "cores": 8}, "latency", [(0, 1, 2, 3, 4, 5, 6, 7)]),
    ],
)
def test_as_asked(two, asked, objective, expected):
    shapes = plan_streams(two, Streams(**asked), objective)
    assert cpus(shapes) == expected
    for shape in shapes:
        nodes = {cpu // 4 for cpu in shape.cpus}
        assert shape.node == (nodes.pop() if len(nodes) == 1 else None)


def test_cores_for_preprocessing(two):
    """From the largest node, and the rest of the host has them with both threads."""
    shapes = plan_streams(two, Streams(), "throughput", spared=3)
    assert cpus(shapes) == [(0,), (1,), (2,), (4,), (5,)]
    assert left_over(two, shapes) == (3, 6, 7, 11, 14, 15)


def test_slow_cores_are_for_the_rest(tmp_path):
    host = read_topology(hybrid(tmp_path), range(8))
    assert cpus(plan_streams(host, Streams(), "latency")) == [(0, 2)]
    assert cpus(plan_streams(host, Streams(cores=2), "latency")) == [(0, 2)]
    assert cpus(plan_streams(host, Streams(), "throughput", spared=1)) == [(0,), (2,), (4,), (5,), (6,)]


def test_a_quota_counts_hardware_threads(tmp_path):
    host = read_topology(two_sockets(tmp_path), range(16), quota=4)
    assert cpus(plan_streams(host, Streams(), "throughput")) == [(0,), (1,), (4,), (5,)]
    assert cpus(plan_streams(host, Streams(threads_per_core=2), "throughput")) == [(0, 8), (4, 12)]


def test_more_streams_than_cores(two):
    with pytest.raises(ConfigError) as told:
        plan_streams(two, Streams(count=9), "throughput")
    assert str(told.value) == (
        "inference.streams: 9 streams need a physical core each, and 8 may be used (8 on this host)"
    )


def test_more_cores_than_there_are(two):
    with pytest.raises(ConfigError) as told:
        plan_streams(two, Streams(count=3, cores=3), "throughput", spared=1)
    assert str(told.value) == (
        "inference.streams: 3 streams of 3 cores need 9 physical ones, and 7 may be used (8 on this host, 1 spared for "
        "preprocessing)"
    )
    with pytest.raises(ConfigError, match="1 stream of 9 cores need 9 physical ones, and 8 may be used"):
        plan_streams(two, Streams(cores=9), "throughput")


def test_streams_that_would_cross_nodes(two):
    with pytest.raises(ConfigError, match="3 streams of 2 cores need 6 .*; without crossing nodes 2 fit"):
        plan_streams(two, Streams(count=3, cores=2), "throughput", spared=2)


def test_nothing_is_left_for_a_stream(two):
    with pytest.raises(ConfigError, match="of 8 physical cores that may be used on this host 8 are for preprocessing"):
        plan_streams(two, Streams(), "throughput", spared=8)


def test_there_is_no_second_thread(tmp_path):
    host = read_topology(two_sockets(tmp_path), range(8))
    with pytest.raises(ConfigError, match="threads_per_core is 2, but the cores of this host have one hardware thread"):
        plan_streams(host, Streams(threads_per_core=2), "throughput")


@st.composite
def topologies(draw) -> CpuTopology:
    threads = draw(st.integers(1, 2))
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    total = sum(sizes)
    nodes = [node for node, size in enumerate(sizes) for _ in range(size)]
    slow = draw(st.sets(st.integers(0, total - 1), max_size=total - 1))
    cores = [
        Core(tuple(n + total * thread for thread in range(threads)), nodes[n], nodes[n], n // 4, n not in slow)
        for n in range(total)
    ]
    cores.sort(key=lambda core: (core.node, not core.fast, core.l3, core.cpus))
    quota = draw(st.none() | st.integers(1, total))
    return CpuTopology(tuple(cores), (), quota)


@given(
    topologies(),
    st.none() | st.integers(1, 12),
    st.none() | st.integers(1, 12),
    st.integers(1, 2),
    st.sampled_from(["throughput", "latency"]),
    st.integers(0, 4),
)
def test_streams_share_no_core(topology, count, cores, threads_per_core, objective, spared):
    asked = Streams(count=count, cores=cores, threads_per_core=threads_per_core)
    try:
        shapes = plan_streams(topology, asked, objective, spared)
    except ConfigError:
        assume(False)
    core_of = {cpu: core for core in topology.cores for cpu in core.cpus}
    used = [{core_of[cpu].cpus for cpu in shape.cpus} for shape in shapes]
    assert len(set().union(*used)) == sum(map(len, used)), "a core is of one stream"
    assert len(set().union(*used)) <= len(topology.cores) - spared
    if topology.quota is not None:
        assert sum(len(shape.cpus) for shape in shapes) <= topology.quota + (threads_per_core - 1)
    assert len(shapes) == count or count is None
    if cores is not None:
        assert {len(each) for each in used} == {cores}
    largest = max(sum(core.node == node for core in topology.cores) for node in topology.nodes)
    for shape, own in zip(shapes, used, strict=True):
        assert shape.threads == len(shape.cpus) == sum(min(len(core), threads_per_core) for core in own)
        nodes = {core_of[cpu].node for cpu in shape.cpus}
        assert shape.node == (next(iter(nodes)) if len(nodes) == 1 and len(topology.nodes) > 1 else None)
        if objective == "latency" and count is cores is None:
            assert len(nodes) == 1
    if count is cores is None and objective == "throughput":
        assert {len(each) for each in used} == {1}
    if count is None and cores is not None and cores <= largest and spared == 0 and topology.quota is None:
        kinds = {(core.node, core.fast) for core in topology.cores}
        pools = [sum((core.node, core.fast) == kind for core in topology.cores) for kind in kinds]
        if cores <= max(pools):
            assert all(len({core_of[cpu].node for cpu in shape.cpus}) == 1 for shape in shapes)
    assert set(left_over(topology, shapes)) <= set(topology.cpus)
