"""Folders as Linux shows the CPUs of a host in /sys/devices/system."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from raytrain.infer.streams.topology import as_ranges

Places = Mapping[int, tuple[int, int, int]]  # CPU -> core, socket, node


def host(
    root: Path,
    places: Places,
    *,
    offline: Collection[int] = (),
    capacity: Mapping[int, int] | None = None,
    frequency: Mapping[int, int] | None = None,
    l3: int = 16,
) -> Path:
    """
    Args:
        places: the core's number is counted anew in each socket.
        capacity, frequency: by CPU, as `cpu_capacity` and `cpuinfo_max_freq` have it.
        l3: MiB of a socket.
    """
    on = [cpu for cpu in places if cpu not in offline]
    _write(root / "cpu" / "online", as_ranges(on))
    for cpu in places:
        folder = root / "cpu" / f"cpu{cpu}"
        folder.mkdir(parents=True)
        if cpu in offline:
            continue
        core, socket, _ = places[cpu]
        siblings = [other for other in on if places[other][:2] == (core, socket)]
        of_socket = [other for other in on if places[other][1] == socket]
        _write(folder / "topology" / "core_id", core)
        _write(folder / "topology" / "physical_package_id", socket)
        _write(folder / "topology" / "thread_siblings_list", as_ranges(siblings))
        caches = [(1, "Data", "32K", siblings), (1, "Instruction", "32K", siblings)]
        caches += [(2, "Unified", "1024K", siblings), (3, "Unified", f"{l3}M", of_socket)]
        for number, (level, kind, size, sharing) in enumerate(caches):
            values = {"level": level, "type": kind, "size": size, "shared_cpu_list": as_ranges(sharing)}
            for name, value in values.items():
                _write(folder / "cache" / f"index{number}" / name, value)
        if capacity:
            _write(folder / "cpu_capacity", capacity[cpu])
        if frequency:
            _write(folder / "cpufreq" / "cpuinfo_max_freq", frequency[cpu])
    for node in {place[2] for place in places.values()}:
        _write(root / "node" / f"node{node}" / "cpulist", as_ranges(cpu for cpu in on if places[cpu][2] == node))
    return root


def two_sockets(root: Path) -> Path:
    """2 sockets x 4 cores x 2 threads, a NUMA node each."""
    return host(root, {cpu: (cpu % 4, cpu % 8 // 4, cpu % 8 // 4) for cpu in range(16)})


def c5_4xlarge(root: Path) -> Path:
    """8 cores x 2 threads."""
    return host(root, {cpu: (cpu % 8, 0, 0) for cpu in range(16)}, l3=36)


def hybrid(root: Path) -> Path:
    """2 P cores x 2 threads, one of which may clock a little higher, and 4 E cores, in kHz."""
    frequency = {0: 5_200_000, 1: 5_200_000, 2: 5_000_000, 3: 5_000_000, **dict.fromkeys(range(4, 8), 3_900_000)}
    return host(root, {cpu: (cpu // 2 if cpu < 4 else cpu, 0, 0) for cpu in range(8)}, frequency=frequency)


def _write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{value}\n")
