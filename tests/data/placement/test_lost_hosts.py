"""CPU hosts that are lost while the stages run on them alone: on real Ray, and what is asked of it."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from feeding import make_feed, take_all

from raytrain.cluster.placement import PlacedStages
from raytrain.cluster.topology import GROUP_LABEL
from raytrain.cost.placing import Places, Placing
from raytrain.data import stream as streams
from raytrain.data.order import Position, StreamPlan, StreamSpec
from raytrain.data.pace import num_batches
from raytrain.data.placement import hosts
from raytrain.data.placement.decider import Choice, Decider
from raytrain.data.placement.hosts import Hosts, HostsLost
from raytrain.data.stream import FeedOptions, Stream
from raytrain.errors import DataError, TrainingError
from raytrain.ray_internals.data import TaskWork


class Quiet(Choice):
    """The training hosts' cores prepare nothing, as if that had been measured."""

    first = Placing(3, 3, 0.0, 0, 0.0)


def choice(host_cores: int = 2) -> Choice:
    selector = {"label_selector": {GROUP_LABEL: "in(extra)"}}
    placed = {0: PlacedStages(selector, 2, ("extra",)), host_cores: PlacedStages({}, 2)}
    return Quiet(("decode", "slow", "resize"), {3: 3}, Places(2, host_cores, 1), placed, host_cores)


@pytest.mark.ray
@pytest.mark.both_ways
def test_the_training_hosts_go_on_without_cpu_hosts(two_nodes, pets, way):
    labels = {GROUP_LABEL: "extra"}
    extra = two_nodes._nodes.cluster.add_node(
        num_cpus=2, labels=labels, object_store_memory=100 << 20, include_dashboard=False
    )

    def slow(image):
        time.sleep(0.02)
        return image

    feed = make_feed(two_nodes, pets, [slow], choice=choice(), public_ray=way == "public")
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


def test_others_of_the_group_are_waited_for(monkeypatch):
    monkeypatch.setattr(hosts, "ASK_EVERY_S", 0.0)
    clock, told = [100.0], []
    monkeypatch.setattr(hosts.time, "monotonic", lambda: clock[0])
    cpu = {"Alive": True, "Labels": {GROUP_LABEL: "cpu"}}
    found = Hosts(("cpu",), lambda: [cpu], patience_s=60.0, gone=lambda: told.append(clock[0]))
    seen = []
    for now, alive in ((0, True), (10, False), (69, False), (71, True), (80, False), (139, False), (140, False)):
        clock[0], cpu["Alive"] = now, alive
        seen.append((found.gone(), found.lost()))
    assert seen == [(False, False), *[(True, False)] * 2, (False, False), *[(True, False)] * 2, (True, True)]
    assert told == [10, 80], "said at once, each time"


@pytest.mark.ray
def test_a_run_that_may_use_cpu_hosts_alone_ends_with_a_checkpoint_once_they_are_gone(two_nodes, pets, monkeypatch):
    monkeypatch.setattr(streams, "WAIT_S", 3.0)
    labels = {GROUP_LABEL: "extra"}
    extra = two_nodes._nodes.cluster.add_node(
        num_cpus=2, labels=labels, object_store_memory=100 << 20, include_dashboard=False
    )

    def slow(image):
        time.sleep(0.02)
        return image

    feed = make_feed(two_nodes, pets, [slow], groups=("extra",), selector="in(extra)")
    feed.begin("a", Position(), 1, 0)
    while not (first := feed.take("a", 0, 1).batches):
        pass
    two_nodes._nodes.cluster.remove_node(extra, allow_graceful=False)
    rest = take_all(feed)
    assert 0 < len(first) + len(rest) < 20, "what was ready is trained on, and then all stop"
    status = feed.status()
    assert len(status.warnings) == 1 and "all hosts of extra are lost" in status.warnings[0]
    assert isinstance(status.fatal, HostsLost)
    assert "no other has come for 3 s" in str(status.fatal) and "go on with --resume" in str(status.fatal)
    assert feed.begin("b", Position(), 1, 0) is status.fatal, "nobody begins anew"


def test_what_is_decided_without_cpu_hosts():
    decider = Decider(choice(), lambda decision: None)
    decider.lose_cpu_hosts()
    assert (decider.placing.host_cores, decider.placed) == (2, PlacedStages({}, 2))
    reserved = Decider(choice(host_cores=0), lambda decision: None)
    with pytest.raises(TrainingError, match="are lost, and the training hosts have no CPUs for the stages"):
        reserved.lose_cpu_hosts()


class Failing(Stream):
    """A stream whose thread ends at once, and whose tasks fail."""

    def _run(self) -> None:
        pass


@pytest.mark.parametrize(
    ("error", "lost", "goes_on"),
    [
        (RuntimeError("SystemException"), True, True),
        (RuntimeError("SystemException"), False, False),
        (DataError("a stage failed"), True, False),
    ],
)
def test_a_task_that_fails_with_its_host_is_done_elsewhere(monkeypatch, error, lost, goes_on):
    def failing(*_):
        raise error
        yield

    plan = StreamPlan(StreamSpec(80, 0, 2, 0, epochs=1), Position(), 1)
    stream = Failing(plan, b"", FeedOptions(2, {}, None, 0.0, choice=choice()), threading.Condition())
    monkeypatch.setattr(streams, "run_tasks", failing)
    monkeypatch.setattr(streams, "LOST_WITHIN_S", 0.0)
    nodes = [{"Alive": not lost, "Labels": {GROUP_LABEL: "extra"}}]
    stream._hosts = lambda: Hosts(("extra",), lambda: nodes)
    stream._task_work = lambda work_ref, hosts: TaskWork(failing, {}, 2, {}, 1, None, hosts.lost)
    tasks, _ = stream._leg(plan.places(), False)
    if not goes_on:
        with pytest.raises(type(error)):
            stream._run_leg(tasks, None)
        return
    assert num_batches(stream._run_leg(tasks, None)) == num_batches(tasks) == 6
    assert stream._decider.placing.host_cores == 2 and stream._placed_anew
