"""The variants that gpu.py compares, each in a process of its own: python benchmarks/gpu_variants.py SETTINGS_AS_JSON

All train the same model in the same loop, timed by the same clock; what differs is where the batches come from:

- on_device: one batch that lies on the GPU. No input path can be faster.
- dataloader: torch's DataLoader, a worker a core of the small host and pinned memory, over raytrain's very stages.
- raytrain_single: raytrain on one Ray node, the small host. It attaches to a node of its own, so that nothing but the
  second node tells it from the next, and one GPU is in use where the machine has several.
- raytrain_stages_on_device: the same with the blurs on the GPU; the CPUs make the noise. Of `torchvision`, ten of its
  transforms, image by image, as each image has random numbers of its own.
- raytrain_with_cpu_node: the first with a second Ray node on the other cores.
- raytrain_decode, raytrain_decode_on_device: on the small host, JPEG files of some 60 kB in place of the noise and the
  blurs, decoded, cropped and mirrored by its cores, or by the GPU (nvJPEG).

No batch is prepared before the model is warm: a stock from the start-up would carry much of the measured window. And
more batches are planned than are trained on: no input path runs out of work, and leaves its cores idle, in the window.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from real_nodes import Node, ray_cluster
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader, Dataset

from raytrain import Job, Pipeline, fit
from raytrain.data import (
    decode,
    from_torch,
    gaussian_blur,
    random_horizontal_flip,
    random_resized_crop,
    stage,
    synthetic,
    to_dtype,
    torchvision,
)
from raytrain.data import on_device as on_gpu
from raytrain.data.process import prepare_process
from raytrain.device.busy import BusyWatch, find_source
from raytrain.device.clock import CopyEvents, DeviceClock, HostClock
from raytrain.device.meter import RankMeter
from raytrain.record.schema import RankFigures

STAGES_ON_DEVICE = "raytrain_stages_on_device"
DECODE, DECODE_ON_DEVICE = "raytrain_decode", "raytrain_decode_on_device"
WARM_STEPS = 3  # on noise that lies on the device: libraries loaded, memory allocated

Batch = tuple[torch.Tensor, torch.Tensor, CopyEvents]
"""Images (batch, channels, height, width) and labels on the device, and the events around their copy, where known."""


@dataclass(frozen=True)
class Settings:
    """One run of one variant.

    Attributes:
        warmup, steps: trained first, and measured.
        workload: `raytrain` for its own (OpenCV) blur, `torchvision` for torchvision's.
        small, rest: cores of the GPU host, and of the CPU node.
        reserved_cpus: cores of the GPU host that raytrain's stages leave alone.
        plain: the DataLoader's workers keep the allocator's defaults.
        folder: a short path; `figures.json` appears there.
    """

    variant: str
    batch_size: int
    warmup: int
    steps: int
    workload: str
    small: Sequence[int]
    rest: Sequence[int]
    reserved_cpus: int
    plain: bool
    smoke: bool
    folder: str

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.smoke else "cuda")

    @property
    def shape(self) -> tuple[int, int, int]:
        return (32, 32, 3) if self.smoke else (224, 224, 3)

    @property
    def num_classes(self) -> int:
        return 10 if self.smoke else 1000

    @property
    def flag(self) -> Path:
        """There as soon as batches may be prepared."""
        return Path(self.folder) / "warm"


# --- what all variants share ---


class Stopwatch:
    """Times the steps after the warm-up, with raytrain's own clock and step by step.

    On a GPU everything is read off the GPU's timeline; the host waits for it only where the window begins and ends.
    """

    def __init__(self, settings: Settings, device: torch.device):
        self._settings, self._device, self._on_gpu = settings, device, device.type == "cuda"
        self._clock: DeviceClock | HostClock = HostClock(RankMeter())
        self._start()

    def over(self, batches: Iterable[Batch]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of the warm-up and of the window, timed."""
        warmup, steps = self._settings.warmup, self._settings.steps
        self._clock.waiting()
        for number, (image, label, copied_between) in enumerate(batches, 1):
            self._clock.arrived()
            self._clock.ready(copied_between)
            yield image, label
            self._clock.done(0.0)
            self._marks.append(self._mark())
            if number == warmup:
                self._start()
            if number == warmup + steps:
                self._end()
                return
            self._clock.waiting()
        raise SystemExit("the batches ended before the measured steps did")

    def _start(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize(self._device)
        self._clock.close()
        self.meter = RankMeter()
        self._clock = HostClock(self.meter)
        if self._on_gpu:
            source = find_source(self._device, public=True)  # the package that gpu.py needs, and no Ray
            self._clock = DeviceClock(self.meter, None if source is None else BusyWatch(source))
        self._clock.begin()
        self._began_at, self._marks = time.time(), [self._mark()]

    def _end(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize(self._device)
        self._ended_at = time.time()
        self._clock.close()

    def _mark(self) -> Any:
        """A moment: on the GPU's compute stream, or of the host."""
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def figures(self) -> dict[str, Any]:
        """Of the window, which `began_at` and `ended_at` (time.time()) bound."""
        pairs = itertools.pairwise(self._marks)
        steps_s = [a.elapsed_time(b) / 1e3 if self._on_gpu else b - a for a, b in pairs]
        wall_s = self._ended_at - self._began_at
        return {
            "samples_per_s": len(steps_s) * self._settings.batch_size / wall_s,
            "step_median_s": float(np.median(steps_s)),
            "step_p90_s": float(np.percentile(steps_s, 90)),
            "compute_share": self.meter.in_steps_s / wall_s,
            "meter_busy_share": None if self.meter.gap_s is None else self.meter.compute_s / wall_s,
            "stall_share": self.meter.wait_share,
            "began_at": self._began_at,
            "ended_at": self._ended_at,
        }


def copy_figures(meter: RankMeter | RankFigures, num_batches: int) -> dict[str, float | None]:
    """What of the copies did not run beside the computation is part of the time in which the GPU waited for a batch:
    at least the rest was hidden."""
    if not (meter.transfer_overlaps and meter.transfer_s):  # no GPU, or nothing to copy
        return {"copy_s_per_step": None, "copy_hidden_share": None}
    hidden_share = 1 - min(meter.wait_s / meter.transfer_s, 1)
    return {"copy_s_per_step": meter.transfer_s / num_batches, "copy_hidden_share": hidden_share}


def build(settings: Settings) -> tuple[torch.nn.Module, Optimizer]:
    import timm

    name, options = "vit_base_patch16_224", {}
    if settings.smoke:
        name, options = "vit_tiny_patch16_224", {"img_size": settings.shape[0], "num_classes": settings.num_classes}
    model = timm.create_model(name, **options)
    return model, SGD(model.parameters(), lr=0.01)


def train(
    model: torch.nn.Module,
    optimizer: Optimizer,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    report: Callable[[torch.Tensor], None] = lambda loss: None,
) -> None:
    for image, label in batches:
        with torch.autocast(image.device.type, torch.bfloat16):
            loss = F.cross_entropy(model(image), label)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        report(loss)


def noise(settings: Settings, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch as the input paths deliver it: float32, channels last in memory."""
    image = torch.randn(settings.batch_size, *settings.shape, device=device).permute(0, 3, 1, 2)
    return image, torch.randint(settings.num_classes, (settings.batch_size,), device=device)


def warm_up(settings: Settings, model: torch.nn.Module, optimizer: Optimizer, device: torch.device) -> None:
    """Make the model warm, then let the preparation of batches begin."""
    train(model, optimizer, itertools.repeat(noise(settings, device), WARM_STEPS))
    settings.flag.touch()


def hold_back(image: np.ndarray, until: str) -> np.ndarray:
    """A stage: nothing passes before the file `until` exists. It comes last, so that the workers are warm by then."""
    while not os.path.exists(until):
        time.sleep(0.02)
    return image


class Photographs:
    """JPEG files of 500 x 375 pixels, 64 that come again and again."""

    def __init__(self, count: int, num_classes: int):
        self.count, self.num_classes = count, num_classes
        self.files = [photograph(seed) for seed in range(64)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.files[index % len(self.files)], "label": index % self.num_classes}


def photograph(seed: int) -> bytes:
    """About 60 kB: smooth shapes under some grain."""
    rng = np.random.default_rng(seed)
    shapes = cv2.resize(rng.integers(0, 256, (12, 16, 3), np.uint8), (500, 375), interpolation=cv2.INTER_CUBIC)
    image = np.clip(shapes + rng.normal(0, 14, shapes.shape), 0, 255).astype(np.uint8)
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()


def pipeline(settings: Settings) -> Pipeline:
    planned = settings.warmup + settings.steps + max(settings.steps // 2, 1)
    held = stage(hold_back, on="image", until=str(settings.flag))
    if settings.variant in (DECODE, DECODE_ON_DEVICE):
        photographs = Photographs(planned * settings.batch_size, settings.num_classes)
        stages = [decode(), random_resized_crop(settings.shape[0]), random_horizontal_flip()]
        stages = [*stages, held] if settings.variant == DECODE else [held, *map(on_gpu, stages)]
        return Pipeline(from_torch(photographs), stages, batch_size=settings.batch_size)
    source = synthetic(planned * settings.batch_size, shape=settings.shape, num_classes=settings.num_classes)
    blurs = [gaussian_blur(11, times=10)]
    if settings.workload == "torchvision":
        blurs = [torchvision("GaussianBlur", kernel_size=11)] * 10
    sent = [to_dtype("float16"), held]
    stages = [*sent, *map(on_gpu, blurs)] if settings.variant == STAGES_ON_DEVICE else [*blurs, *sent]
    return Pipeline(source, stages, batch_size=settings.batch_size)


# --- the limit, and the DataLoader ---


def on_device(settings: Settings) -> dict[str, Any]:
    image, label = noise(settings, settings.device)
    stopwatch = train_alone(settings, itertools.repeat((image, label, None)))
    return {**stopwatch.figures(), **copy_figures(stopwatch.meter, settings.steps)}


class Samples(Dataset):
    """The samples of a pipeline, prepared one by one as raytrain's workers do, random numbers included."""

    def __init__(self, source: Pipeline):
        split = source.open(seed=0).splits["train"]
        self._manifest, self._stages = split.manifest, split.stages

    def __len__(self) -> int:
        return self._manifest.num_samples

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        rng = np.random.default_rng((0, 0, index))
        (sample,) = self._manifest.read_many([index])
        for each in self._stages:
            sample = each(sample, rng)
        return sample["image"], int(sample["label"])


def start_worker(_number: int, plain: bool) -> None:
    import cv2

    cv2.setNumThreads(0)
    if not plain:
        prepare_process()  # raytrain's settings of the allocator


def dataloader(settings: Settings) -> dict[str, Any]:
    loader = DataLoader(
        Samples(pipeline(settings)),
        batch_size=settings.batch_size,
        num_workers=len(settings.small),
        pin_memory=settings.device.type == "cuda",
        worker_init_fn=partial(start_worker, plain=settings.plain),
    )
    workers = iter(loader)  # forked before this process uses the GPU
    stopwatch = train_alone(settings, copied(workers, settings.device))
    return {**stopwatch.figures(), **copy_figures(stopwatch.meter, settings.steps)}


def copied(batches: Iterable[list[torch.Tensor]], device: torch.device) -> Iterator[Batch]:
    """To the device in line with its other work, and there to float32 as raytrain does it."""
    for image, label in batches:
        between = None
        if device.type == "cuda":
            between = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            between[0].record()
        image, label = image.to(device, non_blocking=True), label.to(device, non_blocking=True)
        if between is not None:
            between[1].record()
        yield image.permute(0, 3, 1, 2).to(torch.float32), label, between


def train_alone(settings: Settings, batches: Iterable[Batch]) -> Stopwatch:
    model, optimizer = build(settings)
    model.to(settings.device)
    warm_up(settings, model, optimizer, settings.device)
    stopwatch = Stopwatch(settings, settings.device)
    train(model, optimizer, stopwatch.over(batches))
    return stopwatch


# --- raytrain ---


def rank_loop(ctx: Any, settings: Settings) -> None:
    model, optimizer = ctx.prepare(*build(settings))
    warm_up(settings, model, optimizer, ctx.device)
    stopwatch = Stopwatch(settings, ctx.device)
    for _ in ctx.epochs():
        batches = ((batch.image, batch.label, None) for batch in ctx.batches("train"))
        train(model, optimizer, stopwatch.over(batches), ctx.report)
    (Path(settings.folder) / "rank.json").write_text(json.dumps(stopwatch.figures()))


def with_raytrain(settings: Settings, *others: Node) -> dict[str, Any]:
    """On the small host's Ray node and `others`. What comes from the record includes the warm-up."""
    folder = Path(settings.folder)
    cpus = max(len(settings.small) - settings.reserved_cpus, 1)
    small_host = Node("gpu", settings.small, cpus, gpus=int(not settings.smoke))
    job = Job.from_dict(
        {
            "name": settings.variant,
            "run_dir": str(folder / "runs"),
            "training": {"epochs": 1, "precision": "bf16", "max_failures": 0},
            "cluster": {"reserved_cpus": 0},  # the node has fewer instead
        }
    )
    with ray_cluster([small_host, *others], folder) as address:
        record = fit(partial(rank_loop, settings=settings), pipeline(settings), job, address=address)
    rank, prepared = record.ranks[0], {host.group: host.samples_prepared for host in record.hosts}
    return {
        **json.loads((folder / "rank.json").read_text()),
        **copy_figures(rank, rank.num_batches),
        "record_stall_share": record.totals.wait_share,
        "record_busy_share": None if rank.gap_s is None else rank.compute_s / rank.train_s,
        "prepared_on_cpu_node_share": prepared.get("cpu", 0) / sum(prepared.values()),
    }


def raytrain_with_cpu_node(settings: Settings) -> dict[str, Any]:
    return with_raytrain(settings, Node("cpu", settings.rest, len(settings.rest)))


VARIANTS: dict[str, Callable[[Settings], dict[str, Any]]] = {
    "on_device": on_device,
    "dataloader": dataloader,
    "raytrain_single": with_raytrain,
    STAGES_ON_DEVICE: with_raytrain,
    "raytrain_with_cpu_node": raytrain_with_cpu_node,
    DECODE: with_raytrain,
    DECODE_ON_DEVICE: with_raytrain,
}


def main() -> None:
    settings = Settings(**json.loads(sys.argv[1]))
    if settings.smoke:
        torch.set_num_threads(1)  # as many as a rank has on a Ray node of one CPU
    found = VARIANTS[settings.variant](settings)
    (Path(settings.folder) / "figures.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
