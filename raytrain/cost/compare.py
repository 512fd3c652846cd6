"""What runs of one workload cost beside each other, and beside the best single instance that could have done it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, TypedDict, cast

from raytrain.cost.bounds import Bounds
from raytrain.cost.instances import Catalog, Price
from raytrain.cost.planner import Prediction, plan
from raytrain.cost.priced import Priced, priced_hosts, region_of
from raytrain.cost.profile import TRAINED_ON_CPU, Profile, profile_of_record
from raytrain.cost.unlike import unlikenesses
from raytrain.errors import ConfigError
from raytrain.record.gaps import gap_share
from raytrain.record.schema import HostLoad, RunRecord

MILLION = 1_000_000
CURVE_HOSTS = 4  # past the most that were measured


@dataclass(frozen=True)
class Column:
    """One run, or a predicted one. Money is None where no price is known, shares where nobody measured.

    Attributes:
        step_s: seconds between two steps of a rank.
        gap_share: see record.gaps; None where nobody can tell, or it is predicted.
        cpu_busy, gpu_busy: share of each host's CPUs, and of its GPUs, while it trained.
        startup_s: from the command to the first step.
        startup_usd: what the hosts cost meanwhile, of a job on SageMaker: another machine's start-up is none of theirs.
        speedup: samples a second against the first column.
        break_even: the speed-up at which a sample costs as much as in the first column: the ratio of the prices.
        price_efficiency: samples a dollar against the first column, less 1.
    """

    name: str
    predicted: bool
    hosts: dict[str, int]
    step_s: float
    samples_per_s: float
    wait_share: float | None
    gap_share: float | None = None
    cpu_busy: dict[str, float] = field(default_factory=dict)
    gpu_busy: dict[str, float] = field(default_factory=dict)
    usd_per_hour: float | None = None
    usd_per_million_samples: float | None = None
    usd_per_epoch: float | None = None
    startup_s: float | None = None
    startup_usd: float | None = None
    speedup: float = 1.0
    break_even: float | None = None
    price_efficiency: float | None = None
    emulated: bool = False


@dataclass(frozen=True)
class Comparison:
    """Columns beside each other.

    Attributes:
        notes: what a reader must know to believe them, a line each.
        prices: that were used.
        region: of the first column's prices.
    """

    columns: tuple[Column, ...]
    notes: tuple[str, ...]
    prices: tuple[Price, ...]
    region: str | None = None


def compare(
    records: list[RunRecord],
    known: Catalog,
    *,
    region: str | None = None,
    instances: list[dict[str, str]] | None = None,
    unlike: bool = False,
) -> Comparison:
    """Set records beside each other, and the best single instance of the first one's GPU beside them.

    Args:
        records: the first is what the others are compared with.
        region: of the prices; by default that of each record's job.
        instances: for each record, instance types by group where the record does not say them.
        unlike: compare different workloads all the same.

    Raises:
        ConfigError: the workloads differ, a record has no training in it, or an instance type is unknown.
    """
    for record in records:
        if not (record.totals.samples and record.totals.samples_per_s > 0):
            raise ConfigError(f"the record of {record.name} has no training to compare: its run {record.status}")
    differences = [text for record in records[1:] for text in unlikenesses(records[0], record)]
    if differences and not unlike:
        raise ConfigError(
            f"the records are of different workloads: {'; '.join(differences)}; --unlike compares them all the same"
        )
    check_instances(len(records), instances or [])
    given = instances or [{} for _ in records]
    priced = [priced_hosts(record, known, region, types) for record, types in zip(records, given, strict=True)]
    names = _names(records)
    columns = [measured(*each, known) for each in zip(names, records, priced, strict=True)]
    notes = [f"{name}: {each.why}" for name, each in zip(names, priced, strict=True) if each.why]
    notes += [f"{name}: {line}" for name, each in zip(names, priced, strict=True) for line in each.notes]
    prices = {(p.region, p.type): p for each in priced for p in each.prices}
    single, about = best_single(records[0], priced[0], known, region)
    if single is None:
        notes.append(f"no single instance is predicted: {about}")
    else:
        columns.append(predicted_column(single, records[0], known.type(single.shape.gpu_type).gpus))
        found = known.price(single.shape.gpu_type, cast(str, region_of(records[0], region)))
        prices[found.region, found.type] = found
        notes.append(about)
    first = columns[0]
    notes += [f"{column.name}: on emulated nodes, which share one machine" for column in columns if column.emulated]
    notes += [f"they differ, and were compared all the same: {text}" for text in differences]
    columns = [against(first, column) for column in columns]
    return Comparison(tuple(columns), tuple(notes), tuple(prices.values()), region_of(records[0], region))


def check_instances(num_records: int, given: list[Any]) -> None:
    """
    Raises:
        ConfigError: types were given for some records only.
    """
    if given and len(given) != num_records:
        raise ConfigError(f"--instances was given {len(given)} times for {num_records} records; give one for each")


def _samples_per_batch(record: RunRecord) -> float:
    return record.totals.samples / max(sum(rank.num_batches for rank in record.ranks), 1)


def _names(records: list[RunRecord]) -> list[str]:
    """Unique: the second `digits` is `digits (2)`."""
    seen: dict[str, int] = {}
    names = []
    for record in records:
        seen[record.name] = seen.get(record.name, 0) + 1
        names.append(record.name if seen[record.name] == 1 else f"{record.name} ({seen[record.name]})")
    return names


def measured(name: str, record: RunRecord, priced: Priced, known: Catalog) -> Column:
    """A record's column, before it is held against the first."""
    rate = record.totals.samples_per_s
    busy = {load.host: load for load in record.loads or (record.cloud.loads if record.cloud else [])}
    return Column(
        name=name,
        predicted=False,
        hosts=priced.hosts or _by_group(record),
        step_s=_samples_per_batch(record) * record.world_size / rate,
        samples_per_s=rate,
        wait_share=record.totals.wait_share,
        gap_share=gap_share(record.ranks),
        cpu_busy={
            host: load.cpu_percent.mean / 100 / _cpus(record, load, known)
            for host, load in busy.items()
            if load.cpu_percent
        },
        gpu_busy={
            host: load.gpu_percent.mean / 100 / _gpus(record, load) for host, load in busy.items() if load.gpu_percent
        },
        startup_s=record.startup.first_step_s,
        emulated=any(host.emulated for host in record.hosts),
        **_money(priced.usd_per_hour, rate, record.num_train, _startup_there(record)),
    )


class Money(TypedDict, total=False):
    """What a column has of it."""

    usd_per_hour: float
    usd_per_million_samples: float
    usd_per_epoch: float
    startup_usd: float | None


def _money(hourly: float | None, rate: float, num_train: int, startup_s: float | None) -> Money:
    if hourly is None:
        return {}
    sample = hourly / 3600 / rate
    return {
        "usd_per_hour": hourly,
        "usd_per_million_samples": sample * MILLION,
        "usd_per_epoch": sample * num_train,
        "startup_usd": None if startup_s is None else hourly * startup_s / 3600,
    }


def _startup_there(record: RunRecord) -> float | None:
    """On SageMaker; None where nobody measured it there."""
    there = record.cloud is not None and record.cloud.kind == "sagemaker"
    return record.startup.first_step_s if there else None


def _by_group(record: RunRecord) -> dict[str, int]:
    groups: dict[str, int] = {}
    for host in record.hosts:
        shape = f"{host.group} ({host.cpus:g} CPUs)"
        groups[shape] = groups.get(shape, 0) + 1
    return groups


def _cpus(record: RunRecord, load: HostLoad, known: Catalog) -> float:
    """All of a host's, not only those for the stages: the whole host was measured."""
    own = [host for host in record.hosts if host.name == load.host]
    if own and own[0].instance_type in known.types and not own[0].emulated:
        return known.types[own[0].instance_type].vcpus
    return max(own[0].cpus, 1.0) if own and record.cluster_attached else record.hardware.cpu_cores


def _gpus(record: RunRecord, load: HostLoad) -> float:
    own = [host.gpus for host in record.hosts if host.name == load.host]
    return max(own[0], 1.0) if own else max(len(record.hardware.gpus), 1)


def best_single(record: RunRecord, priced: Priced, known: Catalog, region: str | None) -> tuple[Prediction | None, str]:
    """The single instance with the same GPU that makes a sample cheapest, as predicted from the record.

    Returns:
        The prediction, or None, and what to say about it.
    """
    where = region_of(record, region)
    if priced.usd_per_hour is None:
        return None, "the first record has no price"
    if priced.scaled:
        return None, "the first record's hosts are priced at a share of their types, and no instance is a share of one"
    family = next((name for name in priced.hosts if known.type(name).gpus), None)
    if family is None:
        return None, "the first record's hosts have no GPU"
    profile, stood_in = profile_for(record, known.type(family).gpu, known)
    note = f"the single instance is predicted from {record.name}: CPU and accelerator seconds a sample as there"
    note += f"; {stood_in}" if stood_in else ""
    bounds = Bounds(cast(str, where), families=(known.type(family).family,), max_gpu_hosts=1, max_cpu_hosts=0)
    return plan(profile, known, bounds)[0], note


def profile_for(record: RunRecord, gpu: str | None, known: Catalog) -> tuple[Profile, str]:
    """A record's profile with a figure for a GPU: where another trained, that one's, and a line that says so."""
    profile = profile_of_record(record, known)
    if gpu in profile.accelerator_s_per_sample:
        return profile, ""
    (other, figure), *_ = profile.accelerator_s_per_sample.items()
    # its efficiency goes with it: both say what those ranks did
    profile = profile.model_copy(update={"accelerator_s_per_sample": {gpu: figure}, "cores_shared_with": None})
    efficiency = min(profile.efficiency.value, 1.0)
    return (
        profile,
        f"its ranks stood in for {gpu} GPUs, with an efficiency of {efficiency:.0%}: they trained on "
        f"{'a CPU' if other == TRAINED_ON_CPU else other}",
    )


def curve_of(
    record: RunRecord, comparison: Comparison, known: Catalog
) -> tuple[str, list[Prediction], list[tuple[int, Column]]] | None:
    """What CPU hosts beside the first column's GPU hosts would cost, predicted from its record, and what they did.

    Returns:
        A CPU type, predictions with 0, 1, 2 … of its hosts, and (its hosts, column) of every column that was measured
        with just those GPU hosts; None without prices or GPUs.
    """
    first = comparison.columns[0]
    gpus = [name for name in first.hosts if name in known.types and known.type(name).gpus]
    if len(gpus) != 1 or not any(column.predicted for column in comparison.columns):
        return None
    gpu_type, gpu_hosts = gpus[0], first.hosts[gpus[0]]
    measured = [
        column for column in comparison.columns if not column.predicted and column.hosts.get(gpu_type) == gpu_hosts
    ]
    others = [name for column in measured for name in column.hosts if name != gpu_type]
    profile, _ = profile_for(record, known.type(gpu_type).gpu, known)
    most = max([hosts for column in measured for name, hosts in column.hosts.items() if name != gpu_type], default=0)
    where = cast(str, comparison.region)  # there are prices
    found = plan(profile, known, Bounds(where, max_gpu_hosts=gpu_hosts, max_cpu_hosts=most + CURVE_HOSTS))
    others = [name for name in others if name in {each.name for each in found.cpus.types}]
    if not others and found.best_with_cpu_hosts is not None:
        others = [found.best_with_cpu_hosts.shape.cpu_hosts[0][0]]
    if not others:
        return None
    points = [
        (column.hosts.get(others[0], 0), column) for column in measured if set(column.hosts) <= {gpu_type, others[0]}
    ]
    return others[0], found.curve(gpu_type, others[0], gpu_hosts), points


def predicted_column(single: Prediction, record: RunRecord, num_gpus: int) -> Column:
    return Column(
        name=f"best single {single.shape.gpu_type.split('.')[1]}",
        predicted=True,
        hosts={single.shape.gpu_type: 1},
        step_s=_samples_per_batch(record) * num_gpus / single.samples_per_s,
        samples_per_s=single.samples_per_s,
        wait_share=None,
        startup_s=_startup_there(record),
        **_money(single.usd_per_hour, single.samples_per_s, record.num_train, _startup_there(record)),
    )


def against(first: Column, column: Column) -> Column:
    """A column with its ratios to the first one.

    A sample costs price / speed, so that samples a dollar are speed / price: the column is cheaper where it is faster
    than its price is higher, and even where speed-up and price ratio are equal.
    """
    speedup = column.samples_per_s / first.samples_per_s
    if column.usd_per_hour is None or first.usd_per_hour is None:
        return replace(column, speedup=speedup)
    ratio = column.usd_per_hour / first.usd_per_hour
    return replace(column, speedup=speedup, break_even=ratio, price_efficiency=speedup / ratio - 1)
