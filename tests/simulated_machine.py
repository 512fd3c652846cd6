"""Machines that tuning is tried on: how fast each setting is, known beforehand, with a clock of their own.

A batch takes what a call costs and what its samples do: by back end and precision, by how well these spread over the
cores of a stream, less well with few samples; more where all batches together outgrow the cache, or all cores share the
memory; a little by allocator. On top, what no model of ours knows: pairs of factors, 3 to 4 % each, and 1 % of every
setting.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from raytrain.infer.contract import Setting, Timed
from raytrain.infer.tune.search import Measured, Refused
from raytrain.infer.tune.space import stream_shapes

ENGINES = [
    *(("eager", "fp32"), ("eager", "bf16"), ("compile", "fp32"), ("compile", "bf16"), ("onnx", "fp32")),
    *(("onnx", "int8"), ("openvino", "fp32"), ("openvino", "bf16"), ("openvino", "int8")),
]
BATCHES = [1, 2, 4, 8, 16, 32, 64, 128]
ALLOCATORS = ["default", "glibc", "jemalloc", "tcmalloc"]
START_S = 2.0


@dataclass
class SimulatedMachine:
    """Attributes: `truth`: samples a second of each setting; `p95_s`: of a batch; `asked`: what was measured;
    `refused`: settings that cannot be; `start_s`: by back end, where it is not the usual time."""

    settings: list[Setting]
    truth: np.ndarray
    p95_s: np.ndarray
    noise: float = 0.03
    seed: int = 0
    now_s: float = 0.0
    asked: list[Setting] = field(default_factory=list)
    refused: set[Setting] = field(default_factory=set)
    start_s: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        self._rng = np.random.default_rng(self.seed + 10**6)
        self._numbers = {setting: number for number, setting in enumerate(self.settings)}

    def measure(self, setting: Setting, effort_s: float) -> Measured:
        self.asked.append(setting)
        start_s = self.start_s.get(setting.backend, START_S)
        if setting in self.refused:
            self.now_s += start_s
            return Refused("out of memory", start_s)
        self.now_s += effort_s + start_s
        number, factor = self._numbers[setting], math.exp(self._rng.normal(0, self.noise))
        return Timed(self.truth[number] * factor, [self.p95_s[number] / factor] * 20, effort_s + start_s)

    def clock(self) -> float:
        return self.now_s

    def share_of_best(self, setting: Setting) -> float:
        return float(self.truth[self._numbers[setting]] / self.truth.max())

    def of(self, setting: Setting) -> tuple[float, float]:
        """Its true samples a second and p95 seconds."""
        number = self._numbers[setting]
        return float(self.truth[number]), float(self.p95_s[number])


def physical(seed: int, least: int = 200, most: int = 260) -> SimulatedMachine:
    """As said above, of 2 to 32 cores, with so many settings."""
    rng = np.random.default_rng(seed)
    cores = int(rng.choice([2, 4, 8, 16, 32]))
    settings = _grid(rng, cores, least, most)
    sample_s = _between(rng, 1e-3, 3e-2)
    backends = dict.fromkeys(backend for backend, _ in ENGINES)
    speed = {backend: math.exp(rng.normal(0, 0.3)) for backend in backends}
    precise = {"fp32": 1.0, "bf16": _between(rng, 0.15, 2.5), "int8": _between(rng, 0.5, 3)}
    engine = {each: speed[each[0]] * precise[each[1]] * math.exp(rng.normal(0, 0.15)) for each in ENGINES}
    call_s = {backend: _between(rng, 1e-4, 4e-3) for backend in backends}
    spreads = {backend: (rng.uniform(0.8, 0.99), _between(rng, 0.02, 0.8)) for backend in backends}
    cache, beyond = _between(rng, 8, 400), rng.uniform(0, 0.15)
    memory = {each: rng.uniform(0, 0.5) for each in ENGINES}
    allocator = {each: (rng.normal(0, 0.05), _between(rng, 1, 50)) for each in ALLOCATORS}
    with_batch = {(each, size): math.exp(rng.normal(0, 0.03)) for each in ENGINES for size in BATCHES}
    with_shape = {(each, s): math.exp(rng.normal(0, 0.04)) for each in ENGINES for s in stream_shapes(cores)}
    seconds = []
    for one in settings:
        key, size, used = (one.backend, one.precision), one.batch_size, one.streams * one.cores
        spread, few = spreads[one.backend]
        parallel = spread * size / (size + few * one.cores)
        batch_s = call_s[one.backend] + size * sample_s / engine[key] * (1 - parallel + parallel / one.cores)
        batch_s *= 1 + beyond * max(0.0, math.log2(size * one.streams / cache))
        batch_s *= 1 + memory[key] * used / cores * (1 - 1 / used)
        share, half = allocator[one.allocator]
        batch_s *= math.exp(share * size / (size + half)) * math.exp(rng.normal(0, 0.01))
        seconds.append(batch_s * with_batch[key, size] * with_shape[key, (one.streams, one.cores)])
    rates = [one.streams * one.batch_size / batch_s for one, batch_s in zip(settings, seconds, strict=True)]
    return SimulatedMachine(settings, np.array(rates), np.array(seconds), seed=seed)


def arbitrary(seed: int) -> SimulatedMachine:
    """Nothing physical: every value of a factor at random, each by itself, and every pair of values by 8 % more or
    less, so that not even neighbouring batch sizes are alike."""
    machine, rng = physical(seed), np.random.default_rng(seed + 10**7)
    columns = [
        [one.backend for one in machine.settings],
        [one.precision for one in machine.settings],
        [one.batch_size for one in machine.settings],
        [(one.streams, one.cores) for one in machine.settings],
        [one.allocator for one in machine.settings],
    ]
    total = np.zeros(len(machine.settings))
    pairs = [list(zip(a, b, strict=True)) for number, a in enumerate(columns) for b in columns[:number]]
    for values, spread in [*zip(columns, (0.4, 0.3, 0.5, 0.3, 0.05), strict=True), *((pair, 0.08) for pair in pairs)]:
        levels = {value: rng.normal(0, spread) for value in sorted(set(values))}
        total += [levels[value] for value in values]
    return SimulatedMachine(machine.settings, np.exp(total), np.exp(-total), seed=seed)


def _grid(rng: np.random.Generator, cores: int, least: int, most: int) -> list[Setting]:
    """Some of the values of each factor, so that there are as many settings as wanted."""
    shapes = stream_shapes(cores)
    while True:
        engines = [ENGINES[number] for number in sorted(rng.permutation(9)[: int(rng.integers(4, 10))])]
        batches = BATCHES[int(rng.integers(0, 3)) : int(rng.integers(5, 9))]
        allocators = ALLOCATORS[: int(rng.integers(1, 5))]
        some = [shapes[number] for number in sorted(rng.permutation(len(shapes))[: int(rng.integers(2, 8))])]
        found = [
            Setting(backend, precision, size, 256, streams, cores, allocator)
            for backend, precision in engines
            for size in batches
            for streams, cores in some
            for allocator in allocators
        ]
        if least <= len(found) <= most:
            return found


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    """Evenly by logarithm."""
    return math.exp(rng.uniform(math.log(low), math.log(high)))
