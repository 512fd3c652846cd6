"""Where streams are, and what is left for preparing."""

from __future__ import annotations

import pytest

from raytrain.cluster.topology import Host, Topology
from raytrain.config.cluster import Cluster
from raytrain.config.inference import Inference
from raytrain.errors import ClusterError, ConfigError
from raytrain.infer.contract import StreamShape
from raytrain.infer.streams.places import OnHost, emulated, hosts_of_streams, lanes_of, place, survey, surveys_of
from raytrain.infer.streams.topology import Core, CpuTopology

BUCKETS = {"by": "text", "classes": [{"upto": 8, "streams": 2, "cores": 1}, {"upto": 32}, {"upto": 64}]}


def topology(*hosts: tuple[str, int, int], emulated: bool = False) -> Topology:
    """Groups with CPUs and GPUs; the first host is the head."""
    return Topology(
        tuple(
            Host(f"{group}-{n}", group, cpus, gpus, node_id=f"{n}", is_head=n == 0, emulated=emulated)
            for n, (group, cpus, gpus) in enumerate(hosts)
        )
    )


def machine(cores: int) -> CpuTopology:
    return CpuTopology(tuple(Core((n,), n, 0, 0) for n in range(cores)))


def on(found, node: str = "0"):
    return [each for each in found.streams if each.host.node_id == node]


def test_every_gpu_is_shared_and_cpus_of_its_host_are_spared():
    found = place(topology(("gpu", 8, 2), ("cpu", 4, 0)), Inference(tasks_per_gpu=4), Cluster(), {})
    assert len(found.streams) == 8 and {each.gpus for each in found.streams} == {0.25}
    assert {(each.device, each.shape.threads) for each in found.streams} == {("cuda", 1)}
    assert (found.slots, found.queued) == (8 - 2 + 4, 0), "one a GPU is spared"
    few = place(topology(("gpu", 8, 2)), Inference(), Cluster(reserved_cpus=3), {})
    assert few.slots == 5 and few.streams[0].shape.threads == 4
    assert place(topology(("gpu", 2, 1), emulated=True), Inference(), Cluster(), {}).streams[0].device == "cpu"


def test_streams_of_a_host_take_their_cpus_but_for_one_where_nobody_else_prepares():
    shapes = OnHost(tuple(((0,), StreamShape((n,), 1)) for n in range(4)), {1: {"OMP_NUM_THREADS": "1"}}, (4, 5))
    alone = place(topology(("local", 4, 0)), Inference(), Cluster(), {"0": shapes})
    assert [each.cpus for each in alone.streams] == [0.75] * 4
    assert alone.slots == 1 and alone.rest == {"0": (4, 5)}
    assert alone.streams[0].variables == {"OMP_NUM_THREADS": "1"}
    both = place(topology(("train", 4, 0), ("cpu", 2, 0)), Inference(), Cluster(), {"0": shapes})
    assert [each.cpus for each in both.streams] == [1.0] * 4
    assert both.slots == 2 and {each.host.group for each in both.streams} == {"train"}
    wide = OnHost((((0,), StreamShape((0, 1, 2), 3)), ((0,), StreamShape((3, 4, 5), 3))))
    found = place(topology(("local", 6, 0)), Inference(), Cluster(), {"0": wide})
    assert [each.cpus for each in found.streams] == [2, 2], "Ray counts whole CPUs"


def test_the_second_threads_of_streams_cores_prepare_nothing():
    """Eight cores of two hardware threads, CPUs 0-7 and 8-15."""
    cores = CpuTopology(tuple(Core((n, n + 8), 0, 0, 0) for n in range(8)))
    found = survey(Inference(), spare=True, topology=cores)
    assert (len(found.shapes), found.rest) == (7, (7, 15))
    placed = place(topology(("local", 16, 0)), Inference(), Cluster(), {"0": found})
    assert [each.cpus for each in placed.streams] == [2.0] * 7
    assert placed.slots == 2
    every = survey(Inference(), spare=False, topology=cores)
    placed = place(topology(("train", 16, 0), ("cpu", 2, 0)), Inference(), Cluster(), {"0": every})
    assert placed.slots == 8 + 2, "where streams have every core, their second threads prepare"


def test_gpus_that_are_asked_for_must_be_there():
    with pytest.raises(ClusterError, match="inference.device is gpu, and no host of the cluster has one"):
        hosts_of_streams(topology(("local", 4, 0)), Inference(device="gpu"))
    hosts, on_gpus = hosts_of_streams(topology(("gpu", 4, 1), ("cpu", 4, 0)), Inference(device="cpu"))
    assert [host.group for host in hosts] == ["gpu"] and not on_gpus


def test_a_class_may_have_streams_of_its_own():
    inference = Inference.model_validate({"buckets": BUCKETS})
    own, rest = lanes_of(inference, cores=8)
    assert (own.takes, own.streams.count, own.streams.cores) == ((0,), 2, 1)
    assert (rest.takes, rest.streams.count, rest.streams.cores) == ((1, 2), 1, 2)
    found = survey(inference, spare=True, topology=machine(8))
    assert [(takes, shape.cpus) for takes, shape in found.shapes] == [((0,), (0,)), ((0,), (1,)), ((1, 2), (2, 3))]
    assert found.rest == (4, 5, 6, 7)


def test_a_core_is_spared_where_the_job_says_nothing_of_streams():
    assert len(survey(Inference(), spare=True, topology=machine(4)).shapes) == 3
    assert len(survey(Inference(), spare=False, topology=machine(4)).shapes) == 4
    assert len(survey(Inference(), spare=True, topology=machine(1)).shapes) == 1
    said = Inference.model_validate({"streams": {"count": 4}})
    assert len(survey(said, spare=True, topology=machine(4)).shapes) == 4


def test_an_emulated_host_has_threads_and_no_cores():
    host = topology(("train", 4, 0), emulated=True).hosts[0]
    two = Inference.model_validate({"streams": {"count": 2}})
    assert [shape for _, shape in emulated(host, two).shapes] == [StreamShape((), 2)] * 2
    many = Inference.model_validate({"streams": {"count": 3, "cores": 2}})
    with pytest.raises(ConfigError, match="3 streams want 6 cores, and host train-0 has 4"):
        emulated(host, many)


def test_real_hosts_are_asked_and_emulated_ones_are_not():
    asked = []

    def ask(hosts, spare):
        asked.append(([host.name for host in hosts], spare))
        return {host.node_id: OnHost(()) for host in hosts}

    surveys_of(topology(("train", 4, 0), emulated=True), Inference(), ask)
    assert asked == []
    assert surveys_of(topology(("train", 4, 0), ("cpu", 2, 0)), Inference(), ask) == {"0": OnHost(())}
    assert asked == [(["train-0"], False)], "another group prepares"
    assert surveys_of(topology(("gpu", 4, 1)), Inference(), ask) == {}
