"""The rank's side of the feed: views of the object store, the meter, blocks on their way from other hosts."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import write_images
from feeding import make_feed
from patience import wait_for

from raytrain.config.data import Normalize
from raytrain.data.feed import Feed, Taken
from raytrain.data.order import Position, StreamSpec
from raytrain.data.pipeline import Pipeline
from raytrain.data.samples.fields import Field, Schema
from raytrain.data.sources.kinds.image_folder import image_folder
from raytrain.data.stages.geometry import random_crop, random_horizontal_flip, random_resized_crop
from raytrain.data.stages.images import decode
from raytrain.data.stages.registry import on_cpu, on_device
from raytrain.data.stream import FeedOptions
from raytrain.device import loader
from raytrain.device.arrival import Arrived, arrivals
from raytrain.device.loader import RankIngest, pull
from raytrain.errors import DataError

CHANNELS_FIRST = {"image": Arrived(channels_first=True)}


def test_a_rank_computes_on_the_object_stores_own_memory(two_nodes, pets):
    import ray

    def widen(image):
        return np.ascontiguousarray(np.broadcast_to(image.mean(), (128, 128, 4)), dtype=np.float32)

    pipeline = Pipeline(image_folder(pets), [decode(), widen], batch_size=8).open(0)
    feed = ray.remote(num_cpus=0, max_concurrency=8)(Feed).remote(
        StreamSpec(80, 0, 8, 0, epochs=1), pipeline.pickled_splits(), FeedOptions(2, {}, None, 0.0)
    )
    plan = ray.get(feed.begin.remote("a", Position(), 1, 0))
    rank = RankIngest(feed, "a", 0, plan, torch.device("cpu"), CHANNELS_FIRST)
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


def test_a_rank_sees_normalised_images_and_metres_its_time(two_nodes, pets):
    feed = make_feed(two_nodes, pets, remote=True)
    import ray

    plan = ray.get(feed.begin.remote("a", Position(), 1, 0))
    normalize = Normalize(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    schema = Schema({"image": Field("uint8", (8, 8, 3), "image"), "label": Field("int64", ())})
    ingest = RankIngest(feed, "a", 0, plan, torch.device("cpu"), arrivals(schema, {}, normalize))
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


def test_a_rank_runs_the_stages_on_the_device(two_nodes, pets):
    """As the workers would have: exactly, and in the run's account."""
    import ray

    stages = [decode(), random_horizontal_flip(), random_crop(6)]
    seen: list[dict[int, torch.Tensor]] = []
    for places in ([on_cpu, on_cpu], [on_cpu, on_device], [on_device, on_device]):
        moved = [stages[0], *(place(stage) for place, stage in zip(places, stages[1:], strict=True))]
        opened = Pipeline(image_folder(pets), moved, batch_size=8).open(0)
        feed = ray.remote(num_cpus=0, max_concurrency=8)(Feed).remote(
            StreamSpec(80, 0, 8, 0, epochs=1), opened.pickled_splits(), FeedOptions(2, {}, None, 0.0)
        )
        plan = ray.get(feed.begin.remote("a", Position(), 1, 0))
        arrived = arrivals(opened.schema, {}, None)
        rank = RankIngest(feed, "a", 0, plan, torch.device("cpu"), arrived, opened.on_device)
        images = {}
        for batch in rank.segment(0):
            assert set(batch) == {"image", "label"} and batch.image.shape == (8, 3, 6, 6)
            images |= dict(zip(batch.ids.tolist(), batch.image.clone(), strict=True))
        seen.append(images)
        on = [stage.name for stage in opened.on_device["train"].at()]
        assert [*rank.meter.device_stage_s] == on == [s.name for s in moved if s.place == "device"]
        assert rank.meter.transfer_s >= sum(rank.meter.device_stage_s.values()) >= 0
        assert ("draw" in rank.meter.stages) == bool(on)
        rank.close()
        ray.kill(feed)
    assert len(seen[0]) == 80
    for images in seen[1:]:
        assert all(torch.equal(images[index], image) for index, image in seen[0].items())


def test_a_rank_decodes_on_the_device(two_nodes, tmp_path):
    """As the workers would have: the same ids, crops, flips and failures; the feed ends the run past their limit."""
    import ray

    folder = write_images(tmp_path / "images", {"cat": 20, "dog": 20}, side=24)
    first = folder / "cat" / "000.jpg"
    whole = first.read_bytes()
    first.write_bytes(whole[: whole.index(b"\xff\xda")] + b"\xff\xd9")  # headers alone, so that the worker draws for it
    cv2.imwrite(str(folder / "dog" / "001.png"), np.full((30, 25, 3), 9, np.uint8))
    stages = [random_resized_crop(16), random_horizontal_flip()]
    seen: list[dict[int, torch.Tensor]] = []
    for made, share in ((decode(scaled=False), 0.1), (on_device(decode()), 0.1), (on_device(decode()), 0.0)):
        opened = Pipeline(image_folder(folder), [made, *stages], batch_size=8).open(0)
        feed = ray.remote(num_cpus=0, max_concurrency=8)(Feed).remote(
            StreamSpec(41, 0, 8, 0, epochs=1), opened.pickled_splits(), FeedOptions(2, {}, None, share)
        )
        plan = ray.get(feed.begin.remote("a", Position(), 1, 0))
        rank = RankIngest(feed, "a", 0, plan, torch.device("cpu"), arrivals(opened.schema, {}, None), opened.on_device)
        with contextlib.suppress(DataError) if not share else contextlib.nullcontext():
            images = {}
            for batch in rank.segment(0):
                assert [*batch] == ["image", "label"] and batch.image.shape[1:] == (3, 16, 16)
                images |= dict(zip(batch.ids.tolist(), batch.image.clone(), strict=True))
                images |= {-1 - key: torch.zeros(1) for key in batch.left_out.tolist()}
            seen.append(images)
            counts = (39, 1) if made.place == "device" else (0, 0)
            assert (rank.meter.decoded_on_device, rank.meter.decoded_on_host) == counts
        error = ray.get(feed.take.remote("a", 0, 1)).error
        assert (error is None) if share else ("0 allows 0 of them" in str(error) and "cat/000.jpg" in str(error))
        rank.close()
        ray.kill(feed)
    cpu, device = seen[:2]
    assert cpu.keys() == device.keys() == {-1, *range(1, 41)}
    assert all((cpu[index] - image).abs().max() <= 4 for index, image in device.items())


def test_what_a_loop_leaves_of_a_pass_is_dropped(two_nodes, pets):
    feed = make_feed(two_nodes, pets, remote=True)
    import ray

    plan = ray.get(feed.begin.remote("a", Position(), 1, 0))
    ingest = RankIngest(feed, "a", 0, plan, torch.device("cpu"), {})
    next(iter(ingest.segment(0)))
    assert sum(len(batch.ids) for batch in ingest.segment(1)) == 80
    ingest.close()


def test_a_block_that_is_lost_and_cannot_be_made_again_has_the_ranks_begin_anew(two_nodes, pets, monkeypatch):
    import ray

    @ray.remote(num_cpus=0)
    class Lost:
        def take(self, attempt, rank, most):
            block = ray.remote(num_cpus=0, label_selector={"gone": "host"})(lambda: None).remote()
            return Taken([(0, 0, (block, 0))])

        def progress(self, *told):
            return None

    monkeypatch.setattr(loader, "BLOCK_TIMEOUT_S", 0.2)
    plan = ray.get(make_feed(two_nodes, pets, remote=True).begin.remote("a", Position(), 1, 0))
    ingest = RankIngest(Lost.remote(), "a", 0, plan, torch.device("cpu"), {})
    with pytest.raises(ray.exceptions.GetTimeoutError) as told:  # which is tried again
        next(iter(ingest.segment(0)))
    assert isinstance(told.value, ray.exceptions.RayError)
    ingest.close()


def test_a_rank_whose_batch_is_all_corrupt_still_steps(two_nodes, tmp_path):
    folder = write_images(tmp_path / "images", {"cat": 8})
    for number in range(1, 8):
        (folder / "cat" / f"{number:03d}.jpg").write_bytes(b"broken")
    import ray

    for world in (1, 2):
        feed = make_feed(two_nodes, folder, remote=True, batch_size=2, epochs=1, max_corrupt=8)
        plan = ray.get(feed.begin.remote("a", Position(), world, 0))
        ingests = [RankIngest(feed, "a", rank, plan, torch.device("cpu"), CHANNELS_FIRST) for rank in range(world)]
        batches = [batch for ingest in ingests for batch in ingest.segment(0)]
        assert [len(batch.ids) for batch in batches if not batch.stand_in] == [1]
        assert len(batches) == 4
        assert {tuple(batch.image.shape) for batch in batches} == {(1, 3, 8, 8)}
        for ingest in ingests:
            ingest.close()


def test_blocks_come_from_other_hosts_without_anybody_waiting(two_nodes):
    import ray

    other = next(host.node_id for host in two_nodes.topology.hosts if not host.is_head)
    here = ray.get_runtime_context().get_node_id()
    make = ray.remote(num_cpus=0, label_selector={"ray.io/node-id": other})(lambda: np.zeros(1 << 20))
    blocks = [make.remote() for _ in range(3)]
    ray.wait(blocks, num_returns=3, fetch_local=False)
    where = ray.experimental.get_object_locations(blocks)
    assert all(here not in where[block]["node_ids"] for block in blocks)
    pull([*blocks, blocks[0]])

    def all_here():
        where = ray.experimental.get_object_locations(blocks)
        return all(here in where[block]["node_ids"] for block in blocks)

    wait_for(all_here, 60, "the blocks are here")
    pull([])
