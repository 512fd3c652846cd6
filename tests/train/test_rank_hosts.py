"""Whether the ranks have places: what is said of it, how long another host is waited for, and which hosts are left."""

from __future__ import annotations

import pytest

from raytrain.cluster.topology import EMULATED_GPU, GROUP_LABEL, from_ray
from raytrain.errors import TrainingError
from raytrain.record.status import RankProcess
from raytrain.train.rank_hosts import RankHosts


def node(name, group, gpus=0, alive=True):
    resources = {"CPU": 2.0, **({EMULATED_GPU: float(gpus)} if gpus else {})}
    labels = {GROUP_LABEL: group, "raytrain-host": name, "raytrain-emulated": "true"}
    return {"NodeID": name, "Alive": alive, "Resources": resources if alive else {}, "Labels": labels}


class Cluster:
    """Nodes that come and go, and what is told of them."""

    def __init__(self, *nodes, patience_s=60.0):
        self.nodes, self.going, self.told = list(nodes), set(), []
        topology = from_ray(self.nodes, nodes[0]["NodeID"])
        self.hosts = RankHosts(topology, lambda: self.nodes, lambda: set(self.going), self.told.append, patience_s)

    def kill(self, name):
        self.nodes = [{**each, "Alive": each["Alive"] and each["NodeID"] != name} for each in self.nodes]

    def look(self, now_s, *at):
        return self.hosts.look({rank: RankProcess(rank, 0.0, where, "") for rank, where in enumerate(at)}, now_s)


def two_ranks(**options):
    return Cluster(node("a", "gpu", 1), node("b", "gpu", 1), node("c", "cpu"), **options)


def test_a_lost_host_of_ranks_is_told_at_once_and_waited_for_so_long():
    cluster = two_ranks()
    assert cluster.look(0, "a", "b") == [] and cluster.told == []
    cluster.kill("c")
    assert cluster.look(5, "a", "b") == [] and cluster.told == [], "no rank was there"
    cluster.kill("b")
    assert cluster.look(5.5, "a", "b") == [] and cluster.told == [], "asked a moment ago"
    cluster.look(10, "a", "b")
    assert cluster.told == ["b lost: 1 of 2 ranks have no place; waiting 60 s for another host"]
    assert cluster.hosts.lacking == 1
    cluster.look(69, "a")
    with pytest.raises(TrainingError) as caught:
        cluster.look(70)
    assert str(caught.value) == (
        "b lost: 1 of 2 ranks have no place, and no other host has come for 60 s; go on with --resume on other hosts, "
        "or on those that are left"
    )
    assert len(cluster.told) == 1


def test_another_host_in_time_is_as_good():
    cluster = two_ranks()
    cluster.kill("b")
    cluster.look(0)
    cluster.nodes.append(node("d", "gpu", 1))
    cluster.look(59)
    assert cluster.told[1:] == ["there is a place for every rank again"] and cluster.hosts.lacking == 0
    cluster.kill("d")
    cluster.look(100)
    cluster.look(159)
    with pytest.raises(TrainingError, match="b lost: 1 of 2 ranks have no place, and no other host has come for 60 s"):
        cluster.look(160)


def test_ranks_leave_a_host_that_is_about_to_go_once():
    cluster = two_ranks()
    cluster.going = {"c"}
    assert cluster.look(0, "a", "b") == [], "no rank is there"
    cluster.nodes.append(node("d", "gpu", 1))
    cluster.going = {"b", "c", "gone"}
    assert cluster.look(10, "a", "b") == ["b"]
    assert cluster.look(20, "a", "b") == [], "they have been told"
    assert cluster.told == ["b is about to go; the ranks begin anew after the step in flight"], "d has a place"
    cluster.going |= {"d"}
    assert cluster.look(30, "a", "d") == ["d"]
    assert cluster.told[1:] == [
        "d is about to go; the ranks begin anew after the step in flight",
        "b about to go: 1 of 2 ranks have no place; waiting 60 s for another host",
    ]


def test_a_rank_of_a_cpu_wants_a_host_of_its_group():
    cluster = Cluster(node("a", "train"), node("b", "cpu"))
    cluster.kill("b")
    cluster.look(0, "a")
    assert cluster.told == []
    cluster.kill("a")
    cluster.look(10)
    assert cluster.told == ["a lost: 1 of 1 ranks have no place; waiting 60 s for another host"]
    cluster.nodes.append({**node("d", "train"), "Labels": None})
    cluster.look(20)
    assert cluster.hosts.lacking == 0, "a host without a label may be anybody's"
