"""All settings that a job can be tried with on a host, and what is left out of them and why. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from raytrain.config.inference import Allocator, Backend, Inference, Precision, Tune
from raytrain.errors import ConfigError
from raytrain.infer.contract import Setting

COMPUTES: dict[Backend, tuple[Precision, ...]] = {
    "eager": ("fp32", "bf16"),
    "compile": ("fp32", "bf16"),
    "onnx": ("fp32", "int8"),
    "openvino": ("fp32", "bf16", "int8"),
}
ON_GPUS: tuple[Backend, ...] = ("eager", "compile")
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
TASKS_PER_GPU = (1, 2, 4)


@dataclass(frozen=True)
class Machine:
    """What a host has, as far as it matters here.

    Attributes:
        cores: physical ones that this process may use.
        gpus: NVIDIA's.
        backends, allocators: that are installed.
    """

    cores: int
    gpus: int = 0
    backends: tuple[Backend, ...] = ("eager", "compile")
    allocators: tuple[Allocator, ...] = ("default",)


@dataclass(frozen=True)
class Space:
    """Attributes: `left_out`: why, and how many of the combinations for it; `on_gpu`: streams and cores say
    nothing then."""

    settings: list[Setting]
    left_out: dict[str, int]
    on_gpu: bool = False

    @property
    def of_model(self) -> list[Setting]:
        """Those that differ for the model alone, which blocks say nothing of: each with the first of its blocks."""
        found: dict[Setting, Setting] = {}
        for setting in self.settings:
            found.setdefault(with_block(setting, 0), setting)
        return list(found.values())

    def blocks_of(self, setting: Setting) -> list[Setting]:
        """It, and those that differ from it by their blocks alone."""
        others = [each for each in self.settings if with_block(each, 0) == with_block(setting, 0) and each != setting]
        return [setting, *others]


def with_block(setting: Setting, rows: int) -> Setting:
    return replace(setting, block_rows=rows)


def space_of(tune: Tune, inference: Inference, machine: Machine) -> Space:
    """
    Raises:
        ConfigError: nothing is left, or the job asks for a GPU and there is none.
    """
    if inference.device == "gpu" and not machine.gpus:
        raise ConfigError(
            "inference.device: gpu, but this host has no GPU to tune on; `device: cpu` tunes on its cores"
        )
    on_gpu = machine.gpus > 0 and inference.device != "cpu"
    left_out: Counter[str] = Counter()
    settings: dict[Setting, None] = {}
    for setting in _combinations(tune, inference, machine, on_gpu):
        why = _why_not(setting, machine, on_gpu)
        if why is None:
            settings[setting] = None
        else:
            left_out[why] += 1
    if not settings:
        raise ConfigError(f"no setting of `tune` can be tried here: {'; '.join(left_out)}")
    return Space(list(settings), dict(left_out), on_gpu)


def _combinations(tune: Tune, inference: Inference, machine: Machine, on_gpu: bool) -> list[Setting]:
    """On GPUs nothing is asked of the cores, and on cores nothing of the GPUs, unless the job names it."""
    batches = tune.batch_sizes or ((inference.batch_size,) if inference.objective == "latency" else BATCH_SIZES)
    if tune.streams != "auto":
        shapes: Sequence[tuple[int, int]] = tune.streams
    else:
        shapes = [(1, machine.cores)] if on_gpu else stream_shapes(machine.cores)
    allocators = tune.allocators or (("default",) if on_gpu else machine.allocators)
    tasks = tune.tasks_per_gpu or (TASKS_PER_GPU if on_gpu else (1,))
    return [
        Setting(backend, precision, batch, block, streams, cores, allocator, each)
        for backend, precision, (streams, cores), allocator, each, batch, block in product(
            tune.backends or tuple(name for name in machine.backends if not on_gpu or name in ON_GPUS),
            tune.precisions or ("fp32", "bf16", "int8"),
            shapes,
            allocators,
            tasks,
            batches,
            tune.block_rows or (inference.block.rows,),
        )
    ]


def stream_shapes(cores: int) -> list[tuple[int, int]]:
    """(streams, cores of each): all cores and half of them, since something has to prepare the samples, in 1, 2, 4 …
    streams and in as many as there are cores."""
    found: dict[tuple[int, int], None] = {}
    for used in dict.fromkeys((cores, cores // 2)):
        doubling = [2**power for power in range(used.bit_length())]
        found |= {(streams, used // streams): None for streams in (*doubling, used) if 0 < streams <= used}
    return list(found)


def _why_not(setting: Setting, machine: Machine, on_gpu: bool) -> str | None:
    if setting.precision not in COMPUTES[setting.backend]:
        able = " or ".join(name for name, precisions in COMPUTES.items() if setting.precision in precisions)
        return f"{setting.precision} needs {able}"
    if setting.backend not in machine.backends:
        return f"{setting.backend} is not installed: pip install 'raytrain[{setting.backend}]'"
    if setting.allocator not in machine.allocators:
        return f"the allocator {setting.allocator} is not installed here"
    if on_gpu and setting.backend not in ON_GPUS:
        return f"{setting.backend} computes on CPUs alone, and this host has GPUs; `device: cpu` tunes on its cores"
    if not on_gpu and setting.tasks_per_gpu > 1:
        return "tasks_per_gpu needs a GPU"
    if setting.streams * setting.cores > machine.cores:
        wanted = f"{setting.streams} x {setting.cores} cores"
        return f"streams of {wanted} are more than the {machine.cores} physical cores of this host"
    return None
