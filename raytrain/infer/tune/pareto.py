"""Which points are worth a look, and what a prediction costs with them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raytrain.cost.instances import Catalog, Price
from raytrain.errors import ConfigError

MILLION = 1e6
HOUR_S = 3600


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Numbers of those (samples a second, p95 seconds) that no other one beats: none is as good in both and better in
    one. The most samples a second first; of points that are the same, all."""
    found: list[int] = []
    least_s = float("inf")
    for number in sorted(range(len(points)), key=lambda number: (-points[number][0], points[number][1])):
        p95_s = points[number][1]
        if p95_s < least_s or (found and points[found[-1]] == points[number]):
            found.append(number)
            least_s = min(least_s, p95_s)
    return found


@dataclass(frozen=True)
class Rate:
    """What the machine that was measured costs an hour.

    Attributes:
        usd_per_hour: of as much of the instance as the machine is.
        price: of the whole instance, with its source.
        note: where they are not the same.
    """

    instance: str
    usd_per_hour: float
    price: Price
    note: str | None = None

    def per_million(self, samples_per_s: float) -> float:
        """USD of a million predictions at this rate."""
        return self.usd_per_hour / HOUR_S * MILLION / samples_per_s


def rate_of(known: Catalog, instance: str, region: str | None, cpus: int, gpus: int) -> Rate:
    """Price of an instance for figures of this machine, which may be a smaller one: then it has its share of the vCPUs,
    as if speed were in proportion. Nothing of the kind can be said of GPUs.

    Args:
        cpus: logical ones of this machine.

    Raises:
        ConfigError: the instance or the region is unknown, there is no price, or the GPUs are others.
    """
    kind = known.type(instance)
    if region is None:
        raise ConfigError(f"what an {instance} costs depends on the region; give --region")
    price = known.price(instance, region)
    if kind.accelerators != gpus:
        raise ConfigError(
            f"an {instance} has {kind.accelerators} accelerators and this machine {gpus} GPUs: its price says nothing "
            "of what was measured here"
        )
    if cpus == kind.vcpus:
        return Rate(instance, price.usd_per_hour, price)
    if gpus:
        raise ConfigError(
            f"an {instance} has {kind.vcpus} vCPUs and this machine {cpus}: with GPUs no price follows from a share"
        )
    note = (
        f"this machine has {cpus} CPUs and is priced as {cpus}/{kind.vcpus} of an {instance}: assumed that its "
        "speed is in proportion to its vCPUs"
    )
    return Rate(instance, price.usd_per_hour * cpus / kind.vcpus, price, note)
