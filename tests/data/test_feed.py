"""The feed over a real Ray cluster of two nodes: Ray Data tasks, blocks in the object store, ranks that take."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import write_images
from feeding import make_feed, take_all
from nodes_that_go import add_node, drain, kill_node
from patience import wait_for
from plan_model import position

from raytrain.cluster.environment import collects_metrics
from raytrain.cluster.topology import GROUP_LABEL
from raytrain.data import stock
from raytrain.data import stream as module
from raytrain.data.order import Position
from raytrain.data.producer import node_id
from raytrain.data.router import Router
from raytrain.data.samples.block import batches_of
from raytrain.data.stock import STORE_SHARE, stock_bytes
from raytrain.errors import DataError, TrainingError
from raytrain.ray_internals import data as tasks_of_ray
from raytrain.ray_internals.data import prepare_tasks
from raytrain.record.status import Failure

BOTH_WAYS = pytest.mark.parametrize("public_ray", [False, True], ids=["private", "public"])


@BOTH_WAYS
def test_two_epochs_arrive_whole_as_ready_batches(two_nodes, public_ray, pets):
    feed = make_feed(two_nodes, pets, public_ray=public_ray)
    plan = feed.begin("a", Position(), 1, 0)
    assert plan.total_steps == 20
    batches = take_all(feed)
    assert [batch.header.segment for batch in batches] == [0] * 10 + [1] * 10
    for epoch in range(2):
        ids = np.concatenate([b.key for b in batches[epoch * 10 : epoch * 10 + 10]])
        assert sorted(ids) == list(range(80))
    assert all(batch.fields["image"].shape == (8, 8, 8, 3) for batch in batches)
    assert not any(batch.header.torch_imported for batch in batches)
    assert len({batch.header.node for batch in batches}) == 2, "both nodes worked"
    assert not any(batch.fields["image"].flags.writeable for batch in batches), "views of the object store"


@BOTH_WAYS
def test_small_batches_share_a_block(two_nodes, public_ray, pets):
    feed = make_feed(two_nodes, pets, public_ray=public_ray, epochs=20)
    feed.begin("a", Position(), 1, 0)
    blocks, taken = [], feed.take("a", 0, 9)
    while not taken.end:
        blocks += [block for *_, (block, _) in taken.batches]
        taken = feed.take("a", 0, 9)
    blocks += [block for *_, (block, _) in taken.batches]
    assert len(blocks) == 200
    assert 10 < len(set(blocks)) < 150


@BOTH_WAYS
def test_the_first_batch_takes_one_batchs_work_not_the_epochs(two_nodes, public_ray, pets, tmp_path):
    counter = tmp_path / "count"

    def count(image):
        with open(counter, "ab") as file:
            file.write(b".")
        time.sleep(0.1)  # many times what taking a batch takes
        return image

    feed = make_feed(two_nodes, pets, [count], public_ray=public_ray, epochs=50)
    feed.begin("a", Position(), 1, 0)
    taken = feed.take("a", 0, 1)
    while not taken.batches:
        taken = feed.take("a", 0, 1)
    done = counter.stat().st_size
    feed.request_stop()
    feed.begin("b", Position(1), 1, 0)  # abandons the stream
    assert done <= 5 * 8, f"{done} of 4000 samples were prepared before the first batch of 8 was there"


def test_the_running_stream_is_adopted_only_from_the_same_place(two_nodes, pets):
    feed = make_feed(two_nodes, pets, epochs=1)
    feed.begin("", Position(), 1, 0)
    early = feed._stream
    feed.begin("a", Position(), 1, 0)
    assert feed._stream is early, "what the driver started ahead is used"
    half = position(0, np.arange(80) < 40)
    feed.begin("b", half, 1, 0)
    assert feed._stream is not early
    assert sorted(np.concatenate([b.key for b in take_all(feed, attempt="b")])) == list(range(40, 80))
    stale = feed.take("a", 0, 1)
    assert stale.end
    assert isinstance(stale.error, TrainingError)
    assert "belongs to an earlier attempt" in str(stale.error)
    feed.begin("c", half, 2, 0)
    ranks = [take_all(feed, rank, "c") for rank in range(2)]
    assert [sum(len(b.key) for b in batches) for batches in ranks] == [20, 20]


def lossy(blocks):
    """An execution that ends before its last block."""
    return iter(list(blocks)[:-1])


@BOTH_WAYS
def test_batches_that_go_missing_are_prepared_again(two_nodes, public_ray, pets, monkeypatch):
    real, calls = module.run_tasks, []

    def twice_lossy(*arguments):
        calls.append(arguments)
        return lossy(real(*arguments)) if len(calls) < 3 else real(*arguments)

    monkeypatch.setattr(module, "run_tasks", twice_lossy)
    feed = make_feed(two_nodes, pets, public_ray=public_ray, epochs=1, ready_per_rank=99, batches_per_task=5)
    feed.begin("a", Position(), 1, 0)
    assert sorted(np.concatenate([b.key for b in take_all(feed)])) == list(range(80))
    assert len(calls) == 3


def test_ray_data_has_the_whole_cluster_at_once_and_no_helpers(two_nodes, pets):
    import ray
    from ray.data._internal.execution import streaming_executor

    feed = make_feed(two_nodes, pets, epochs=1)
    feed.begin("a", Position(), 1, 0)
    take_all(feed)
    autoscaler = streaming_executor.create_cluster_autoscaler(None, None, None, execution_id="any")
    assert autoscaler.get_total_resources().cpu == 2, "not after a second, when an actor has been asked"
    assert not ray.util.list_named_actors(all_namespaces=True)


@pytest.mark.parametrize(("collects", "kept"), [("0", False), ("1", True)])
def test_who_collects_metrics_gets_ray_datas(monkeypatch, collects, kept):
    from ray.data._internal import stats

    def rays_own():
        pass

    monkeypatch.setattr(stats, "get_or_create_stats_actor", rays_own)
    monkeypatch.setenv("RAY_enable_metrics_collection", collects)
    prepare_tasks(collects_metrics(), public=False)
    assert (stats.get_or_create_stats_actor is rays_own) is kept


@BOTH_WAYS
def test_a_long_run_is_cut_into_legs(two_nodes, public_ray, pets, monkeypatch):
    real, legs = module.run_tasks, []
    monkeypatch.setattr(module, "TASKS_A_LEG", 2)
    monkeypatch.setattr(module, "run_tasks", lambda work, tasks, *more: legs.append(tasks) or real(work, tasks, *more))
    feed = make_feed(two_nodes, pets, public_ray=public_ray, epochs=1, batches_per_task=2)
    feed.begin("a", Position(), 1, 0)
    assert sorted(np.concatenate([b.key for b in take_all(feed)])) == list(range(80))
    assert [sum(map(len, tasks)) for tasks in legs] == [4, 4, 2]


def test_batches_that_never_come_end_the_run(two_nodes, pets, monkeypatch):
    real = module.run_tasks
    monkeypatch.setattr(module, "run_tasks", lambda *arguments: lossy(real(*arguments)))
    feed = make_feed(two_nodes, pets, epochs=1, ready_per_rank=99)
    feed.begin("a", Position(), 1, 0)
    with pytest.raises(AssertionError, match="Ray lost the same batches 3 times"):
        take_all(feed)


@BOTH_WAYS
def test_all_ranks_stop_at_one_step(two_nodes, public_ray, pets):
    feed = make_feed(two_nodes, pets, public_ray=public_ray, epochs=20)
    feed.begin("a", Position(), 2, 0)
    for _ in range(5):
        while not feed.take("a", 0, 1).batches:
            pass
    feed.request_stop()
    assert len(take_all(feed, 1)) == 5
    last = feed.take("a", 0, 1)
    assert (last.batches, last.stop) == ([], True)
    assert feed.progress("a", 0, {"step": 5}, 5, False) == 5
    assert feed.status().progress == {0: {"step": 5}}


def test_slow_ranks_stop_after_the_step_in_flight(two_nodes, pets):
    feed = make_feed(two_nodes, pets, epochs=20, ready_per_rank=4)
    feed.begin("a", Position(), 2, 0)
    for rank in (0, 1):
        for _ in range(6):
            while not feed.take("a", rank, 1).batches:
                pass
    assert feed.progress("a", 0, {}, 3, True) is None
    assert feed.progress("a", 1, {}, 2, True) is None
    feed.request_stop()
    assert feed.progress("a", 1, {}, 3, True) == 4, "the step that rank 0 is in, not what has been fetched ahead"
    assert feed.progress("a", 0, {}, 4, True) == 4


def test_an_earlier_attempts_last_words_are_not_heard(two_nodes, pets):
    feed = make_feed(two_nodes, pets)
    feed.begin("a", Position(), 1, 0)
    feed.begin("b", Position(), 1, 0)
    feed.fail("a", TrainingError("stale"))
    assert feed.status().fatal is None
    feed.fail("b", TrainingError("real"))
    assert str(feed.status().fatal) == "real"


@BOTH_WAYS
def test_a_batch_that_stays_away_is_made_first_and_memory_stays_bounded(two_nodes, public_ray, pets, monkeypatch):
    real, calls = module.run_tasks, []

    def first_comes_last(blocks):
        """The first block of an execution is held back to its end, as by a slow host."""
        first = next(blocks)
        yield from blocks
        yield first

    def late(work, tasks, *more):
        calls.append(sum(map(len, tasks)))
        blocks = real(work, tasks, *more)
        return first_comes_last(blocks) if len(calls) == 1 else blocks

    monkeypatch.setattr(module, "run_tasks", late)
    feed = make_feed(two_nodes, pets, public_ray=public_ray, epochs=60, batches_per_task=2)
    plan = feed.begin("a", Position(), 1, 0)
    batches = take_all(feed)
    assert [b.header.segment for b in batches] == sorted(b.header.segment for b in batches)
    assert len(batches) == plan.total_batches == calls[0] == 600
    assert len(calls) >= 2, "the first execution was broken off"


@BOTH_WAYS
def test_an_error_in_a_worker_reaches_whoever_takes(two_nodes, public_ray, tmp_path):
    folder = write_images(tmp_path / "images", {"cat": 20})

    def changing(image):
        return image[..., : 1 + int(image.sum()) % 2]

    feed = make_feed(two_nodes, folder, [changing], public_ray=public_ray)
    feed.begin("a", Position(), 1, 0)
    for _ in range(20):
        taken = feed.take("a", 0, 1)
        if taken.error:
            break
    assert isinstance(taken.error, DataError)
    assert "image" in str(taken.error) and f"{folder}/cat/" in str(taken.error)


@BOTH_WAYS
def test_a_worker_that_breaks_in_an_unknown_way_says_what_it_was(two_nodes, public_ray, pets):
    feed = make_feed(two_nodes, pets, public_ray=public_ray)
    feed._splits_pickle = b"no pickle"
    feed.begin("a", Position(), 1, 0)
    for _ in range(20):
        taken = feed.take("a", 0, 1)
        if taken.error:
            break
    assert str(taken.error) == "preprocessing failed: UnpicklingError: invalid load key, 'n'.", "without Ray's advice"


def test_failures_are_counted_once_and_end_the_run_past_the_limit(two_nodes, pets):
    feed = make_feed(two_nodes, pets, max_corrupt=1)
    feed.begin("a", Position(), 1, 0)
    feed.failures("train", [Failure(1, "a.jpg", "bad"), Failure(1, "a.jpg", "bad")])
    assert feed.status().fatal is None
    feed.failures("train", [Failure(2, "b.jpg", "worse")])
    fatal = feed.status().fatal
    assert str(fatal) == (
        "2 of 80 train samples (2.50%) could not be prepared; data.max_corrupt_share: 0.0125 allows 1 of them: "
        "a.jpg (bad); b.jpg (worse)"
    )
    assert feed.take("a", 0, 1).error is fatal
    assert feed.begin("b", Position(), 1, 0) is fatal
    feed.fail(None, TrainingError("later"))
    assert feed.status().fatal is fatal


@pytest.mark.parametrize("taken", [0, 13, 29], ids=["before-the-first-batch", "mid-epoch", "in-the-last-batch"])
def test_a_lost_node_loses_no_sample(two_nodes, pets, taken):
    """A CPU node is killed while it works, when so many of 10 batches an epoch have been taken; its tasks run
    elsewhere."""
    extra = add_node(two_nodes, "extra", "extra", cpus=2)

    def slow(image):
        time.sleep(0.02)
        return image

    feed = make_feed(two_nodes, pets, [slow], epochs=3)
    feed.begin("a", Position(), 1, 0)
    batches = take_some(feed, taken)
    kill_node(two_nodes, extra)
    batches += take_all(feed)
    for epoch in range(3):
        assert sorted(np.concatenate([b.key for b in batches if b.header.segment == epoch])) == list(range(80))


def test_a_drained_node_finishes_what_it_is_at_and_takes_nothing_new(two_nodes, pets):
    extra = add_node(two_nodes, "extra", "extra", cpus=2)

    def slow(image):
        time.sleep(0.01)
        return image

    feed = make_feed(two_nodes, pets, [slow], epochs=20, batches_per_task=2)
    feed.begin("a", Position(), 1, 0)
    batches = take_some(feed, 24)
    assert extra.node_id in {batch.header.node for batch in batches}
    drain(extra.node_id)
    batches += take_all(feed)
    for epoch in range(20):
        assert sorted(np.concatenate([b.key for b in batches if b.header.segment == epoch])) == list(range(80))
    late = [batch.header.node for batch in batches if batch.header.segment >= 15]
    assert late and extra.node_id not in late
    wait_for(lambda: not alive(extra.node_id), 30, "the node has gone by itself")
    two_nodes._nodes.cluster.remove_node(extra, allow_graceful=False)


def take_some(feed, count):
    """So many batches, of rank 0."""
    import ray

    batches = []
    while len(batches) < count:
        taken = feed.take("a", 0, 1)
        assert taken.error is None, taken.error
        batches += [batches_of(ray.get(block))[index] for *_, (block, index) in taken.batches]
    return batches


def alive(node_id):
    import ray

    return next(node["Alive"] for node in ray.nodes() if node["NodeID"] == node_id)


def node(store, cpus, alive=True):
    return {"Alive": alive, "Resources": {"object_store_memory": store, "CPU": cpus}}


def test_the_host_whose_object_store_fills_first_bounds_the_stock():
    assert stock_bytes([node(1000, 4)]) == STORE_SHARE * 1000
    assert stock_bytes([node(1000, 4), node(1000, 16)]) == int(STORE_SHARE * 1000 / 16 * 20)
    assert stock_bytes([node(1000, 4), node(10, 16, alive=False)]) == STORE_SHARE * 1000
    cpu, gpu = (
        {**node(*size), "Labels": {GROUP_LABEL: name}} for size, name in (((10, 16), "cpu"), ((1000, 96), "gpu"))
    )
    assert stock_bytes([cpu, gpu], ("cpu", "more")) == STORE_SHARE * 10, "the other holds nothing"
    assert stock_bytes([cpu, gpu]) == int(STORE_SHARE * 10 / 16 * 112)
    assert stock_bytes([{"Alive": True, "Resources": {"CPU": 4.0}}]) is None


def test_no_more_lies_ready_than_the_stock(two_nodes, pets, monkeypatch):
    """Blocks of 2 kB, nobody takes them: Ray Data would collect all 1000."""
    monkeypatch.setattr(module, "stock_bytes", lambda *_: 60_000)
    seen = []

    class Watched(tasks_of_ray._Policy):
        def __init__(self, topology, bounds):
            super().__init__(topology, bounds)
            operators = list(topology)
            assert self.max_task_output_bytes_to_read(operators[0]) is None, "the plan is not held back"
            seen.append(topology[operators[-1]])

    monkeypatch.setattr(tasks_of_ray, "_Policy", Watched)
    monkeypatch.setattr(stock, "AT_FIRST", 1000)
    feed = make_feed(two_nodes, pets, epochs=100, batches_per_task=20)
    feed.begin("a", Position(), 1, 0)
    most = 0

    def ready() -> int:
        nonlocal most
        most = max([most, *(state.output_queue_bytes() for state in seen)])
        return most

    wait_for(lambda: ready() > 30_000, 30, "half of the stock lies ready", ready)
    until = time.monotonic() + 3  # no event tells that nothing more comes
    while time.monotonic() < until:
        ready()
        time.sleep(0.05)
    assert 30_000 < most <= 60_000, most
    assert len(take_all(feed)) == 1000, "and all of them come"


class Operator:
    """The last one of an execution, with two tasks and blocks of 10 bytes, as Ray Data shows it to a policy."""

    output_dependencies = ()

    def __init__(self):
        self.metrics = self
        self.average_bytes_per_output, self.bytes_task_outputs_generated, self.ready = 10, 0, 0

    def num_active_tasks(self):
        return 2

    def output_queue_bytes(self):
        return self.ready

    def set_external_consumer_bytes(self, num_bytes):
        assert num_bytes == 0


def test_what_slow_ranks_will_not_take_soon_is_not_prepared(monkeypatch):
    now, slept = [0.0], []
    monkeypatch.setattr(stock.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(tasks_of_ray.time, "sleep", slept.append)
    last = Operator()
    bounded = tasks_of_ray._Bounded(stock.Stock(most_bytes=100_000, blocks_ahead=2))
    policy = bounded(None, {last: last}, last)
    last.average_bytes_per_output = None
    assert policy.max_task_output_bytes_to_read(last) == 100_000, "nothing is known yet"
    last.average_bytes_per_output = 10
    last.bytes_task_outputs_generated = last.ready = 500
    assert policy.max_task_output_bytes_to_read(last) == 0, "how fast they are is not known yet"
    assert policy.max_task_output_bytes_to_read(last) == 0
    last.ready = 0
    assert policy.max_task_output_bytes_to_read(last) == stock.AT_FIRST * 15
    policy, slept[:], last.ready = bounded(None, {last: last}, last), [], 500
    last.ready = 400  # ten blocks were taken, and two a second from now on
    policy.max_task_output_bytes_to_read(last)
    now[0], last.ready, last.bytes_task_outputs_generated = 10.0, 500, 500 + 300
    assert policy.max_task_output_bytes_to_read(last) == int(30 * 20) - 500
    last.ready = 700
    last.bytes_task_outputs_generated += 200
    assert policy.max_task_output_bytes_to_read(last) == 0
    assert set(slept) == {tasks_of_ray.FULL_PAUSE_S}
    now[0], last.ready = 1e6, 0  # nobody takes for days: the next blocks may come all the same
    last.bytes_task_outputs_generated = 300
    assert policy.max_task_output_bytes_to_read(last) == int((2 / stock.LEAST_TASKS_A_BLOCK + 1) * 10)


def test_a_worker_that_shares_its_core_has_less_cpu_time_than_wall_time(two_nodes, pets):
    """A process is busy on the only core that the stage runs on, and gets about half of it."""
    core = min(os.sched_getaffinity(0))

    def compute(image):
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {core})
        began = time.process_time()
        while time.process_time() - began < 0.03:
            pass
        os.sched_setaffinity(0, before)
        return image

    feed = make_feed(two_nodes, pets, [compute], epochs=1)
    feed.begin("a", Position(), 1, 0)
    busy = subprocess.Popen([sys.executable, "-c", f"import os; os.sched_setaffinity(0, {{{core}}})\nwhile True: pass"])
    try:
        headers = [batch.header for batch in take_all(feed)]
    finally:
        busy.kill()
        busy.wait()
    cpu_s = sum(header.stage_cpu_s["compute"] for header in headers)
    wall_s = sum(header.stage_wall_s["compute"] for header in headers)
    assert 80 * 0.03 * 0.95 < cpu_s < 80 * 0.03 * 1.3
    assert wall_s > 1.3 * cpu_s


def prepared(two_nodes, pets, *, is_global, selector=None, slow_host=None):
    """By rank: place in the plan, ids and pixels of every batch, in the order in which it came."""

    def speckle(image, rng):
        if node_id() == slow_host:
            time.sleep(0.01)  # of a host
        return np.clip(image + rng.normal(0, 20, image.shape), 0, 255).astype(np.uint8)

    feed = make_feed(two_nodes, pets, [speckle], is_global=is_global, selector=selector, batches_per_task=2)
    feed.begin("a", Position(), 2, 0)
    return [
        [(b.header.segment, b.header.batch, b.key.tolist(), b.fields["image"].tobytes()) for b in take_all(feed, rank)]
        for rank in range(2)
    ]


@pytest.mark.parametrize("is_global", [True, False], ids=["a global batch", "a rank's batch"])
def test_batches_do_not_depend_on_hosts_and_their_speed(two_nodes, pets, is_global, monkeypatch):
    arrived: list[tuple[int, int]] = []
    arrive = Router.arrive

    def noted(router, segment, batch, *more):
        arrived.append((segment, batch))
        arrive(router, segment, batch, *more)

    alone = prepared(two_nodes, pets, is_global=is_global, selector="train")
    monkeypatch.setattr(Router, "arrive", noted)
    slow = next(host.node_id for host in two_nodes.topology.hosts if host.group == "cpu")
    together = prepared(two_nodes, pets, is_global=is_global, slow_host=slow)
    assert arrived != sorted(arrived), "the slow host's came late"
    assert sorted(sum(alone, [])) == sorted(sum(together, [])), "the same samples, and the same random numbers"
    if is_global:
        assert alone == together, "and every rank has the same ones in the same order"
