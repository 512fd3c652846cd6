"""Time to the first batch as a share of the whole run: raytrain's feed against Ray Data with its defaults.

    python benchmarks/first_batch.py [--rounds 5] [--batches 40] [--smoke]

Both prepare the same batches (synthetic images, ten Gaussian blurs) on the same two nodes of one CPU each, with warm
workers; the consumer only takes them. A ratio of 1 / batches is the least that there can be for one worker.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import ray
from harness import interleave, ratio, spread, write

from raytrain.cluster import emulated
from raytrain.cluster.environ import prepare_environment
from raytrain.cluster.topology import parse_nodes
from raytrain.data import gaussian_blur, synthetic
from raytrain.data.feed import Feed
from raytrain.data.order import Position, StreamSpec
from raytrain.data.pipeline import Pipeline
from raytrain.data.stream import FeedOptions
from raytrain.data.transforms import gaussian_blur_image

BATCH = 64


def with_raytrain(batches: int) -> dict[str, float]:
    pipeline = Pipeline(synthetic(batches * BATCH), [gaussian_blur(times=10)], batch_size=BATCH).open(0)
    options = FeedOptions(2, {}, None, {"train": 0, "validation": 0})
    feed = ray.remote(num_cpus=0, max_concurrency=4)(Feed).remote(
        StreamSpec(batches * BATCH, 0, BATCH, 0, epochs=1), pipeline.pickled_splits(), options
    )
    ray.get(feed.status.remote())
    began, first, samples = time.perf_counter(), 0.0, 0
    ray.get(feed.begin.remote("a", Position(), 1, 0))
    while True:
        taken = ray.get(feed.take.remote("a", 0, 4))
        for *_, reference in taken.batches:
            ray.get(reference)
            first = first or time.perf_counter() - began
            samples += BATCH
        if taken.end:
            break
    ray.kill(feed)
    return figures(first, time.perf_counter() - began, samples)


def make(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    shape = (224, 224, 3)
    return {"image": np.stack([np.random.default_rng((0, i)).standard_normal(shape, np.float32) for i in batch["id"]])}


def blur(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"image": np.stack([gaussian_blur_image(image, rng, times=10) for image in batch["image"]])}


def with_ray_data(batches: int) -> dict[str, float]:
    """As a reader of the Ray documentation would write it."""
    dataset = ray.data.range(batches * BATCH).map_batches(make).map_batches(blur)
    began, first, samples = time.perf_counter(), 0.0, 0
    for batch in dataset.iter_batches(batch_size=BATCH):
        first = first or time.perf_counter() - began
        samples += len(batch["image"])
    return figures(first, time.perf_counter() - began, samples)


def figures(first_s: float, whole_s: float, samples: int) -> dict[str, float]:
    return {"first_s": first_s, "first_share": first_s / whole_s, "samples_per_s": samples / whole_s}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--smoke", action="store_true", help="one short round, nothing written")
    arguments = parser.parse_args()
    rounds, batches = (1, 4) if arguments.smoke else (arguments.rounds, arguments.batches)
    prepare_environment()
    cluster = emulated.start(parse_nodes("train=1x1,cpu=1x1"))
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        variants = {"raytrain": lambda: with_raytrain(batches), "ray_data": lambda: with_ray_data(batches)}
        if not arguments.smoke:
            interleave(variants, 1)  # warms the workers
        rows = interleave(variants, rounds)
    finally:
        cluster.close()
    ratios = {
        "ray_data / raytrain, seconds to the first batch": ratio(rows, "first_s", "ray_data", "raytrain"),
        "raytrain / ray_data, samples a second": ratio(rows, "samples_per_s", "raytrain", "ray_data"),
        "first batch as a share of the run, raytrain": spread([row["first_share"] for row in rows["raytrain"]]),
        "first batch as a share of the run, ray_data": spread([row["first_share"] for row in rows["ray_data"]]),
    }
    for name, values in ratios.items():
        print(name, {key: round(value, 3) for key, value in values.items()})
    if not arguments.smoke:
        print(write("first_batch", rows, ratios, batches=batches, batch_size=BATCH, rounds=rounds))


if __name__ == "__main__":
    main()
