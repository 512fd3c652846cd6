"""Scale, by emulation: throughput as a share of the ideal, on clusters far larger than this machine.

    python benchmarks/scale.py [--rounds 3] [--shapes 4+16 4+8x4 ...] [--smoke]

A shape is the vCPUs of the GPU host (with one GPU) + CPU hosts x vCPUs each. The ideal is the smaller of what the CPUs
can prepare (CPUs / seconds a sample) and what the accelerator can take. 4+16:1.2 has an accelerator that takes just so
much that the CPUs can prepare 1.2 times it: how long does it stand idle then?

Real: `raytrain.fit` as users call it, one Ray node a host with its CPUs declared, one worker process a declared CPU,
the plan, the scheduling, and every batch's bytes copied into and read out of the object store.
Emulated: the declared CPUs, which are not there (all processes share this machine's cores); the transform, which sleeps
the time of a sample instead of computing; the accelerator, whose steps are times on a clock; the network, since all
nodes share this machine's memory and loopback. What a node's own caches and network would cost is not in it, and what
all nodes together cost must fit into this machine: `host CPU` says how busy it was, other programs included.
The payload has the bytes of a 224x224x3 uint8 image (--float32: of a float32 one), called float32 either way, so that
the rank, which stands in for a GPU on a CPU, hands it on as it is; a GPU casts on the device.

The time of a sample is measured at the start (or --sample-ms): ten torchvision Gaussian blurs of a 224x224x3 float32
image, one thread, allocator tuned. The accelerator's rate is assumed, not measured: 1200 samples a second is no GPU's
figure, but between 20 and 36 CPUs' worth of that transform where a core makes 33 to 60 a second, so that 4+16 is bound
by its CPUs and 4+36 by the accelerator. `cluster.reserved_cpus` is 0: all CPUs of a shape prepare samples.

The warm-up ends when every CPU's worker has delivered and two batches a CPU have come since that had not lain ready
(until then the accelerator takes no time). Measured are then whole tasks of every CPU: eight batches each (in a long
epoch it would be 32; --task-batches), so that every CPU changes tasks meanwhile. The accelerator is given one step
ahead, as an asynchronous device is, and its idle share is read off its own timeline. `lay_ready_first_s` and
`lay_ready_last_s` are the age of the first and last batches measured: one that falls means that a stock was eaten up.
`record_wait_share` is of the whole run and of the rank's host, which asks a step ahead: it waits more than the
accelerator stands idle.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import psutil
from emulated_work import WaitingTransform, emulated_accelerator
from harness import interleave, ratio, spread, write
from rich.console import Console
from rich.table import Table

from raytrain.cluster.environment import prepare_environment

SHAPES = ["4+0", "4+16", "4+16:1.2", "4+36", "4+72", "4+1x32", "4+2x16", "4+4x8", "4+8x4", "4+16x2"]
EPOCH_BATCHES = 8192  # more than are ever taken: the loop leaves the epoch early, so that its end is not measured
SAMPLE_EVERY_S = 0.5
LIMIT_S = 900.0
EMULATED = (
    "CPUs are declared, not real: all nodes share this machine's cores. The transform sleeps sample_s instead of "
    "computing. The accelerator's steps are times on a clock, at an assumed rate. The network is loopback and shared "
    "memory. Nodes, workers, scheduling and the payload through the object store are real."
)


@dataclass(frozen=True)
class Case:
    """One shape and what is emulated on it.

    Attributes:
        shape: `4+16` or `4+8x4`: vCPUs of the GPU host + CPU hosts x vCPUs; after a colon the CPUs' capacity as a
            multiple of the accelerator's.
        sample_s: that the transform waits.
        accelerator: samples a second that it takes, where the shape does not say.
        steady_s: about how long to measure.
    """

    shape: str
    sample_s: float
    accelerator: float
    batch: int
    task_batches: int
    steady_s: float
    float32: bool

    @property
    def sizes(self) -> tuple[int, int, int]:
        """vCPUs of the GPU host, CPU hosts, vCPUs of each."""
        found = re.fullmatch(r"(\d+)\+(?:(\d+)x)?(\d+)(:[\d.]+)?", self.shape)
        if not found:
            raise SystemExit(f"{self.shape!r} is not a shape such as 4+16, 4+8x4 or 4+16:1.2")
        own, hosts, each = int(found[1]), int(found[2] or 1), int(found[3])
        return own, hosts if each else 0, each

    @property
    def nodes(self) -> str:
        own, hosts, each = self.sizes
        return f"gpu=1x{own}x1" + (f",cpu={hosts}x{each}" if hosts else "")

    @property
    def cpus(self) -> int:
        own, hosts, each = self.sizes
        return own + hosts * each

    @property
    def multiple(self) -> float | None:
        """Of the accelerator's samples a second that the CPUs can prepare, where the shape says so."""
        return float(self.shape.partition(":")[2]) if ":" in self.shape else None

    @property
    def samples_per_s(self) -> float:
        """Of the accelerator."""
        return self.accelerator if self.multiple is None else self.cpus / self.sample_s / self.multiple

    @property
    def ideal(self) -> float:
        """Samples a second."""
        return min(self.cpus / self.sample_s, self.samples_per_s)

    @property
    def bound_by_cpus(self) -> bool:
        return self.cpus / self.sample_s < self.samples_per_s

    @property
    def window(self) -> int:
        """Batches to measure: whole tasks of every CPU, about `steady_s` of them."""
        whole = self.cpus * self.task_batches
        return whole * max(1, round(self.steady_s * self.ideal / self.batch / whole))


def run_case(case: Case, folder: Path) -> None:
    """In a process of its own: one run of raytrain on a fresh emulated cluster."""
    from raytrain import Job, Pipeline, fit
    from raytrain.data import synthetic
    from raytrain.data.stages.stage import stage

    shape = (224, 224 if case.float32 else 56, 3)
    transform = stage(WaitingTransform(case.sample_s, shape), name="wait")
    source = synthetic(EPOCH_BATCHES * case.batch, shape=(1, 1, 1))
    pipeline = Pipeline(source, [transform], batch_size=case.batch, batches_per_task=case.task_batches)
    job = {"name": "scale", "run_dir": str(folder), "cluster": {"reserved_cpus": 0}}
    job["training"] = {"epochs": 1, "threads": 1, "max_failures": 0}
    loop = emulated_accelerator(
        step_s=case.batch / case.samples_per_s,
        batch_s=case.batch * case.sample_s,
        cpus=case.cpus,
        window=case.window,
        into=folder / "steps.json",
    )
    record = fit(loop, pipeline, Job.from_dict(job), nodes=case.nodes)
    assert record.cpu_slots == case.cpus, "Ray was given other CPUs than the ideal counts"
    waited = next(stage for stage in record.stages if stage.name == "wait")
    figures = {
        "cpus": record.cpu_slots,
        "sample_ms_taken": waited.wall_s_per_sample * 1e3,
        "record_wait_share": record.totals.wait_share,
    }
    (folder / "record_figures.json").write_text(json.dumps(figures))


def measure(case: Case) -> dict[str, float]:
    """Run a case in a child and watch this machine meanwhile."""
    with tempfile.TemporaryDirectory(prefix="scale-") as name:
        folder, began = Path(name), time.monotonic()
        before = psutil.virtual_memory().used
        command = [sys.executable, __file__, "--child", json.dumps(asdict(case)), "--folder", name]
        with (folder / "log").open("w") as log:
            child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            try:
                load = watch(child, began + LIMIT_S)
            finally:
                end(child)
        if child.returncode or not (folder / "steps.json").is_file():
            raise SystemExit(f"{case.shape} failed or did not settle:\n" + (folder / "log").read_text()[-4000:])
        told = json.loads((folder / "steps.json").read_text())
        figures = json.loads((folder / "record_figures.json").read_text())
    steps = np.array(told["steps"])
    started, ended, lay_ready = steps[told["first"] - 1 :].T
    seconds = ended[-1] - ended[0]
    rate = case.window * case.batch / seconds
    busy = [percent for at, percent, _ in load if ended[0] <= at <= ended[-1]]
    row = {
        "samples_per_s": rate,
        "ideal_samples_per_s": case.ideal,
        "of_ideal": rate / case.ideal,
        "accelerator_idle_share": (started[1:] - ended[:-1]).sum() / seconds,
        "lay_ready_first_s": lay_ready[: case.cpus].mean(),
        "lay_ready_last_s": lay_ready[-case.cpus :].mean(),
        "first_batch_s": steps[0, 0] - began,
        "steady_after_s": ended[0] - began,
        "steady_s": seconds,
        "host_cpu_percent": statistics.mean(busy) if busy else float("nan"),
        "peak_memory_mb": (max(used for *_, used in load) - before) / 1e6,
        "workers": told["workers"],
        **figures,
    }
    return {name: round(float(value), 4) for name, value in row.items()}


def end(child: subprocess.Popen) -> None:
    """Whatever it is at; raytrain ends the cluster with it."""
    child.terminate()
    try:
        child.wait(30)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def watch(child: subprocess.Popen, until: float) -> list[tuple[float, float, int]]:
    """(monotonic seconds, CPU percent of all cores, bytes of memory in use) until the child ends."""
    load = []
    psutil.cpu_percent()
    while child.poll() is None and time.monotonic() < until:
        time.sleep(SAMPLE_EVERY_S)
        load.append((time.monotonic(), psutil.cpu_percent(), psutil.virtual_memory().used))
    return load


def reference_sample_s(seconds: float = 6.0) -> float:
    """Of the reference transform, in a process of its own, which starts with the allocator tuned.

    The tenth percentile: what else runs on this machine only ever makes a sample slower.
    """
    text = subprocess.run([sys.executable, __file__, "--reference", str(seconds)], capture_output=True, check=True)
    return float(text.stdout.split()[-1])


def time_reference(seconds: float) -> None:
    import torch
    from torchvision.transforms import v2

    torch.set_num_threads(1)
    blur, image, took = v2.GaussianBlur(11, (0.1, 2.0)), torch.randn(3, 224, 224), []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(took) < 20:
        began, blurred = time.perf_counter(), image
        for _ in range(10):
            blurred = blur(blurred)
        took.append(time.perf_counter() - began)
    print(np.percentile(took[5:], 10))


def show(cases: list[Case], rows: dict[str, list[dict[str, float]]]) -> None:
    title = "Emulated: throughput / ideal in steady state, median (lowest to highest)"
    table = Table(title=title, title_justify="left")
    for name in ("shape", "CPU nodes", "CPUs", "bound by", "ideal/s", "samples/s", "throughput / ideal"):
        table.add_column(name, justify="left" if name in ("shape", "bound by") else "right")
    for name in ("accelerator idle", "first batch", "host CPU", "memory"):
        table.add_column(name, justify="right")
    for case in cases:
        own = rows[case.shape]
        median = {name: statistics.median(row[name] for row in own) for name in own[0]}
        share = spread([row["of_ideal"] for row in own])
        bound = "CPUs" if case.bound_by_cpus else "accelerator"
        ratio_text = f"{share['median']:.3f} ({share['min']:.3f} to {share['max']:.3f})"
        speeds = (f"{case.ideal:,.0f}", f"{median['samples_per_s']:,.0f}", ratio_text)
        machine = (f"{median['host_cpu_percent']:.0f} %", f"{median['peak_memory_mb'] / 1e3:.1f} GB")
        waits = (f"{median['accelerator_idle_share']:.1%}", f"{median['first_batch_s']:.1f} s")
        table.add_row(case.shape, str(case.sizes[1]), str(case.cpus), bound, *speeds, *waits, *machine)
    Console(width=160).print(table)


def ratios_of(cases: list[Case], rows: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    shares = {f"{case.shape}, throughput / ideal": spread([r["of_ideal"] for r in rows[case.shape]]) for case in cases}
    past = [case.shape for case in cases if not case.bound_by_cpus and case.multiple is None]
    more = {f"{one} / {past[0]}, samples a second": ratio(rows, "samples_per_s", one, past[0]) for one in past[1:]}
    idle = {
        c.shape: spread([r["accelerator_idle_share"] for r in rows[c.shape]]) for c in cases if c.multiple is not None
    }
    return shares | more | {f"{shape}, accelerator idle": share for shape, share in idle.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sample-ms", type=float, help="a sample's time on one CPU; default: measured here")
    parser.add_argument("--accelerator-samples-per-s", type=float, default=1200.0, help="assumed (default: 1200)")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--task-batches", type=int, default=8, help="a task change costs a CPU some 0.2 s (default: 8)")
    parser.add_argument("--steady-s", type=float, default=20.0, help="about how long to measure a shape")
    parser.add_argument("--float32", action="store_true", help="payload of 600 kB a sample instead of 150 kB (uint8)")
    parser.add_argument("--smoke", action="store_true", help="one small shape, once; nothing written")
    for internal in ("--child", "--folder", "--reference"):
        parser.add_argument(internal, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return run_case(Case(**json.loads(arguments.child)), Path(arguments.folder))
    if arguments.reference:
        return time_reference(float(arguments.reference))
    prepare_environment()
    if arguments.smoke:
        shapes, rounds, sample_s, common = ["1+1"], 1, 0.005, (300.0, 8, 32, 2.0, arguments.float32)
    else:
        shapes, rounds = arguments.shapes, arguments.rounds
        sample_s = arguments.sample_ms / 1e3 if arguments.sample_ms else reference_sample_s()
        work = (arguments.accelerator_samples_per_s, arguments.batch, arguments.task_batches)
        common = (*work, arguments.steady_s, arguments.float32)
    cases = [Case(shape, sample_s, *common) for shape in shapes]
    print(EMULATED)
    print("on", "; ".join(case.nodes for case in cases))
    print(f"one CPU: {sample_s * 1e3:.2f} ms a sample; the accelerator: {common[0]:g} samples a second (assumed)")
    rows = interleave({case.shape: partial(measure, case) for case in cases}, rounds)
    show(cases, rows)
    ratios = ratios_of(cases, rows)
    if not arguments.smoke:
        about = {"sample_ms_measured_here": not arguments.sample_ms, **asdict(cases[0]), "shape": shapes}
        print(write("scale", rows, ratios, emulated=EMULATED, rounds=rounds, **about))
    return None


if __name__ == "__main__":
    main()
