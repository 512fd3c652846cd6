"""Who the hosts are and where work goes: values, decided without Ray."""

from __future__ import annotations

import pytest

from raytrain.cluster.logs import visible_lines
from raytrain.cluster.placement import (
    RANK_MEMORY_BYTES,
    check_free_gpus,
    place_stages,
    placements,
    rank_resources,
    rank_selector,
)
from raytrain.cluster.topology import EMULATED_GPU, EMULATED_LABEL, GROUP_LABEL, from_ray
from raytrain.config.cluster import parse_nodes, reserved_cpus
from raytrain.errors import ClusterError, ConfigError


def node(number, group=None, cpus=2.0, gpus=0.0, alive=True, head=False, **labels):
    """One entry of `ray.nodes()`."""
    resources = {"CPU": cpus, "memory": 1e9}
    if gpus:
        resources["GPU"] = gpus
    if head:
        resources["node:__internal_head__"] = 1.0
    return {
        "NodeID": f"{number:056x}",
        "Alive": alive,
        "NodeManagerAddress": "10.0.0.1",
        "Resources": resources,
        "Labels": {**({GROUP_LABEL: group} if group else {}), **labels},
    }


HETEROGENEOUS = [node(2, "cpu", 8), node(1, "gpu", 3, 1, head=True), node(3, "cpu", 8), node(4, "cpu", 8, alive=False)]


def test_nodes_are_read_as_written():
    gpu, cpu = parse_nodes("gpu=1x2x1, cpu=3x4")
    assert (gpu.name, gpu.hosts, gpu.cpus, gpu.gpus) == ("gpu", 1, 2, 1)
    assert (cpu.name, cpu.hosts, cpu.cpus, cpu.gpus) == ("cpu", 3, 4, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu", "must look like group=HOSTSxCPUS"),
        ("", "must look like"),
        ("gpu=1x2x3x4", "must look like"),
        ("gpu=1x2,gpu=1x1", "--nodes names group 'gpu' twice"),
        ("gpu=0x2", "group 'gpu' has no host"),
        ("gpu=1x0", "hosts of group 'gpu' need at least one CPU"),
    ],
)
def test_nodes_that_make_no_sense_say_why(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_nodes(text)


def test_a_heterogeneous_cluster():
    topology = from_ray(HETEROGENEOUS)
    assert [host.name for host in topology.hosts] == ["gpu-1", "cpu-1", "cpu-2"]
    assert (topology.num_gpus, topology.world_size, topology.cpu_slots()) == (1, 1, 19)
    assert (topology.training_group, topology.cpu_groups) == ("gpu", ("cpu",))


def test_a_single_host_is_a_cluster_of_one():
    topology = from_ray([node(1, head=True)])
    assert (topology.world_size, topology.training_group, topology.cpu_groups) == (1, "default", ())
    assert rank_resources(topology) == {"memory": RANK_MEMORY_BYTES}
    assert rank_selector(topology) is None


def test_the_group_with_gpus_trains_wherever_the_head_is():
    topology = from_ray([node(1, "cpu", head=True), node(2, "gpu", 4, 2)])
    assert (topology.training_group, topology.world_size) == ("gpu", 2)
    assert rank_resources(topology) == {"GPU": 1}
    assert rank_selector(topology) is None


def test_without_gpus_the_group_of_the_head_trains():
    topology = from_ray([node(1, "cpu"), node(2, "train", head=True)])
    assert topology.training_group == "train"
    assert rank_selector(topology) == {GROUP_LABEL: "train"}


def test_a_cluster_that_cannot_work_says_so():
    with pytest.raises(ClusterError, match="no living node"):
        from_ray([node(1, alive=False)])
    with pytest.raises(ClusterError, match="no CPU for the preprocessing"):
        from_ray([node(1, cpus=0.0)])


def test_stages_run_where_the_placement_says():
    topology = from_ray(HETEROGENEOUS)
    anywhere = place_stages(topology, "anywhere")
    assert (anywhere.task_args, anywhere.slots) == ({}, 19)
    only = place_stages(topology, "cpu-groups-only")
    assert (only.task_args, only.slots) == ({"label_selector": {GROUP_LABEL: "in(cpu)"}}, 16)
    assert (anywhere.groups, only.groups) == ((), ("cpu",))
    first = place_stages(topology, "cpu-groups-first")
    assert first.task_args["label_selector"] == {GROUP_LABEL: "in(cpu)"} and first.groups == ("cpu",)
    assert first.task_args["fallback_strategy"] == [{"label_selector": {GROUP_LABEL: "gpu"}}]
    assert first.slots == 19


def test_a_cluster_that_others_started_keeps_cpus_for_its_ranks_too():
    topology = from_ray(HETEROGENEOUS)
    first = place_stages(topology, "cpu-groups-first").task_args
    spared = place_stages(topology, "anywhere", None)
    assert (spared.task_args, spared.slots) == ({**first, "concurrency": 18}, 18), "they are a training host's"
    alone = place_stages(from_ray([node(1, "gpu", 4, 1, head=True)]), "anywhere", None)
    assert (alone.task_args, alone.slots) == ({"concurrency": 3}, 3)
    assert place_stages(topology, "cpu-groups-first", 2).task_args["concurrency"] == 17
    assert "concurrency" not in place_stages(topology, "cpu-groups-only", 2).task_args


def test_as_many_of_a_training_hosts_cpus_as_measurement_says():
    topology = from_ray(HETEROGENEOUS)  # 3 CPUs of a training host, 16 of CPU hosts
    found = placements(topology)
    assert {cpus: each.slots for cpus, each in found.items()} == {0: 16, 1: 17, 2: 18, 3: 19}
    assert found[0] == place_stages(topology, "cpu-groups-only")
    first = place_stages(topology, "cpu-groups-first").task_args
    assert (found[2].task_args, found[2].groups) == ({**first, "concurrency": 18}, ("cpu",))
    assert {cpus: each.slots for cpus, each in placements(topology, 2).items()} == {0: 16, 1: 17}, "two are reserved"
    alone = placements(from_ray([node(1, "gpu", 4, 1, head=True)]))
    assert {cpus: each.task_args for cpus, each in alone.items()} == {n: {"concurrency": n} for n in (1, 2, 3, 4)}
    with_coordinator = from_ray([node(1, "gpu", 0.0, 1, head=True), node(2, "cpu", 4)])
    assert list(placements(with_coordinator)) == [0], "the training host has none to give"


def test_groups_that_ray_cannot_tell_apart():
    unlabelled = node(1, "gpu", 4, 1, head=True)
    unlabelled["Labels"] = {}
    assert from_ray([unlabelled]).is_labelled, "there is one group only"
    assert not from_ray([unlabelled, node(2, "cpu", 4)]).is_labelled
    assert from_ray(HETEROGENEOUS).is_labelled


def test_emulated_gpus_are_a_resource_of_their_own():
    emulated = node(1, "gpu", 2, head=True, **{EMULATED_LABEL: "true"})
    emulated["Resources"][EMULATED_GPU] = 2.0
    topology = from_ray([emulated])
    assert (topology.num_gpus, topology.emulated_gpus, topology.world_size) == (2, True, 2)
    assert rank_resources(topology) == {EMULATED_GPU: 1}


def test_gpus_that_others_hold_are_not_waited_for():
    topology = from_ray(HETEROGENEOUS)
    check_free_gpus(topology, 1.0)
    with pytest.raises(ClusterError, match="only 0 of the cluster's 1 GPUs are free"):
        check_free_gpus(topology, 0.0)


def test_placement_on_a_cluster_without_cpu_groups():
    topology = from_ray([node(1, "gpu", 4, 1, head=True)])
    assert place_stages(topology, "cpu-groups-first").slots == 4
    with pytest.raises(ClusterError, match="every host belongs to the training group; add a CPU group"):
        place_stages(topology, "cpu-groups-only")


@pytest.mark.parametrize(
    ("cpus", "gpus", "wanted", "reserved"),
    [(4, 1, None, 1), (4, 8, None, 2), (1, 1, None, 0), (4, 0, None, 0), (4, 1, 3, 3)],
)
def test_training_hosts_keep_cpus_for_themselves(cpus, gpus, wanted, reserved):
    assert reserved_cpus(cpus, gpus, wanted) == reserved


def test_a_reserve_that_leaves_nothing_is_refused():
    with pytest.raises(ConfigError, match="reserved_cpus=4 leaves nothing of a training host's 4 CPUs"):
        reserved_cpus(4, 1, 4)


@pytest.mark.parametrize(
    ("source", "line", "shown"),
    [
        ({"actor_name": "RayTrainWorker", "pid": 7}, "hello", ["rank (pid 7): hello"]),
        ({"task_name": "MapBatches(produce)", "pid": 8}, "hello", ["stage (pid 8): hello"]),
        ({"pid": "raylet"}, "out of memory", ["ray: out of memory"]),
        ({"actor_name": "TrainController", "pid": 7}, "hello", []),
        ({"actor_name": "Feed", "pid": 7}, "raytrain: Ray 3 lacks x", ["raytrain: Ray 3 lacks x"]),
        ({"pid": 9}, "hello", []),
        ({"actor_name": "RayTrainWorker", "pid": 7}, "[2026-11-21 22:08:27,534 E 55 56] core_worker.cc:2: x", []),
        ({"actor_name": "RayTrainWorker", "pid": 7}, "Setting up process group for: env:// [rank=0]", []),
        ({"actor_name": "RayTrainWorker", "pid": 7}, "  ", []),
    ],
)
def test_only_what_concerns_the_user_is_printed(source, line, shown):
    assert visible_lines({**source, "lines": [line]}) == shown
