"""The feed over a real Ray cluster of two nodes: Ray Data tasks, blocks in the object store, ranks that take."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_images

from raytrain.cluster import emulated
from raytrain.cluster.environ import prepare_environment
from raytrain.cluster.placement import place_stages
from raytrain.cluster.topology import parse_nodes
from raytrain.config import Normalize
from raytrain.data import stream as module
from raytrain.data.batch import Failure, decode
from raytrain.data.feed import Feed
from raytrain.data.ingest import RankIngest
from raytrain.data.lean import make_ray_data_lean
from raytrain.data.order import Position, StreamSpec
from raytrain.data.pipeline import Pipeline
from raytrain.data.sources import image_folder
from raytrain.data.stream import FeedOptions
from raytrain.data.transforms import decode as decoding
from raytrain.data.transforms import resize
from raytrain.errors import DataError, TrainingError

IN_THIS_PROCESS: list[Feed] = []


@pytest.fixture(autouse=True)
def no_stream_goes_on():
    yield
    while IN_THIS_PROCESS:
        stream = IN_THIS_PROCESS.pop()._stream
        with stream._changed:
            stream.abandoned = True
            stream._changed.notify_all()
        stream.join()
        assert not stream._thread.is_alive()


@pytest.fixture(scope="module")
def cluster():
    prepare_environment()
    running = emulated.start(parse_nodes("train=1x1,cpu=1x1"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("feed") / "images", {"cat": 50, "dog": 30})


def make_feed(
    cluster, folder, stages=(), *, remote=False, epochs=2, batch_size=8, max_corrupt=0, batches_per_task=None, **options
):
    pipeline = Pipeline(image_folder(folder), [decoding(), *stages, resize(8)], batch_size=batch_size).open(0)
    placed = place_stages(cluster.topology, "anywhere")
    arguments = (
        StreamSpec(pipeline.train.num_samples, 0, batch_size, 0, epochs=epochs),
        pipeline.pickled_splits(),
        FeedOptions(
            placed.slots, placed.task_args, batches_per_task, {"train": max_corrupt, "validation": 0}, **options
        ),
    )
    if not remote:
        IN_THIS_PROCESS.append(Feed(*arguments))
        return IN_THIS_PROCESS[-1]
    import ray

    return ray.remote(num_cpus=0, max_concurrency=8)(Feed).remote(*arguments)


def take_all(feed, rank=0, attempt="a"):
    import ray

    batches, taken = [], feed.take(attempt, rank, 4)
    while True:
        assert taken.error is None, taken.error
        batches += [decode(ray.get(block))[index] for *_, (block, index) in taken.batches]
        if taken.end or taken.stop:
            return batches
        taken = feed.take(attempt, rank, 4)


def test_two_epochs_arrive_whole_as_ready_batches(cluster, folder):
    feed = make_feed(cluster, folder)
    plan = feed.begin("a", Position(), 1, 0)
    assert plan.total_steps == 20
    batches = take_all(feed)
    assert [batch.header.segment for batch in batches] == [0] * 10 + [1] * 10
    for epoch in range(2):
        ids = np.concatenate([b.id for b in batches[epoch * 10 : epoch * 10 + 10]])
        assert sorted(ids) == list(range(80))
    assert all(batch.image.shape == (8, 8, 8, 3) for batch in batches)
    assert not any(batch.header.torch_imported for batch in batches)
    assert len({batch.header.node for batch in batches}) == 2, "both nodes worked"
    assert not any(batch.image.flags.writeable for batch in batches), "views of the object store"


def test_a_rank_computes_on_the_object_stores_own_memory(cluster, folder):
    import ray

    def widen(image):
        return np.ascontiguousarray(np.broadcast_to(image.mean(), (128, 128, 4)), dtype=np.float32)

    pipeline = Pipeline(image_folder(folder), [decoding(), widen], batch_size=8).open(0)
    feed = ray.remote(num_cpus=0, max_concurrency=8)(Feed).remote(
        StreamSpec(80, 0, 8, 0, epochs=1), pipeline.pickled_splits(), FeedOptions(2, {}, None, {"train": 0})
    )
    plan = ray.get(feed.begin.remote("a", Position(), 1, 0))
    rank = RankIngest(feed, "a", 0, plan, torch.device("cpu"), None)
    try:
        for batch in rank.segment(0):
            assert batch.image.shape == (8, 4, 128, 128)
            first, last = batch.image.data_ptr(), batch.image.data_ptr() + batch.image.nbytes - 1
            assert mapped_file(first) == mapped_file(last) is not None, "a view: no copy after the object store's"
            assert all(len(image.unique()) == 1 for image in batch.image), "of the right samples"
    finally:
        rank.close()
        ray.kill(feed)


def mapped_file(address):
    """The shared memory that an address of this process lies in."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, name = line.split(maxsplit=5)
        start, stop = (int(end, 16) for end in span.split("-"))
        if start <= address < stop:
            return name if "plasma" in name else None
    return None


def test_small_batches_share_a_block(cluster, folder):
    feed = make_feed(cluster, folder, epochs=20)
    feed.begin("a", Position(), 1, 0)
    blocks, taken = [], feed.take("a", 0, 9)
    while not taken.end:
        blocks += [block for *_, (block, _) in taken.batches]
        taken = feed.take("a", 0, 9)
    blocks += [block for *_, (block, _) in taken.batches]
    assert len(blocks) == 200
    assert 10 < len(set(blocks)) < 150


def test_the_first_batch_takes_one_batchs_work_not_the_epochs(cluster, folder, tmp_path):
    counter = tmp_path / "count"

    def count(image):
        with open(counter, "ab") as file:
            file.write(b".")
        time.sleep(0.02)
        return image

    feed = make_feed(cluster, folder, [count], epochs=50)
    feed.begin("a", Position(), 1, 0)
    taken = feed.take("a", 0, 1)
    while not taken.batches:
        taken = feed.take("a", 0, 1)
    done = counter.stat().st_size
    feed.request_stop()
    feed.begin("b", Position(1, None), 1, 0)  # abandons the stream
    assert done <= 5 * 8, f"{done} of 4000 samples were prepared before the first batch of 8 was there"


def test_the_running_stream_is_adopted_only_from_the_same_place(cluster, folder):
    feed = make_feed(cluster, folder, epochs=1)
    feed.begin("", Position(), 1, 0)
    early = feed._stream
    feed.begin("a", Position(), 1, 0)
    assert feed._stream is early, "what the driver started ahead is used"
    half = np.arange(80) < 40
    feed.begin("b", Position(0, half), 1, 0)
    assert feed._stream is not early
    assert sorted(np.concatenate([b.id for b in take_all(feed, attempt="b")])) == list(range(40, 80))
    stale = feed.take("a", 0, 1)
    assert stale.end
    assert isinstance(stale.error, TrainingError)
    assert "belongs to an earlier attempt" in str(stale.error)
    feed.begin("c", Position(0, half), 2, 0)
    ranks = [take_all(feed, rank, "c") for rank in range(2)]
    assert [sum(len(b.id) for b in batches) for batches in ranks] == [20, 20]


class Lossy:
    """A Ray Data execution that ends before its last bundle."""

    def __init__(self, dataset):
        self._dataset = dataset

    def iter_internal_ref_bundles(self):
        bundles = list(self._dataset.iter_internal_ref_bundles())
        return iter(bundles[:-1])


def test_batches_that_go_missing_are_prepared_again(cluster, folder, monkeypatch):
    real, calls = module._dataset, []

    def twice_lossy(*arguments):
        calls.append(arguments)
        return Lossy(real(*arguments)) if len(calls) < 3 else real(*arguments)

    monkeypatch.setattr(module, "_dataset", twice_lossy)
    feed = make_feed(cluster, folder, epochs=1, ready_per_rank=99, batches_per_task=5)
    feed.begin("a", Position(), 1, 0)
    assert sorted(np.concatenate([b.id for b in take_all(feed)])) == list(range(80))
    assert len(calls) == 3


def test_ray_data_has_the_whole_cluster_at_once_and_no_helpers(cluster, folder):
    import ray
    from ray.data._internal.execution import streaming_executor

    feed = make_feed(cluster, folder, epochs=1)
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
    make_ray_data_lean()
    assert (stats.get_or_create_stats_actor is rays_own) is kept


def test_a_long_run_is_cut_into_legs(cluster, folder, monkeypatch):
    real, legs = module._dataset, []
    monkeypatch.setattr(module, "TASKS_A_LEG", 2)
    monkeypatch.setattr(module, "_dataset", lambda tasks, *more: legs.append(tasks) or real(tasks, *more))
    feed = make_feed(cluster, folder, epochs=1, batches_per_task=2)
    feed.begin("a", Position(), 1, 0)
    assert sorted(np.concatenate([b.id for b in take_all(feed)])) == list(range(80))
    assert [module.num_batches(tasks) for tasks in legs] == [4, 4, 2]


def test_batches_that_never_come_end_the_run(cluster, folder, monkeypatch):
    real = module._dataset
    monkeypatch.setattr(module, "_dataset", lambda *arguments: Lossy(real(*arguments)))
    feed = make_feed(cluster, folder, epochs=1, ready_per_rank=99)
    feed.begin("a", Position(), 1, 0)
    with pytest.raises(AssertionError, match="Ray Data lost the same batches 3 times"):
        take_all(feed)


def test_all_ranks_stop_at_one_step(cluster, folder):
    feed = make_feed(cluster, folder, epochs=20)
    feed.begin("a", Position(), 2, 0)
    for _ in range(5):
        while not feed.take("a", 0, 1).batches:
            pass
    feed.request_stop()
    assert len(take_all(feed, 1)) == 5
    last = feed.take("a", 0, 1)
    assert (last.batches, last.stop) == ([], True)
    assert feed.progress(0, {"step": 5}, 5, False) == 5
    assert feed.status()["progress"] == {0: {"step": 5}}


def test_slow_ranks_stop_after_the_step_in_flight(cluster, folder):
    feed = make_feed(cluster, folder, epochs=20, ready_per_rank=4)
    feed.begin("a", Position(), 2, 0)
    for rank in (0, 1):
        for _ in range(6):
            while not feed.take("a", rank, 1).batches:
                pass
    assert feed.progress(0, {}, 3, True) is None
    assert feed.progress(1, {}, 2, True) is None
    feed.request_stop()
    assert feed.progress(1, {}, 3, True) == 4, "the step that rank 0 is in, not what has been fetched ahead"
    assert feed.progress(0, {}, 4, True) == 4


def test_an_earlier_attempts_last_words_are_not_heard(cluster, folder):
    feed = make_feed(cluster, folder)
    feed.begin("a", Position(), 1, 0)
    feed.begin("b", Position(), 1, 0)
    feed.fail("a", TrainingError("stale"))
    assert feed.status()["fatal"] is None
    feed.fail("b", TrainingError("real"))
    assert str(feed.status()["fatal"]) == "real"


def test_a_batch_that_stays_away_is_made_first_and_memory_stays_bounded(cluster, folder, monkeypatch):
    real, calls = module._dataset, []

    class FirstComesLast:
        """The first bundle of an execution is held back to its end, as by a slow host."""

        def __init__(self, dataset):
            self._dataset = dataset

        def iter_internal_ref_bundles(self):
            bundles = self._dataset.iter_internal_ref_bundles()
            first = next(bundles)
            yield from bundles
            yield first

    def late(tasks, *more):
        calls.append(sum(map(len, tasks)))
        return FirstComesLast(real(tasks, *more)) if len(calls) == 1 else real(tasks, *more)

    monkeypatch.setattr(module, "_dataset", late)
    feed = make_feed(cluster, folder, epochs=60, batches_per_task=2)
    plan = feed.begin("a", Position(), 1, 0)
    batches = take_all(feed)
    assert [b.header.segment for b in batches] == sorted(b.header.segment for b in batches)
    assert len(batches) == plan.total_batches == calls[0] == 600
    assert len(calls) >= 2, "the first execution was broken off"


def test_an_error_in_a_worker_reaches_whoever_takes(cluster, tmp_path):
    folder = write_images(tmp_path / "images", {"cat": 20})
    feed = make_feed(cluster, folder)
    (folder / "cat" / "003.jpg").unlink()
    feed.begin("a", Position(), 1, 0)
    for _ in range(20):
        taken = feed.take("a", 0, 1)
        if taken.error:
            break
    assert isinstance(taken.error, DataError)
    assert str(taken.error) == f"cannot read {folder}/cat/003.jpg: No such file or directory"


def test_a_worker_that_breaks_in_an_unknown_way_says_what_it_was(cluster, folder):
    feed = make_feed(cluster, folder)
    feed._splits_pickle = b"no pickle"
    feed.begin("a", Position(), 1, 0)
    for _ in range(20):
        taken = feed.take("a", 0, 1)
        if taken.error:
            break
    assert str(taken.error) == "preprocessing failed: UnpicklingError: invalid load key, 'n'.", "without Ray's advice"


def test_failures_are_counted_once_and_end_the_run_past_the_limit(cluster, folder):
    feed = make_feed(cluster, folder, max_corrupt=1)
    feed.begin("a", Position(), 1, 0)
    feed.failures("train", [Failure(1, "a.jpg", "bad"), Failure(1, "a.jpg", "bad")])
    assert feed.status()["fatal"] is None
    feed.failures("train", [Failure(2, "b.jpg", "worse")])
    fatal = feed.status()["fatal"]
    assert str(fatal) == (
        "2 of 80 train samples could not be prepared, more than data.max_corrupt_share allows (1): "
        "a.jpg (bad); b.jpg (worse)"
    )
    assert feed.take("a", 0, 1).error is fatal
    assert feed.begin("b", Position(), 1, 0) is fatal
    feed.fail(None, TrainingError("later"))
    assert feed.status()["fatal"] is fatal


def test_a_rank_sees_normalised_images_and_metres_its_time(cluster, folder):
    feed = make_feed(cluster, folder, remote=True)
    import ray

    plan = ray.get(feed.begin.remote("a", Position(), 1, 0))
    normalize = Normalize(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    ingest = RankIngest(feed, "a", 0, plan, torch.device("cpu"), normalize)
    seen = []
    for batch in ingest.segment(0):
        assert batch.image.shape == (8, 3, 8, 8)
        assert batch.image.dtype == torch.float32
        assert batch.image.is_contiguous(memory_format=torch.channels_last)
        assert -2.001 <= batch.image.min() <= batch.image.max() <= 2.001
        assert batch.label.tolist() == [int(i >= 50) for i in batch.ids]
        seen += batch.ids.tolist()
        time.sleep(0.01)
    assert sorted(seen) == list(range(80))
    assert [batch.index for batch in ingest.segment(1)] == list(range(10))
    assert ingest.segment_of(1, "train") == 1
    assert ingest.segment_of(0, "validation") is None
    assert ingest.meter.compute_s >= 0.1
    assert ingest.meter.stages["decode"].num_samples == 160
    assert sum(ingest.meter.nodes.values()) == 160
    ingest.close()


def test_what_a_loop_leaves_of_a_pass_is_dropped(cluster, folder):
    feed = make_feed(cluster, folder, remote=True)
    import ray

    plan = ray.get(feed.begin.remote("a", Position(), 1, 0))
    ingest = RankIngest(feed, "a", 0, plan, torch.device("cpu"), None)
    next(iter(ingest.segment(0)))
    assert sum(len(batch.ids) for batch in ingest.segment(1)) == 80
    ingest.close()


def test_a_rank_whose_batch_is_all_corrupt_still_steps(cluster, tmp_path):
    folder = write_images(tmp_path / "images", {"cat": 8})
    for number in range(1, 8):
        (folder / "cat" / f"{number:03d}.jpg").write_bytes(b"broken")
    import ray

    for world in (1, 2):
        feed = make_feed(cluster, folder, remote=True, batch_size=2, epochs=1, max_corrupt=8)
        plan = ray.get(feed.begin.remote("a", Position(), world, 0))
        ingests = [RankIngest(feed, "a", rank, plan, torch.device("cpu"), None) for rank in range(world)]
        batches = [batch for ingest in ingests for batch in ingest.segment(0)]
        assert [len(batch.ids) for batch in batches if not batch.padded] == [1]
        assert len(batches) == 4
        assert {tuple(batch.image.shape) for batch in batches} == {(1, 3, 8, 8)}
        for ingest in ingests:
            ingest.close()


def test_a_lost_node_loses_no_sample(cluster, folder):
    """A CPU node is killed while it works; its tasks run elsewhere."""
    extra = cluster._cluster.add_node(num_cpus=2, object_store_memory=100 << 20, include_dashboard=False)

    def slow(image):
        time.sleep(0.02)
        return image

    feed = make_feed(cluster, folder, [slow], epochs=2)
    feed.begin("a", Position(), 1, 0)
    while not feed.take("a", 0, 1).batches:
        pass
    cluster._cluster.remove_node(extra, allow_graceful=False)
    rest = take_all(feed)
    second = np.concatenate([b.id for b in rest if b.header.segment == 1])
    assert sorted(second) == list(range(80))
    assert sum(b.header.segment == 0 for b in rest) == 9
