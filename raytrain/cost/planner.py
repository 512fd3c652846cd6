"""Which cluster shape is cheapest: every shape that fits, predicted from a profile. Pure; arrays over shapes.

A shape is some GPU hosts of one type and CPU hosts of at most two others beside them: many of one, or many of one and a
single one of another of its family to fill up. Its samples a second are the smallest of what three things admit, times
the efficiency, as far as it holds on GPU hosts:

    accelerators   GPUs / (accelerator seconds + those of stages on the device a sample)
    CPUs           sum over hosts of vCPUs / (CPU seconds + seconds of waiting for storage a sample): a worker a vCPU;
                   the training hosts keep one vCPU a GPU for themselves
    network        what the hosts' network cards let in and out: bytes a sample from storage and from CPU host to rank
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np

from raytrain.config.cluster import reserved_cpus
from raytrain.cost.assumptions import assumptions, startup_s
from raytrain.cost.bounds import Bounds
from raytrain.cost.instances import Catalog, InstanceType, Price
from raytrain.cost.profile import Profile
from raytrain.cost.rates import LIMITS, Array, Cut, Ladder, cuts_of, placed
from raytrain.errors import ConfigError, nearest

MAX_GROUPS = 5  # of a SageMaker training job
MAX_SHAPES = 5_000_000  # about a gigabyte
STORE_SHARE = 0.3  # of a host's memory that Ray takes for its object store
SHORT_JOB_S = 600.0  # of training: a start-up of minutes decides what it costs
GIB = 1 << 30


@dataclass(frozen=True)
class Shape:
    """Hosts by instance type, those with GPUs first."""

    gpu_type: str
    gpu_hosts: int
    cpu_hosts: tuple[tuple[str, int], ...] = ()

    @property
    def heterogeneous(self) -> bool:
        return bool(self.cpu_hosts)

    def __str__(self) -> str:
        return " + ".join(f"{n} x {name}" for name, n in ((self.gpu_type, self.gpu_hosts), *self.cpu_hosts))


@dataclass(frozen=True)
class Prediction:
    """One shape.

    Attributes:
        limit: what bounds its speed, one of LIMITS.
        hours, usd: of the whole job, start-up included.
        efficient: no other shape is both faster and cheaper.
        on_device: by stage, the share of the batches for which it runs on the device; without those that never do.
        device_share: of the accelerators' time that goes into them.
    """

    shape: Shape
    samples_per_s: float
    limit: str
    usd_per_hour: float
    usd_per_million_samples: float
    hours: float
    usd: float
    efficient: bool
    on_device: Mapping[str, float] = field(default_factory=dict)
    device_share: float = 0.0


@dataclass(frozen=True)
class Plan:
    """All shapes that fit, best first.

    Attributes:
        cuts: where stages may run; the first with all on CPUs.
        order: of shapes, by the job's money, then its time.
        assumptions: that the prediction makes beyond what was measured, a line each.
        startup_s: that `hours` and `usd` hold; None where it is not known, and not in them.
        by_hour: the order is by the price an hour, because the start-up is not known and the training is short.
        on_cpus: the same with every stage on CPUs; None where none can run elsewhere, or no shape is within the limits
            so.
    """

    profile: Profile
    bounds: Bounds
    gpus: Ladder
    cpus: Ladder
    cuts: tuple[Cut, ...]
    figures: dict[str, Array]
    order: Array
    efficient: Array
    assumptions: tuple[str, ...]
    prices: tuple[Price, ...]
    startup_s: float | None = None
    by_hour: bool = False
    on_cpus: Plan | None = None

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, rank: int) -> Prediction:
        """The shape that comes `rank`-th, from 0."""
        return self.prediction(int(self.order[rank]))

    def best(self, count: int) -> list[Prediction]:
        return [self[rank] for rank in range(min(count, len(self)))]

    def front(self) -> list[Prediction]:
        """The shapes that none beats in both time and money, cheapest first."""
        return [self.prediction(int(index)) for index in self.order if self.efficient[index]]

    def best_where(self, mask: Array) -> Prediction | None:
        """The cheapest of the shapes in `mask`, bool (num_shapes,)."""
        among = self.order[mask[self.order]]
        return self.prediction(int(among[0])) if len(among) else None

    def cheapest(self, figure: str, mask: Array) -> Prediction | None:
        """The shape in `mask` of the lowest `usd_per_hour`, or whichever figure; of equals the best."""
        among = self.order[mask[self.order]]
        return self.prediction(int(among[np.argmin(self.figures[figure][among])])) if len(among) else None

    @property
    def startup_share(self) -> float:
        """Of the best shape's hours."""
        return (self.startup_s or 0.0) / 3600 / self[0].hours

    @property
    def best_without_cpu_hosts(self) -> Prediction | None:
        return self.best_where(self.figures["first_hosts"] == 0)

    @property
    def best_with_cpu_hosts(self) -> Prediction | None:
        return self.best_where(self.figures["first_hosts"] > 0)

    def curve(self, gpu_type: str, cpu_type: str, gpu_hosts: int = 1) -> list[Prediction]:
        """With 0, 1, 2 … hosts of one CPU type."""
        f = self.figures
        gpu = [t.name for t in self.gpus.types].index(gpu_type)
        cpu = [t.name for t in self.cpus.types].index(cpu_type)
        ours = (f["gpu"] == gpu) & (f["gpu_hosts"] == gpu_hosts) & (f["second_hosts"] == 0)
        ours &= (f["first_hosts"] == 0) | (f["first"] == cpu)
        found = np.flatnonzero(ours)
        return [self.prediction(int(index)) for index in found[np.argsort(f["first_hosts"][found])]]

    def prediction(self, index: int) -> Prediction:
        """Of the shape at a place of the arrays."""
        f = {name: values[index] for name, values in self.figures.items()}
        added = [(int(f["first"]), int(f["first_hosts"])), (int(f["second"]), int(f["second_hosts"]))]
        shape = Shape(
            self.gpus.types[int(f["gpu"])].name,
            int(f["gpu_hosts"]),
            tuple((self.cpus.types[which].name, hosts) for which, hosts in added if hosts),
        )
        return Prediction(
            shape=shape,
            samples_per_s=float(f["samples_per_s"]),
            limit=LIMITS[int(f["limit"])],
            usd_per_hour=float(f["usd_per_hour"]),
            usd_per_million_samples=float(f["usd_per_million_samples"]),
            hours=float(f["hours"]),
            usd=float(f["usd"]),
            efficient=bool(self.efficient[index]),
            on_device=self._on_device(int(f["cut"]), int(f["other"]), float(f["share"])),
            device_share=float(f["device_share"]),
        )

    def _on_device(self, cut: int, other: int, share: float) -> dict[str, float]:
        always, some = self.cuts[cut].on_device, self.cuts[other].on_device if share else ()
        return {name: 1.0 if name in always else share for name in (some or always)}


def plan(profile: Profile, known: Catalog, bounds: Bounds) -> Plan:
    """Predict every shape within some bounds.

    Raises:
        ConfigError: an unknown family or region, a GPU that nothing was measured of, or no shape within the limits.
    """
    gpus, cpus, prices = _ladders(profile, known, bounds)
    startup = startup_s(profile, bounds)
    shapes = _shapes(len(gpus.types), cpus.types, bounds)
    cuts = cuts_of(profile, [cast(str, each.gpu) for each in gpus.types])
    assumed = assumptions(profile, (*gpus.types, *cpus.types), bounds)

    def ranked(cuts: tuple[Cut, ...]) -> Plan:
        figures = _within(bounds, predict(profile, gpus, cpus, shapes, startup or 0.0, cuts))
        by_hour = startup is None and _is_short(figures)
        order = _order(figures, startup, by_hour)
        efficient = np.zeros(len(order), dtype=bool)
        hours = figures["hours"][order]
        efficient[order] = hours < np.concatenate([[np.inf], np.minimum.accumulate(hours)[:-1]])
        return Plan(profile, bounds, gpus, cpus, cuts, figures, order, efficient, assumed, prices, startup, by_hour)

    found = ranked(cuts)
    if len(cuts) == 1:
        return found
    try:
        return replace(found, on_cpus=ranked(cuts[:1]))
    except ConfigError:  # none is fast enough, or can prepare a sample, without stages on the device
        return found


def _within(bounds: Bounds, figures: dict[str, Array]) -> dict[str, Array]:
    """Those of shapes that are within the limits.

    Raises:
        ConfigError: none is.
    """
    fits = np.isfinite(figures["usd"])
    if not fits.any():
        raise ConfigError(
            "no shape can prepare a sample: cluster.reserved_cpus, cluster.placement or a worker's memory leave no CPU"
        )
    limits = []
    if bounds.max_usd_per_hour is not None:
        fits &= figures["usd_per_hour"] <= bounds.max_usd_per_hour
        limits.append(f"--max-price {bounds.max_usd_per_hour:g} (the lowest is ${figures['usd_per_hour'].min():.3f})")
    if bounds.max_hours is not None:
        fits &= figures["hours"] <= bounds.max_hours
        limits.append(f"--max-hours {bounds.max_hours:g} (the fastest takes {figures['hours'].min():.2f})")
    if not fits.any():
        raise ConfigError(f"no shape is within {' and '.join(limits)}")
    return {name: values[fits] for name, values in figures.items()}


def _is_short(figures: dict[str, Array]) -> bool:
    """Whether the hosts of the lowest price an hour train for less than SHORT_JOB_S."""
    return bool(figures["hours"][np.argmin(figures["usd_per_hour"])] * 3600 < SHORT_JOB_S)


def _order(figures: dict[str, Array], startup: float | None, by_hour: bool) -> Array:
    """By the job's money, then its time; or by the price an hour, then its time. Where the start-up is not known, any
    number of the same hosts costs the same but for rounding: whatever it is, the lowest price an hour comes first."""
    if startup is not None:
        return np.lexsort((figures["hours"], figures["usd"]))
    if by_hour:
        return np.lexsort((figures["hours"], figures["usd_per_hour"]))
    return np.lexsort((figures["hours"], figures["usd_per_hour"], np.round(np.log(figures["usd"]), 9)))


def predict(
    profile: Profile, gpus: Ladder, cpus: Ladder, shapes: dict[str, Array], startup: float, cuts: Sequence[Cut]
) -> dict[str, Array]:
    """Speed and cost of shapes, the same few operations on each.

    Args:
        startup: seconds, which every host is paid for.
        shapes: see cost.rates.admitted.
        cuts: where stages may run.

    Returns:
        The shapes, what cost.rates.placed has of them, and float64 `samples_per_s`, `usd_per_hour`,
        `usd_per_million_samples`, `hours`, `usd` (whole job).
    """
    usd = shapes["gpu_hosts"] * gpus.usd_per_hour[shapes["gpu"]]
    if len(cpus.types):
        for which, number in (("first", "first_hosts"), ("second", "second_hosts")):
            usd += shapes[number] * cpus.usd_per_hour[shapes[which]]
    found = placed(profile, gpus, cpus, shapes, cuts)
    samples_per_s = profile.efficiency_on_gpus * found["rate"]
    with np.errstate(divide="ignore"):  # hosts without the memory for one worker
        seconds_per_sample = 1 / samples_per_s
    hours = (startup + profile.num_samples * profile.epochs * seconds_per_sample) / 3600
    return {
        **shapes,
        **found,
        "samples_per_s": samples_per_s,
        "usd_per_hour": usd,
        "usd_per_million_samples": usd / 3600 * seconds_per_sample * 1e6,
        "hours": hours,
        "usd": usd * hours,
    }


def _shapes(num_gpu_types: int, cpu_types: tuple[InstanceType, ...], bounds: Bounds) -> dict[str, Array]:
    """Every GPU type and number of hosts with every addition of CPU hosts.

    Raises:
        ConfigError: more than MAX_SHAPES.
    """
    num_cpu_types, families = len(cpu_types), np.array([each.family for each in cpu_types])
    none = np.zeros((1, 4), dtype=np.int64)
    first, hosts = np.meshgrid(np.arange(num_cpu_types), np.arange(1, bounds.max_cpu_hosts + 1), indexing="ij")
    alone = np.column_stack([first.ravel(), hosts.ravel(), np.zeros((first.size, 2), dtype=np.int64)])
    mixed = np.repeat(alone, num_cpu_types, axis=0)
    mixed[:, 2], mixed[:, 3] = np.tile(np.arange(num_cpu_types), len(alone)), 1
    mixed = mixed[(mixed[:, 0] != mixed[:, 2]) & ((mixed[:, 1] > 1) | (mixed[:, 0] < mixed[:, 2]))]  # none twice
    mixed = mixed[families[mixed[:, 0]] == families[mixed[:, 2]]] if len(mixed) else mixed
    added = np.concatenate([none, alone, mixed])
    gpu, gpu_hosts = np.meshgrid(np.arange(num_gpu_types), np.arange(1, bounds.max_gpu_hosts + 1), indexing="ij")
    trained = np.column_stack([gpu.ravel(), gpu_hosts.ravel()])
    if len(trained) * len(added) > MAX_SHAPES:
        raise ConfigError(
            f"{len(trained) * len(added):,} shapes are too many; narrow them by --families, --max-gpu-hosts or "
            "--max-cpu-hosts"
        )
    left = np.repeat(trained, len(added), axis=0)
    right = np.tile(added, (len(trained), 1))
    names = ("gpu", "gpu_hosts", "first", "first_hosts", "second", "second_hosts")
    return dict(zip(names, np.column_stack([left, right]).T.copy(), strict=True))


def _ladders(profile: Profile, known: Catalog, bounds: Bounds) -> tuple[Ladder, Ladder, tuple[Price, ...]]:
    """The types with a price in the region, those whose GPU was measured and those without accelerator.

    Raises:
        ConfigError: a family or region is unknown, or no type with a measured GPU has a price.
    """
    known.check_region(bounds.region)
    for family in bounds.families or ():
        if family not in known.families:
            raise ConfigError(f"unknown family {family!r}{nearest(family, known.families)}")
    priced = [
        (each, known.prices[bounds.region, each.name])
        for each in known.types.values()
        if (bounds.region, each.name) in known.prices and (not bounds.families or each.family in bounds.families)
    ]
    measured = set(profile.accelerator_s_per_sample)
    memory = profile.accelerator_memory_bytes or 0
    with_gpu = [(t, p) for t, p in priced if t.gpu in measured and memory <= (t.gpu_memory_gib or 0) * GIB]
    without = [(t, p) for t, p in priced if not t.accelerators]
    if not with_gpu:
        there = sorted({t.gpu for t, _ in priced if t.gpu}) or ["none"]
        raise ConfigError(
            f"no type with a GPU that fits was measured: the profile has {', '.join(sorted(measured))}, "
            f"{bounds.region} has prices of types with {', '.join(there)}; add --accelerator {there[0]}=SECONDS, "
            "of one for a sample"
        )
    both = (*with_gpu, *without)
    return (
        _ladder(profile, with_gpu, bounds, trains=True),
        _ladder(profile, without, bounds, trains=False),
        tuple(price for _, price in both),
    )


def _ladder(profile: Profile, priced: list[tuple[InstanceType, Price]], bounds: Bounds, *, trains: bool) -> Ladder:
    types = tuple(t for t, _ in priced)
    workers = [t.vcpus - _reserved(t, bounds) if trains else t.vcpus for t in types]
    if profile.worker_memory_bytes:
        room = [int(t.memory_gib * GIB * (1 - STORE_SHARE) / profile.worker_memory_bytes) for t in types]
        workers = [min(pair) for pair in zip(workers, room, strict=True)]
    step_s = profile.accelerator_s_per_sample
    return Ladder(
        types,
        np.array([price.usd_per_hour for _, price in priced]),
        np.array(workers),
        np.array([profile.cpu_s(t.family) for t in types]),
        np.array([t.gpus if trains else 0 for t in types]),
        np.array([step_s[cast(str, t.gpu)].value if trains else np.inf for t in types]),
        np.array([t.network_gbps * 1e9 / 8 if t.network_gbps else np.inf for t in types]),
    )


def _reserved(host: InstanceType, bounds: Bounds) -> int:
    """vCPUs of a training host that do not prepare samples, as `raytrain train` has it."""
    if bounds.cpu_groups_only:
        return host.vcpus
    if bounds.reserved_cpus is not None:
        return min(bounds.reserved_cpus, host.vcpus)  # of a small host all of them: it prepares nothing
    return reserved_cpus(host.vcpus, host.gpus, None)
