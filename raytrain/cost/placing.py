"""Where the stages run: from what each costs on every kind of place to the fastest placement. Pure.

A sample's stages are cut in two: those before the cut run on CPUs, those from it on on the device. Batches may have one
of two cuts, so that CPUs and device are busy alike; and some of the training hosts' cores prepare batches, which costs
the device a little, as the ranks launch their kernels later.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

LEAST_GAIN = 0.02  # of the rate: a placement that is no faster than this is not worth a change


@dataclass(frozen=True)
class Costs:
    """Of a sample, in seconds.

    Attributes:
        cpu_s: of a core, of each stage in order.
        device_s: of a device, of each stage; None of one that cannot run there.
        step_s: of a device, of the model's step.
        interference: the share of its rate that a device loses when all cores of its host prepare batches.
    """

    cpu_s: Sequence[float]
    device_s: Sequence[float | None]
    step_s: float
    interference: float = 0.0

    @property
    def cuts(self) -> range:
        """Numbers of stages on CPUs, from the fewest that there can be."""
        last = max((number for number, each in enumerate(self.device_s) if each is None), default=-1)
        return range(last + 1, len(self.cpu_s) + 1)

    def on_cpu(self, cut: int) -> float:
        return sum(self.cpu_s[:cut])

    def on_device(self, cut: int) -> float:
        return self.step_s + sum(each or 0.0 for each in self.device_s[cut:])


@dataclass(frozen=True)
class Places:
    """
    Attributes:
        cpu_cores: of hosts without devices.
        host_cores: of the hosts with devices, that may prepare.
        devices: in all.
        host_speed: of one of these cores, in cores of hosts without devices.
    """

    cpu_cores: int
    host_cores: int
    devices: int
    host_speed: float = 1.0

    def cores(self, host_cores: int) -> float:
        """That prepare, with so many of the hosts with devices."""
        return self.cpu_cores + host_cores * self.host_speed

    def busy(self, host_cores: int) -> float:
        """The share of the cores of the hosts with devices."""
        return host_cores / self.host_cores if self.host_cores else 0.0


@dataclass(frozen=True)
class Placing:
    """
    Attributes:
        cut: stages on CPUs, of most batches.
        other: of the others; as `cut` where there are none.
        share: of the batches, the others.
        host_cores: of the hosts with devices, that prepare.
        rate: samples a second, by the costs.
    """

    cut: int
    other: int
    share: float
    host_cores: int
    rate: float


def rate_of(costs: Costs, places: Places, cut: int, other: int, share: float, host_cores: int) -> float:
    """Samples a second: what CPUs and devices can both do."""
    cpu_s = (1 - share) * costs.on_cpu(cut) + share * costs.on_cpu(other)
    device_s = (1 - share) * costs.on_device(cut) + share * costs.on_device(other)
    devices = places.devices * (1 - costs.interference * places.busy(host_cores))
    cores = places.cores(host_cores)
    by_cpus = (cores / cpu_s if cpu_s else float("inf")) if cores else 0.0  # somebody has to read
    return min(by_cpus, devices / device_s if device_s else float("inf"))


def best(costs: Costs, places: Places) -> Placing:
    """The fastest; of equally fast ones that with the fewest cores of the devices' hosts, then the least on devices."""
    return max(_all(costs, places), key=lambda each: (each.rate, -each.host_cores, each.cut + each.other))


def _all(costs: Costs, places: Places) -> Iterator[Placing]:
    for host_cores in range(places.host_cores + 1):
        for cut in costs.cuts:
            yield Placing(cut, cut, 0.0, host_cores, rate_of(costs, places, cut, cut, 0.0, host_cores))
        for other, cut in combinations(costs.cuts, 2):
            share = _even(costs, places, cut, other, host_cores)
            if share is not None:
                yield Placing(cut, other, share, host_cores, rate_of(costs, places, cut, other, share, host_cores))


def _even(costs: Costs, places: Places, cut: int, other: int, host_cores: int) -> float | None:
    """The share of `other` at which CPUs and devices take equally long; None where there is none between 0 and 1."""
    cores, devices = places.cores(host_cores), places.devices * (1 - costs.interference * places.busy(host_cores))
    # cores * device_s(share) = devices * cpu_s(share), both linear in the share
    before = cores * costs.on_device(cut) - devices * costs.on_cpu(cut)
    behind = cores * costs.on_device(other) - devices * costs.on_cpu(other)
    if before == behind:
        return None
    share = before / (before - behind)
    return share if 0 < share < 1 else None
