"""The CPUs of a host as Linux tells them: NUMA nodes, sockets, physical cores and their hardware threads, caches."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from raytrain.cluster.hardware import usable_cpus

SYSTEM = Path("/sys/devices/system")
AS_FAST = 0.9  # of the fastest core: favoured cores of one kind are within a few percent, E cores at 0.65 to 0.8
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True)
class Cache:
    """A cache that holds data.

    Attributes:
        cpus: that share it, of those that this process may use.
    """

    level: int
    size_bytes: int
    cpus: tuple[int, ...]


@dataclass(frozen=True)
class Core:
    """A physical core.

    Attributes:
        cpus: its hardware threads, ascending, those that this process may use.
        l3: the lowest CPU of those that share its last cache; its own where the system says nothing of caches.
        fast: whether it is of the fastest kind of the host; all are where there is one kind.
    """

    cpus: tuple[int, ...]
    node: int = 0
    socket: int = 0
    l3: int = 0
    fast: bool = True


@dataclass(frozen=True)
class CpuTopology:
    """What this process may use of a host.

    Attributes:
        cores: by node, kind (fast ones first), last cache and number.
        quota: CPUs that it may keep busy at a time, where a cgroup grants fewer than it lets use.
    """

    cores: tuple[Core, ...]
    caches: tuple[Cache, ...] = ()
    quota: int | None = None

    @property
    def cpus(self) -> tuple[int, ...]:
        return tuple(sorted(cpu for core in self.cores for cpu in core.cpus))

    @property
    def nodes(self) -> tuple[int, ...]:
        return tuple(sorted({core.node for core in self.cores}))

    @property
    def sockets(self) -> tuple[int, ...]:
        return tuple(sorted({core.socket for core in self.cores}))

    def without(self, cpus: Iterable[int]) -> CpuTopology:
        """But for the cores that have one of these CPUs, and what they use of the quota."""
        gone = set(cpus)
        left = tuple(core for core in self.cores if gone.isdisjoint(core.cpus))
        quota = None if self.quota is None else max(self.quota - len(gone), 0)
        return CpuTopology(left, self.caches, quota)


def read_topology(root: Path = SYSTEM, allowed: Collection[int] | None = None, quota: int | None = None) -> CpuTopology:
    """
    Args:
        root: where `cpu/` and `node/` lie.
        allowed: CPUs to restrict it to; default: those of this process (affinity, and with it its cpuset).
        quota: CPUs that may be busy at a time; default: by this process's cgroups, where `allowed` is left out.
    """
    if allowed is None:
        allowed, quota = os.sched_getaffinity(0), usable_cpus() if quota is None else quota
    online = _online(root / "cpu")
    cpus = sorted(set(allowed) & online) or sorted(allowed)  # a sandbox without /sys has CPUs nevertheless
    nodes = _nodes(root / "node")
    caches = _caches(root / "cpu", cpus)
    speeds = {cpu: _speed(root / "cpu" / f"cpu{cpu}") for cpu in cpus}
    fastest = max(speeds.values(), default=0.0)
    last = {cpu: cache.cpus[0] for cache in sorted(caches, key=lambda one: one.level) for cpu in cache.cpus}
    cores, seen = [], set[int]()
    for cpu in cpus:
        if cpu in seen:
            continue
        folder = root / "cpu" / f"cpu{cpu}" / "topology"
        siblings = _cpus_in(folder / "core_cpus_list") or _cpus_in(folder / "thread_siblings_list")
        threads = tuple(sorted(({*siblings, cpu} & set(cpus)) - seen))
        seen |= {*threads}
        socket = max(_number(folder / "physical_package_id", 0), 0)  # some systems say -1
        fast = speeds[cpu] >= AS_FAST * fastest
        cores.append(Core(threads, nodes.get(cpu, 0), socket, last.get(cpu, cpu), fast))
    cores.sort(key=lambda core: (core.node, not core.fast, core.l3, core.cpus))
    limited = quota if quota is not None and quota < len(cpus) else None
    return CpuTopology(tuple(cores), caches, limited)


def as_ranges(cpus: Iterable[int]) -> str:
    """As Linux writes lists of CPUs: 0-3,8."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and cpu == runs[-1][-1] + 1:
            runs[-1].append(cpu)
        else:
            runs.append([cpu])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def from_ranges(text: str) -> tuple[int, ...]:
    """The CPUs of such a list; none of what is no list."""
    found: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        if not (first.isdigit() and (last or first).isdigit()):
            return ()
        found += range(int(first), int(last or first) + 1)
    return tuple(found)


def _online(folder: Path) -> set[int]:
    listed = {*_cpus_in(folder / "online")}
    if listed:
        return listed
    return {int(path.name[3:]) for path in folder.glob("cpu[0-9]*") if path.name[3:].isdigit()}


def _nodes(folder: Path) -> dict[int, int]:
    """CPU -> NUMA node."""
    found: dict[int, int] = {}
    for path in folder.glob("node[0-9]*"):
        if path.name[4:].isdigit():
            found |= dict.fromkeys(_cpus_in(path / "cpulist"), int(path.name[4:]))
    return found


def _caches(folder: Path, cpus: list[int]) -> tuple[Cache, ...]:
    """Those of level 2 and more, each once."""
    found = set()
    for cpu in cpus:
        for path in (folder / f"cpu{cpu}" / "cache").glob("index[0-9]*"):
            sharing = tuple(sorted({*_cpus_in(path / "shared_cpu_list")} & set(cpus)))
            level = _number(path / "level", 0)
            if level >= 2 and sharing and _text(path / "type") != "Instruction":
                found.add(Cache(level, _bytes(_text(path / "size")), sharing))
    return tuple(sorted(found, key=lambda cache: (cache.level, cache.cpus)))


def _speed(folder: Path) -> float:
    """What tells kinds of cores apart: Linux's capacity of Arm systems, or the highest frequency; 0 for unknown."""
    return float(_number(folder / "cpu_capacity", 0) or _number(folder / "cpufreq" / "cpuinfo_max_freq", 0))


def _bytes(text: str) -> int:
    """Of `1024K`."""
    digits, unit = text.rstrip("KMG"), text[-1:]
    return int(digits) * UNITS.get(unit, 1) if digits.isdigit() else 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:  # a virtual machine may have none of it, and an offline CPU has not
        return ""


def _cpus_in(path: Path) -> tuple[int, ...]:
    return from_ranges(_text(path))


def _number(path: Path, otherwise: int) -> int:
    try:
        return int(_text(path))
    except ValueError:
        return otherwise
