"""A feed over a real Ray cluster of two nodes, for the tests of both of its sides."""

from __future__ import annotations

from dataclasses import replace

import pytest
from conftest import write_images

from raytrain.cluster import local
from raytrain.cluster.environment import prepare_environment
from raytrain.cluster.placement import place_stages
from raytrain.cluster.topology import GROUP_LABEL
from raytrain.config.cluster import parse_nodes
from raytrain.data.feed import Feed
from raytrain.data.order import StreamSpec
from raytrain.data.pipeline import Pipeline
from raytrain.data.samples.block import batches_of
from raytrain.data.sources.kinds.image_folder import image_folder
from raytrain.data.stages.geometry import resize
from raytrain.data.stages.images import decode
from raytrain.data.stream import FeedOptions

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
def two_nodes():
    prepare_environment()
    running = local.start(parse_nodes("train=1x1,cpu=1x1"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("feed") / "images", {"cat": 50, "dog": 30})


def make_feed(
    two_nodes,
    folder,
    stages=(),
    *,
    remote=False,
    epochs=2,
    batch_size=8,
    max_corrupt=0,
    batches_per_task=None,
    selector=None,
    is_global=False,
    **options,
):
    pipeline = Pipeline(image_folder(folder), [decode(), *stages, resize(8)], batch_size=batch_size).open(0)
    placed = place_stages(two_nodes.topology, "anywhere")
    if selector is not None:
        placed = replace(placed, task_args={"label_selector": {GROUP_LABEL: selector}})
    arguments = (
        StreamSpec(pipeline.train.num_samples, 0, batch_size, 0, epochs=epochs, is_global=is_global),
        pipeline.pickled_splits(),
        FeedOptions(
            placed.slots, placed.task_args, batches_per_task, max_corrupt / pipeline.train.num_samples, **options
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
        batches += [batches_of(ray.get(block))[index] for *_, (block, index) in taken.batches]
        if taken.end or taken.stop:
            return batches
        taken = feed.take(attempt, rank, 4)
