"""What a launch would be, before anything is sent: the request, the hosts, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raytrain.config.data import check_shared
from raytrain.config.job import Job
from raytrain.cost.instances import Catalog, InstanceType, Price, Source, catalog, most_usd
from raytrain.errors import ConfigError
from raytrain.sagemaker.request import Group, Request, groups_of


@dataclass(frozen=True)
class QuotedGroup:
    """An instance group with its type's facts.

    Attributes:
        price: of one host; None when the user goes without prices.
    """

    group: Group
    type: InstanceType
    price: Price | None

    @property
    def usd_per_hour(self) -> float | None:
        """Of all hosts of the group."""
        return None if self.price is None else self.group.hosts * self.price.usd_per_hour


@dataclass(frozen=True)
class Quote:
    """What a launch would be.

    Attributes:
        request: as CreateTrainingJob takes it.
        sources: of the prices.
        max_run_s: after which SageMaker stops the job.
        keep_alive_s: how long its hosts are kept after it, and paid for.
        alternative: the largest single instance of the first group's family that costs no more an hour, with its price;
            None when there is none larger than the group's own, or nothing to compare with.
    """

    request: Request
    region: str
    groups: tuple[QuotedGroup, ...]
    sources: tuple[Source, ...]
    max_run_s: int
    keep_alive_s: int
    spot: bool
    alternative: tuple[InstanceType, Price] | None = None

    @property
    def name(self) -> str:
        return self.request["TrainingJobName"]

    @property
    def num_hosts(self) -> int:
        return sum(quoted.group.hosts for quoted in self.groups)

    @property
    def vcpus(self) -> int:
        return sum(quoted.group.hosts * quoted.type.vcpus for quoted in self.groups)

    @property
    def gpus(self) -> int:
        return sum(quoted.group.hosts * quoted.type.gpus for quoted in self.groups)

    @property
    def usd_per_hour(self) -> float | None:
        costs = [quoted.usd_per_hour for quoted in self.groups]
        return None if None in costs else sum(costs)

    @property
    def max_usd(self) -> float | None:
        """Of the instances, if the job runs to its limit and a warm pool is kept to its end."""
        if self.usd_per_hour is None:
            return None
        return most_usd(self.usd_per_hour, self.max_run_s, self.keep_alive_s)

    @property
    def single(self) -> QuotedGroup:
        """The group that a job without CPU hosts would be: the first with GPUs, else the first."""
        return next((quoted for quoted in self.groups if quoted.type.gpus), self.groups[0])

    @property
    def break_even(self) -> float | None:
        """How many times faster than the single group alone the job must be to cost no more a sample: the ratio of
        their prices. None for one group, and without prices."""
        if len(self.groups) == 1 or self.usd_per_hour is None:
            return None
        return self.usd_per_hour / self.single.usd_per_hour

    @property
    def figures(self) -> dict[str, Any]:
        """For a program to read."""
        return {
            "name": self.name,
            "region": self.region,
            "hosts": self.num_hosts,
            "vcpus": self.vcpus,
            "gpus": self.gpus,
            "usd_per_hour": self.usd_per_hour,
            "max_usd": self.max_usd,
            "break_even": self.break_even,
            "price_sources": [f"{source.text} ({source.date or 'undated'})" for source in self.sources],
        }


def quote(request: Request, job: Job, region: str, prices: Path | None = None, *, priced: bool = True) -> Quote:
    """Look up what the request's hosts are and cost.

    Args:
        prices: a file of the user's, besides the snapshot.
        priced: False to go without prices.

    Raises:
        ConfigError: an instance type or its price is unknown, or the job file contradicts the type's facts.
    """
    known = catalog(prices)
    groups = tuple(
        QuotedGroup(
            Group(asked.name, sent.instance_type, sent.hosts),
            known.type(sent.instance_type),
            known.price(sent.instance_type, region) if priced else None,
        )
        for asked, sent in zip(job.cluster.groups, groups_of(request), strict=True)
    )
    _check_sizes(job, groups)
    _check_disks(request, groups)
    used = list(dict.fromkeys(quoted.price.source for quoted in groups if quoted.price))
    quoted = Quote(
        request,
        region,
        groups,
        tuple(known.sources[name] for name in used),
        request["StoppingCondition"]["MaxRuntimeInSeconds"],
        request["ResourceConfig"].get("KeepAlivePeriodInSeconds", 0),
        bool(request.get("EnableManagedSpotTraining")),
    )
    if priced and len(groups) > 1:
        quoted = replace(quoted, alternative=_alternative(quoted, known))
    return quoted


def check_cap(quoted: Quote, limit: float | None) -> None:
    """Hold the price against `sagemaker.max_usd_per_hour`.

    Raises:
        ConfigError: it is above, or unknown.
    """
    if limit is None:
        return
    if quoted.usd_per_hour is None:
        raise ConfigError("sagemaker.max_usd_per_hour cannot be kept with --no-prices; drop one of them")
    if quoted.usd_per_hour > limit:
        raise ConfigError(
            f"the job costs ${quoted.usd_per_hour:.3f} an hour, more than sagemaker.max_usd_per_hour: {limit:g}"
        )


def _check_disks(request: Request, groups: tuple[QuotedGroup, ...]) -> None:
    """
    Raises:
        ConfigError: SageMaker would refuse the volume of a type with disks of its own.
    """
    resources = request["ResourceConfig"]
    for quoted in groups:
        own = quoted.type.local_storage_gb
        if own is not None and "VolumeKmsKeyId" in resources:
            raise ConfigError(
                f"sagemaker.kms.volume: {quoted.type.name} has disks of its own, encrypted by itself; drop the key"
            )
        if own is not None and resources["VolumeSizeInGB"] > own:
            raise ConfigError(f"sagemaker.volume_gb: {quoted.type.name} has disks of its own, of {own} GB and no more")


def _check_sizes(job: Job, groups: tuple[QuotedGroup, ...]) -> None:
    """
    Raises:
        ConfigError: `cpus` or `gpus` of the job file are not those of the instance type, or so many GPUs cannot share a
            global batch.
    """
    gpus = sum(quoted.group.hosts * quoted.type.gpus for quoted in groups)
    if gpus and job.data is not None and job.data.global_batch_size is not None:
        check_shared(job.data.global_batch_size, gpus)
    for asked, quoted in zip(job.cluster.groups, groups, strict=True):
        for what, mine, theirs in (("cpus", asked.cpus, quoted.type.vcpus), ("gpus", asked.gpus, quoted.type.gpus)):
            if mine is not None and mine != theirs:
                raise ConfigError(
                    f"cluster.groups: group {asked.name!r} says {what}: {mine}, but {quoted.type.name} has {theirs}; "
                    "leave it out"
                )


def _alternative(quoted: Quote, known: Catalog) -> tuple[InstanceType, Price] | None:
    """The biggest sibling of the GPU host that the same money buys."""
    single, money = quoted.single, quoted.usd_per_hour
    found = [
        (sibling, known.prices[quoted.region, sibling.name])
        for sibling in known.siblings(single.type.name)
        if (quoted.region, sibling.name) in known.prices and sibling.vcpus > single.type.vcpus
    ]
    return next(((t, p) for t, p in reversed(found) if p.usd_per_hour * single.group.hosts <= money), None)
