"""One contender of benchmarks/ingest.py in a process of its own: prepares a workload and prints its figures as JSON.

    python benchmarks/contenders.py CONTENDER '{"workload": "blur", "epochs": 3, "num_samples": 512, ...}'

Everything is delivered as (batch, channels, height, width) float32 torch tensors, cast by the consumer, since on a
training host the device does that; workloads `as_bytes` as (batch, height, width, channels) uint8.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import workloads
from workloads import WORKLOADS, Workload

from raytrain.cluster import guardian, hardware
from raytrain.data.sources.manifest import Manifest

CORES = hardware.usable_cpus()
MEMORY_EVERY_S = 0.2


class Account:
    """Arrivals of batches, CPU seconds of all processes, and how much more of the machine's memory was used."""

    def __init__(self) -> None:
        self._before = psutil.virtual_memory().available
        self._least = self._before
        self.arrivals: list[tuple[float, int]] = []
        self._bytes = 0
        self._ended = threading.Event()
        threading.Thread(target=self._watch_memory, daemon=True).start()
        self._cpu = self.cpu_s()
        self.began = time.perf_counter()

    def arrived(self, num_samples: int, num_bytes: int) -> None:
        self._bytes += num_bytes
        self.arrivals.append((time.perf_counter() - self.began, num_samples))

    def cpu_s(self) -> float:
        """Of this process and of all below it."""
        total = 0.0
        for process in guardian.family([os.getpid()]):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        ended = psutil.Process().cpu_times()
        return total + ended.children_user + ended.children_system

    def figures(self) -> dict[str, float]:
        """`samples_per_s` is of the steady state: without the first fifth and the last tenth of the batches."""
        self._ended.set()
        count = len(self.arrivals)
        samples = sum(n for _, n in self.arrivals)
        wall, steady = self.arrivals[-1][0], self.arrivals[count // 5 : count - count // 10]
        return {
            "samples_per_s": sum(n for _, n in steady[1:]) / (steady[-1][0] - steady[0][0]),
            "whole_samples_per_s": samples / wall,
            "first_batch_s": self.arrivals[0][0],
            "first_batch_share": self.arrivals[0][0] / wall,
            "cpu_s_per_sample": (self.cpu_s() - self._cpu) / samples,
            "peak_memory_bytes": self._before - self._least,
            "bytes_per_sample": self._bytes / samples,
        }

    def _watch_memory(self) -> None:
        while not self._ended.wait(MEMORY_EVERY_S):
            self._least = min(self._least, psutil.virtual_memory().available)


def order(workload: Workload, manifest: Manifest, epoch: int) -> np.ndarray:
    ids = np.random.default_rng((0, epoch)).permutation(manifest.num_samples)
    return ids[: workload.num_samples]


# --- raw ----------------------------------------------------------------------------------------------------------


def raw(workload: Workload, options: dict[str, Any]) -> dict[str, float]:
    """The bare transform in as many plain processes as there are cores; nothing is delivered."""
    command = [sys.executable, __file__, "raw_process"]
    processes = [
        subprocess.Popen(
            [*command, json.dumps({**options, "share": [number, CORES]})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(CORES)
    ]
    for process in processes:
        process.stdout.readline()  # ready
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    rows = [json.loads(process.stdout.readline()) for process in processes]
    for process in processes:
        process.communicate()
    samples = sum(row["samples"] for row in rows)
    return {
        "samples_per_s": sum(row["samples"] / row["seconds"] for row in rows),
        "cpu_s_per_sample": sum(row["cpu_s"] for row in rows) / samples,
    }


def raw_process(workload: Workload, options: dict[str, Any]) -> dict[str, float]:
    import cv2

    cv2.setNumThreads(0)
    manifest = workload.open()
    mine, of = options["share"]
    rng = np.random.default_rng(mine)
    workload.transform(manifest.read_many([0])[0]["image"], rng)
    print("ready", flush=True)
    sys.stdin.readline()
    began, cpu, samples = time.perf_counter(), time.process_time(), 0
    for epoch in range(workload.epochs):
        for index in order(workload, manifest, epoch)[mine::of]:
            workload.transform(manifest.read_many([int(index)])[0]["image"], rng)
            samples += 1
    return {"samples": samples, "seconds": time.perf_counter() - began, "cpu_s": time.process_time() - cpu}


# --- DataLoader ---------------------------------------------------------------------------------------------------


def dataloader(workload: Workload, options: dict[str, Any]) -> dict[str, float]:
    """torch's DataLoader as one writes it: a map-style data set, shuffled, with `workers` worker processes."""
    import torch
    from torch.utils.data import DataLoader, Dataset, Subset

    manifest = workload.open()

    class Samples(Dataset):
        def __len__(self) -> int:
            return manifest.num_samples

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            rng = np.random.default_rng()
            sample = manifest.read_many([index])[0]
            image = workload.transform(sample["image"], rng)
            tensor = torch.from_numpy(image)
            return tensor if workload.as_bytes else tensor.permute(2, 0, 1), int(sample["label"])

    samples = Subset(Samples(), range(min(workload.num_samples, manifest.num_samples)))
    account = Account()
    for _ in range(workload.epochs):
        for image, _label in DataLoader(samples, workload.batch_size, shuffle=True, num_workers=options["workers"]):
            image if workload.as_bytes else image.to(torch.float32)
            account.arrived(len(image), image.nbytes)
    return account.figures()


def dataloader_pillow(workload: Workload, options: dict[str, Any]) -> dict[str, float]:
    """The same with Pillow in place of OpenCV."""
    return dataloader(replace(workload, transform=workloads.small_with_pillow), options)


# --- SPDL ---------------------------------------------------------------------------------------------------------


def spdl(workload: Workload, options: dict[str, Any]) -> dict[str, float]:
    """Its own decoder and scaler (FFmpeg's), in as many threads as there are cores."""
    import spdl.io
    import torch
    from spdl.pipeline import PipelineBuilder

    manifest = workload.open()
    side = workloads.SIDE

    def sources() -> Iterator[list[bytes]]:
        for epoch in range(workload.epochs):
            ids = order(workload, manifest, epoch)
            for at in range(0, len(ids), workload.batch_size):
                yield [int(i) for i in ids[at : at + workload.batch_size]]

    def load(ids: list[int]) -> torch.Tensor:
        encoded = [sample["image"] for sample in manifest.read_many(ids)]
        return spdl.io.to_torch(spdl.io.load_image_batch(encoded, width=side, height=side, pix_fmt="rgb24"))

    pipeline = (
        PipelineBuilder().add_source(sources()).pipe(load, concurrency=CORES).add_sink(2).build(num_threads=CORES)
    )
    account = Account()
    with pipeline.auto_stop():
        for image in pipeline:
            account.arrived(len(image), image.nbytes)
    return account.figures()


# --- Ray Data -----------------------------------------------------------------------------------------------------


class Make:
    """As the documentation's examples have it: a function of a batch that reads, then one that transforms."""

    def __init__(self, workload: Workload, num_samples: int):
        self.workload, self.manifest = workload, None
        self.num_samples = num_samples

    def read(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        self.manifest = self.manifest or self.workload.open()
        ids = batch["id"] % self.num_samples
        samples = self.manifest.read_many([int(i) for i in ids])
        images, labels = ([sample[name] for sample in samples] for name in ("image", "label"))
        if isinstance(images[0], np.ndarray):
            return {"data": np.stack(images), "label": np.array(labels)}
        return {"data": np.array([*images, None], dtype=object)[:-1], "label": np.array(labels)}

    def transform(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rng = np.random.default_rng()
        images = [np.moveaxis(self.workload.transform(data, rng), 2, 0) for data in batch["data"]]
        return {"image": np.stack(images), "label": batch["label"]}


def ray_data(workload: Workload, options: dict[str, Any]) -> dict[str, float]:
    """`range -> map_batches -> map_batches -> iter_torch_batches` with defaults, on a Ray of its own."""
    import ray
    import torch

    ray.init("local", logging_level="warning", log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    make = Make(workload, min(workload.num_samples, workload.open().num_samples))

    def dataset(num_samples: int) -> Any:
        return ray.data.range(num_samples).map_batches(make.read).map_batches(make.transform)

    for _ in dataset(4 * workload.batch_size).iter_torch_batches(batch_size=workload.batch_size):
        pass  # warms the workers
    every = dataset(make.num_samples * workload.epochs)
    account = Account()
    for batch in every.iter_torch_batches(batch_size=workload.batch_size):
        batch["image"].to(torch.float32)
        account.arrived(len(batch["image"]), batch["image"].nbytes)
    found = account.figures()
    ray.shutdown()
    return found


# --- raytrain -----------------------------------------------------------------------------------------------------


def raytrain(workload: Workload, options: dict[str, Any]) -> dict[str, float]:
    """The product's own way from ids to a rank's batches, on this machine as a cluster of one."""
    from raytrain.cluster import local
    from raytrain.cluster.environment import prepare_environment

    prepare_environment()
    import ray

    cluster = local.start(())
    try:
        feeds = [start_feed(workload, 1, 4 * workload.batch_size), start_feed(workload, workload.epochs)]
        for _ in batches(feeds[0], workload.as_bytes):
            pass  # warms the workers
        ray.kill(feeds[0])
        account = Account()
        for image, num_bytes in batches(feeds[1], workload.as_bytes):
            account.arrived(len(image), num_bytes)
        return account.figures()
    finally:
        cluster.close()


def start_feed(workload: Workload, epochs: int, most: int | None = None) -> Any:
    """The actor that owns the stream; up long before the rank, as in a run."""
    import ray

    from raytrain.cluster.environment import public_ray
    from raytrain.data import stage
    from raytrain.data.feed import Feed
    from raytrain.data.order import StreamSpec
    from raytrain.data.pipeline import Pipeline
    from raytrain.data.stream import FeedOptions

    stages = list(workload.stages) or [stage(workload.transform)]
    opened = Pipeline(workload.source(), stages, batch_size=workload.batch_size).open(0)
    num_samples = min(most or workload.num_samples, opened.train.num_samples)
    spec = StreamSpec(num_samples, 0, workload.batch_size, 0, epochs=epochs)
    options = FeedOptions(CORES, {}, None, 0.0, public_ray=public_ray())
    feed = ray.remote(num_cpus=0, max_concurrency=8)(Feed).remote(spec, opened.pickled_splits(), options)
    ray.get(feed.status.remote())
    return feed


def raytrain_float(workload: Workload, options: dict[str, Any]) -> dict[str, float]:
    """What is delivered as bytes elsewhere, made float32 and channels first by a CPU rank."""
    return raytrain(replace(workload, as_bytes=False), options)


def batches(feed: Any, as_bytes: bool) -> Iterator[tuple[Any, int]]:
    """What one CPU rank gets: every batch, with its bytes on the wire."""
    import ray
    import torch

    from raytrain.data.order import Position
    from raytrain.device.arrival import Arrived
    from raytrain.device.loader import RankIngest

    arrived = {"image": Arrived() if as_bytes else Arrived(torch.float32, channels_first=True)}
    plan = ray.get(feed.begin.remote("only", Position(), 1, 0))
    rank = RankIngest(feed, "only", 0, plan, torch.device("cpu"), arrived)
    for segment in plan.segments:
        for batch in rank.segment(segment.number):
            sent, rank.meter.wire_bytes = rank.meter.wire_bytes, 0
            yield batch.image, sent
    rank.close()


WAYS = (raw, raw_process, dataloader, dataloader_pillow, spdl, ray_data, raytrain, raytrain_float)
CONTENDERS = {way.__name__: way for way in WAYS}


def main() -> None:
    import torch

    torch.set_num_threads(1)  # casts alone; more threads would spin beside the workers
    name, options = sys.argv[1], json.loads(sys.argv[2])
    known = WORKLOADS[options["workload"]]
    changes = {key: options[key] for key in ("epochs", "num_samples", "batch_size") if key in options}
    if options.get("folder"):
        changes["source"] = lambda: workloads.photographs(Path(options["folder"]))
    print(json.dumps(CONTENDERS[name](replace(known, **changes), options)), flush=True)


if __name__ == "__main__":
    main()
