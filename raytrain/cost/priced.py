"""What the hosts that a run was measured on cost an hour: no host is priced as one of another size without a word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from raytrain.config.cluster import parse_nodes
from raytrain.cost.instances import Catalog, InstanceType, Price
from raytrain.errors import ConfigError
from raytrain.record.schema import HostFacts, RunRecord

SAME = 1e-6


@dataclass(frozen=True)
class Priced:
    """What the hosts of a run cost an hour.

    Attributes:
        hosts: by instance type.
        usd_per_hour: None where a price is not known; `why` says which.
        notes: where a host is priced as a share of its type.
        scaled: hosts with GPUs are too, so that the run stands for a smaller cluster than any that can be had.
    """

    hosts: dict[str, int]
    usd_per_hour: float | None
    prices: tuple[Price, ...] = ()
    why: str | None = None
    notes: tuple[str, ...] = ()
    scaled: bool = False


def region_of(record: RunRecord, wanted: str | None) -> str | None:
    """Of the prices: as wanted, else where the job ran, else as it says."""
    if wanted:
        return wanted
    arn = record.cloud.arn.split(":") if record.cloud and record.cloud.kind == "sagemaker" else []
    return arn[3] if len(arn) > 3 else (record.job.get("sagemaker") or {}).get("region")


def priced_hosts(record: RunRecord, known: Catalog, region: str | None, given: dict[str, str]) -> Priced:
    """Instance types of a run's hosts, and what they cost together an hour.

    A host that had another number of CPUs than its type has is priced at its share of the type, as if its speed were
    in proportion. That cannot be said of a GPU: a host with GPUs has no price then, unless its GPUs were emulated by
    CPUs, and every host of the run had the same share.

    Raises:
        ConfigError: an instance type is unknown, or has no price in the region.
    """
    declared = {
        group["name"]: group["instance_type"]
        for group in (record.job.get("cluster") or {}).get("groups", ())
        if group.get("instance_type")
    }
    hosts: dict[str, int] = {}
    kinds: list[InstanceType] = []
    for host in record.hosts:
        name = given.get(host.group) or host.instance_type or declared.get(host.group)
        if name is None:
            return Priced(
                {}, None, why=f"group {host.group!r} has no instance type; give --instances {host.group}=ml.…"
            )
        kinds.append(known.type(name))
        hosts[name] = hosts.get(name, 0) + 1
    where = region_of(record, region)
    if where is None:
        return Priced(hosts, None, why="its job names no region; give --region")
    prices = tuple(known.price(name, where) for name in hosts)
    shares = [_share(record, host, kind) for host, kind in zip(record.hosts, kinds, strict=True)]
    if why := _not_to_scale(record, kinds, shares):
        return Priced(hosts, None, why=why)
    total = sum(known.price(kind.name, where).usd_per_hour * each for kind, each in zip(kinds, shares, strict=True))
    scaled = any(kind.gpus and abs(share - 1) > SAME for kind, share in zip(kinds, shares, strict=True))
    return Priced(hosts, total, prices, notes=_notes(record, kinds, shares), scaled=scaled)


def _share(record: RunRecord, host: HostFacts, kind: InstanceType) -> float:
    """The CPUs that a host had, as a share of its type's; 1 for a host that is one of the type."""
    if host.instance_type == kind.name and not host.emulated and not (record.cloud and record.cloud.kind == "twin"):
        return 1.0
    return cpus_of(record, host) / kind.vcpus


def cpus_of(record: RunRecord, host: HostFacts) -> float:
    """All that a host had: a record has those for the CPU stages, without what its ranks were left on this machine."""
    if record.cluster_attached:
        return host.cpus
    if not host.emulated:
        return record.hardware.cpu_cores
    said = _nodes_of(record.command)
    if host.group in said:
        return said[host.group]
    reserved = (record.job.get("cluster") or {}).get("reserved_cpus")
    return host.cpus + min(host.gpus if reserved is None else reserved, host.cpus) * bool(host.gpus)


def _nodes_of(command: Sequence[str]) -> dict[str, float]:
    """CPUs of a host by group, as `--nodes` of a command says; empty where it says none, or a user's own program means
    something else by it."""
    for word, following in pairwise([*command, ""]):
        option, equals, value = word.partition("=")
        if option == "--nodes":
            try:
                return {group.name: group.cpus or 0 for group in parse_nodes(value if equals else following)}
            except ConfigError:
                return {}
    return {}


def _not_to_scale(record: RunRecord, kinds: list[InstanceType], shares: list[float]) -> str | None:
    """Why the hosts cannot be priced by their shares; None if they can."""
    cores = record.hardware.cpu_cores
    shown = sum(cpus_of(record, host) for host in record.hosts if host.emulated)
    if shown > cores:
        return (
            f"its nodes say {shown:g} CPUs and shared the {cores} of one machine, so that nothing follows for hosts "
            "that have them; raytrain plan on its record predicts those"
        )
    unlike = max(shares) - min(shares) > SAME
    real = not all(rank.device == "cpu" for rank in record.ranks)
    for host, kind, share in zip(record.hosts, kinds, shares, strict=True):
        if kind.gpus and abs(share - 1) > SAME and (real or unlike):
            return (
                f"host {host.name} had {cpus_of(record, host):g} CPUs and an {kind.name} has {kind.vcpus}, and GPUs do "
                "not shrink with them; raytrain plan on its record predicts such hosts, --instances may name another"
            )
    return None


def _notes(record: RunRecord, kinds: list[InstanceType], shares: list[float]) -> tuple[str, ...]:
    found = {}
    for host, kind, share in zip(record.hosts, kinds, shares, strict=True):
        if abs(share - 1) > SAME:
            cpus = cpus_of(record, host)
            found[cpus, kind.name] = (
                f"hosts of {cpus:g} CPUs are priced as {cpus:g}/{kind.vcpus} of an {kind.name}: assumed that "
                "its speed is in proportion to its vCPUs" + (", and that of its GPUs too" if kind.gpus else "")
            )
    return tuple(found.values())
