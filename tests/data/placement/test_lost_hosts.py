"""CPU hosts that are lost while the stages run on them alone: on real Ray, and what is asked of it."""

from __future__ import annotations

import time

import numpy as np
import pytest
from feeding import make_feed, take_all

from raytrain.cluster.placement import PlacedStages
from raytrain.cluster.topology import GROUP_LABEL
from raytrain.cost.placing import Places, Placing
from raytrain.data.order import Position
from raytrain.data.placement import hosts
from raytrain.data.placement.decider import Choice, Decider
from raytrain.data.placement.hosts import Hosts
from raytrain.errors import TrainingError


class Quiet(Choice):
    """The training hosts' cores prepare nothing, as if that had been measured."""

    first = Placing(3, 3, 0.0, 0, 0.0)


def choice(host_cores: int = 2) -> Choice:
    selector = {"label_selector": {GROUP_LABEL: "in(extra)"}}
    placed = {0: PlacedStages(selector, 2, ("extra",)), host_cores: PlacedStages({}, 2)}
    return Quiet(("decode", "slow", "resize"), {3: 3}, Places(2, host_cores, 1), placed, host_cores)


@pytest.mark.ray
@pytest.mark.parametrize("public", [False, True])
def test_the_training_hosts_go_on_without_cpu_hosts(two_nodes, pets, public):
    labels = {GROUP_LABEL: "extra"}
    extra = two_nodes._nodes.cluster.add_node(
        num_cpus=2, labels=labels, object_store_memory=100 << 20, include_dashboard=False
    )

    def slow(image):
        time.sleep(0.02)
        return image

    feed = make_feed(two_nodes, pets, [slow], choice=choice(), public_ray=public)
    feed.begin("a", Position(), 1, 0)
    while not (first := feed.take("a", 0, 1).batches):
        pass
    two_nodes._nodes.cluster.remove_node(extra, allow_graceful=False)
    rest = take_all(feed)
    came = [(batch.header.segment, batch.header.batch) for batch in rest] + [first[0][:2]]
    assert sorted(came) == [(segment, batch) for segment in (0, 1) for batch in range(10)]
    second = np.concatenate([batch.key for batch in rest if batch.header.segment == 1])
    assert sorted(second) == list(range(80))


def test_hosts_are_lost_when_none_is_left_and_asked_about_now_and_then(monkeypatch):
    nodes = [
        {"Alive": True, "Labels": {GROUP_LABEL: "gpu"}},
        {"Alive": True, "Labels": {GROUP_LABEL: "cpu"}},
        {"Alive": True, "Labels": None},
    ]
    found = Hosts(("cpu", "more"), lambda: nodes)
    assert not found.lost()
    nodes[1]["Alive"] = False
    assert not found.lost(), "asked a moment ago"
    monkeypatch.setattr(hosts, "ASK_EVERY_S", 0.0)
    assert found.lost()


def test_what_is_decided_without_cpu_hosts():
    decider = Decider(choice(), lambda decision: None)
    decider.lose_cpu_hosts()
    assert (decider.placing.host_cores, decider.placed) == (2, PlacedStages({}, 2))
    reserved = Decider(choice(host_cores=0), lambda decision: None)
    with pytest.raises(TrainingError, match="are lost, and the training hosts have no CPUs for the stages"):
        reserved.lose_cpu_hosts()
