"""How busy raytrain keeps one real GPU: a small host alone, the same with a CPU node beside it, and DataLoader.

    python benchmarks/gpu.py [--rounds 3] [--batch 64 256] [--seconds 20] [--workload raytrain|torchvision] [--smoke]

Needs one NVIDIA GPU, six cores or more, and `pip install nvidia-ml-py`. ViT-B/16 (timm, no weights fetched), SGD, bf16;
images of 224 x 224 normal noise, ten Gaussian blurs each, sent as float16. Four of the cores, whole physical ones where
threads share them, are the small host; all others are the CPU node, a second Ray node. See gpu_variants.py.

Figures of a variant, all of the steps after the warm-up:

- samples_per_s: by the wall clock. step_median_s, step_p90_s: by CUDA events, from end to end of a step.
- gpu_busy_share: NVML's utilisation, read 20 times a second. It counts a moment in which any kernel ran.
- meter_busy_share: the same by raytrain's own stall meter, from the samples that the driver keeps; record_busy_share is
  the rank's figure for the whole run. A line compares the first with NVML's: they should be 2 points apart at most.
- compute_share: seconds between a step's start and its end on the GPU's own timeline, as a share of the wall clock's.
- stall_share: seconds between a step's end and the next one's start, of both together. DataLoader's include the copy,
  which lies in the same line as the computation. record_stall_share is raytrain's own figure for the whole run.
- copy_hidden_share: at least that share of the copies' seconds ran beside the computation.
- cpu_s: CPU seconds of all processes of the variant, workers and Ray's own included, batches prepared ahead too.

The bar: GPU busy at least 95 % of what it is on batches that already lie on the device. DataLoader's workers get the
allocator settings that raytrain gives its own; --plain-dataloader leaves them out. --smoke runs a tiny model on the CPU
for a few steps, on whatever cores there are, and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import psutil
import torch
from gpu_variants import DECODE_ON_DEVICE, VARIANTS, Settings
from harness import interleave, ratio, write
from real_nodes import on_cores

from raytrain.cluster import guardian, hardware

BAR = 0.95
SMOKED = ("on_device", "dataloader", "raytrain_with_cpu_node", DECODE_ON_DEVICE)
METER_WITHIN = 0.02  # of NVML's busy share
SMALL_CORES, LEAST_CORES = 4, 6
NVML_EVERY_S, CPU_EVERY_S = 0.05, 1.0
VARIANT_TIMEOUT_S = 3600.0
LOG_LINES = 30  # of a variant that failed
OTHERS = ("dataloader", "raytrain_single", "raytrain_stages_on_device", "raytrain_with_cpu_node")
COMPARED = [
    *(
        (figure, name, "on_device")
        for name in OTHERS
        for figure in ("gpu_busy_share", "compute_share", "samples_per_s")
    ),
    ("samples_per_s", "raytrain_single", "dataloader"),
    ("samples_per_s", "raytrain_stages_on_device", "dataloader"),
    ("samples_per_s", "raytrain_with_cpu_node", "dataloader"),
    ("samples_per_s", "raytrain_with_cpu_node", "raytrain_single"),
    ("samples_per_s", "raytrain_decode_on_device", "raytrain_decode"),
    ("gpu_busy_share", "raytrain_decode_on_device", "raytrain_decode"),
]


@dataclass(frozen=True)
class Gpu:
    """One GPU as NVML knows it."""

    handle: Any
    index: int
    name: str
    driver: str
    memory_bytes: int

    def busy_share(self) -> float:
        import pynvml

        return pynvml.nvmlDeviceGetUtilizationRates(self.handle).gpu / 100


def refuse(text: str) -> NoReturn:
    print(f"gpu.py: {text}", file=sys.stderr)
    raise SystemExit(2)


def find_gpu() -> Gpu:
    """The first GPU that CUDA_VISIBLE_DEVICES lets this process see."""
    if not torch.cuda.is_available():
        refuse("no CUDA GPU that torch can use; --smoke runs this script on the CPU")
    try:
        import pynvml
    except ImportError:
        refuse("pynvml is missing, which reads how busy the GPU is: pip install nvidia-ml-py")
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    try:
        pynvml.nvmlInit()
        by = pynvml.nvmlDeviceGetHandleByIndex if first.isdigit() else pynvml.nvmlDeviceGetHandleByUUID
        handle = by(int(first) if first.isdigit() else first)
        gpu = Gpu(
            handle,
            index=pynvml.nvmlDeviceGetIndex(handle),
            name=pynvml.nvmlDeviceGetName(handle),
            driver=pynvml.nvmlSystemGetDriverVersion(),
            memory_bytes=pynvml.nvmlDeviceGetMemoryInfo(handle).total,
        )
        gpu.busy_share()
    except pynvml.NVMLError as error:
        refuse(f"NVML cannot tell how busy GPU {first!r} is: {error}")
    return gpu


def cores() -> list[int]:
    """This process's, the threads of a physical core side by side; no more than its CPU quota allows."""

    def first_sibling(core: int) -> int:
        path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
        return int(re.match(r"\d+", path.read_text())[0]) if path.is_file() else core

    found = sorted(os.sched_getaffinity(0), key=lambda core: (first_sibling(core), core))
    return found[: hardware.usable_cpus()]


def split(found: list[int], *, smoke: bool) -> tuple[list[int], list[int]]:
    """The small host's cores, and the CPU node's; a smoke run does not keep them apart."""
    if smoke:
        return found[:2], found[-1:]
    if len(found) < LEAST_CORES:
        refuse(f"needs {LEAST_CORES} cores or more, {SMALL_CORES} of them for the small host; there are {len(found)}")
    return found[:SMALL_CORES], found[SMALL_CORES:]


class Sampler:
    """Watches the GPU, and a process with all below it, from `cores`; in the end it kills what is left of those."""

    def __init__(self, pid: int, gpu: Gpu | None, cores: Sequence[int]):
        self._pid, self._gpu, self._cores = pid, gpu, cores
        self._busy: list[tuple[float, float]] = []
        self._cpu_s: list[tuple[float, float]] = []
        self._processes: dict[psutil.Process, float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        guardian.kill([*self._processes, *guardian.family([self._pid])], wait_s=10)

    def _watch(self) -> None:
        os.sched_setaffinity(0, self._cores)  # of this thread
        while not self._over.wait(NVML_EVERY_S):
            now = time.time()
            if self._gpu is not None:
                self._busy.append((now, self._gpu.busy_share()))
            if not self._cpu_s or now - self._cpu_s[-1][0] >= CPU_EVERY_S:
                self._cpu_s.append((now, self._total_cpu_s()))

    def _total_cpu_s(self) -> float:
        """Of processes that have ended too, as they were last seen."""
        for process in guardian.family([self._pid]):
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            self._processes[process] = times.user + times.system
        return sum(self._processes.values())

    def between(self, began_at: float, ended_at: float) -> dict[str, float | None]:
        """What was seen in a window of time.time()."""
        busy = [share for at, share in self._busy if began_at <= at <= ended_at]
        before, after = np.interp([began_at, ended_at], *zip(*self._cpu_s, strict=True))
        return {"gpu_busy_share": statistics.mean(busy) if busy else None, "cpu_s": float(after - before)}


def measure(settings: Settings, gpu: Gpu | None) -> dict[str, Any]:
    """One variant, once."""
    with tempfile.TemporaryDirectory(prefix="rtg-", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        command = [
            sys.executable,
            str(Path(__file__).with_name("gpu_variants.py")),
            json.dumps(asdict(replace(settings, folder=name))),
        ]
        with on_cores(settings.small), (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                command,
                env=environment(gpu),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        with Sampler(process.pid, gpu, settings.rest) as sampler:
            try:
                status = f"exit code {process.wait(VARIANT_TIMEOUT_S)}"
            except subprocess.TimeoutExpired:
                status = f"not done after {VARIANT_TIMEOUT_S:g} s"
        if not (folder / "figures.json").is_file():
            lines = (folder / "log").read_text(errors="replace").splitlines()
            raise SystemExit("\n".join([*lines[-LOG_LINES:], f"gpu.py: {settings.variant} failed: {status}"]))
        found = json.loads((folder / "figures.json").read_text())
        window = found.pop("began_at"), found.pop("ended_at")
        return {**found, **sampler.between(*window)}


def environment(gpu: Gpu | None) -> dict[str, str]:
    """Of a variant: one GPU or none, no Ray cluster but its own, and a token for that one."""
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return {
        **kept,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # NVML's
        "CUDA_VISIBLE_DEVICES": "" if gpu is None else str(gpu.index),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }


def num_steps(settings: Settings, seconds: float, gpu: Gpu | None) -> int:
    """As many as fill `seconds` on the device alone."""
    found = measure(replace(settings, variant="on_device", steps=30), gpu)
    return max(math.ceil(seconds / found["step_median_s"]), 30)


def compare(rows: dict[str, list[dict[str, Any]]], batch_size: int) -> dict[str, dict[str, float]]:
    """Prints the figures, then the ratios, which it returns; what needs a GPU is `-` without one."""
    for name, found in rows.items():
        middle = {figure: median([row[figure] for row in found]) for figure in found[0]}
        print(f"batch {batch_size}, {name}: " + ", ".join(f"{k} {shown(v)}" for k, v in middle.items()))
        print(f"batch {batch_size}, {name}: {meter_beside_nvml(found)}")
    ratios: dict[str, dict[str, float]] = {}
    for figure, one, other in COMPARED:
        if not {one, other} <= {*rows}:
            continue
        name = f"batch {batch_size}, {one} / {other}, {figure}"
        if any(row[figure] is None for row in (*rows[one], *rows[other])):
            print(name, "-")
            continue
        ratios[name] = ratio(rows, figure, one, other)
        print(name, {key: round(value, 3) for key, value in ratios[name].items()})
        if figure == "gpu_busy_share" and other == "on_device":
            print(f"{name}: the bar of {BAR:.0%} is {'met' if ratios[name]['median'] >= BAR else 'missed'}")
    return ratios


def meter_beside_nvml(rows: list[dict[str, Any]]) -> str:
    """The stall meter's busy share beside NVML's, of the round in which they are furthest apart."""
    both = [(row["meter_busy_share"], row["gpu_busy_share"]) for row in rows]
    if any(None in pair for pair in both):
        return "the meter's busy share -, NVML's -"
    meter, nvml = max(both, key=lambda pair: abs(pair[0] - pair[1]))
    verdict = "within" if abs(meter - nvml) <= METER_WITHIN else "NOT within"
    return f"the meter's busy share {meter:.3f}, NVML's {nvml:.3f}, {verdict} {100 * METER_WITHIN:g} points"


def median(values: list[float | None]) -> float | None:
    return None if None in values else statistics.median(values)


def shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 256], metavar="SIZE")
    parser.add_argument("--seconds", type=float, default=20.0, help="of the measured steps, on the device alone")
    parser.add_argument("--steps", type=int, help="measure so many instead")
    parser.add_argument("--warmup", type=int, default=20, help="steps before them")
    parser.add_argument("--workload", choices=("raytrain", "torchvision"), default="raytrain", help="whose blur")
    parser.add_argument("--reserved-cpus", type=int, default=1, help="cores of the small host without CPU stages")
    parser.add_argument("--plain-dataloader", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="a tiny model on the CPU, one short round")
    return parser.parse_args()


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is ended first
    arguments = parse()
    smoke = arguments.smoke
    gpu = None if smoke else find_gpu()
    small, rest = split(cores(), smoke=smoke)
    settings = Settings(
        variant="",
        batch_size=4,
        warmup=1 if smoke else arguments.warmup,
        steps=3,
        workload=arguments.workload,
        small=small,
        rest=rest,
        reserved_cpus=1 if smoke else arguments.reserved_cpus,
        plain=arguments.plain_dataloader,
        smoke=smoke,
        folder="",
    )
    names = [name for name in VARIANTS if not smoke or name in SMOKED]
    rows, ratios, steps = {}, {}, {}
    for size in [4] if smoke else arguments.batch:
        if not smoke:
            settings = replace(settings, batch_size=size)
            settings = replace(settings, steps=arguments.steps or num_steps(settings, arguments.seconds, gpu))
        variants = {name: partial(measure, replace(settings, variant=name), gpu) for name in names}
        rows[size], steps[size] = interleave(variants, 1 if smoke else arguments.rounds), settings.steps
        ratios |= compare(rows[size], size)
    if gpu is not None:
        about = {
            "gpu": gpu.name,
            "driver": gpu.driver,
            "gpu_memory_bytes": gpu.memory_bytes,
            "cores_of_small_host": len(small),
            "cores_of_cpu_node": len(rest),
            "steps": steps,
            **{key: value for key, value in vars(arguments).items() if key not in ("smoke", "steps", "batch")},
        }
        print(write("gpu", rows, ratios, **about))


if __name__ == "__main__":
    main()
