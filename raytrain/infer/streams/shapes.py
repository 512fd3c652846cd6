"""Which cores each stream of a host has."""

from __future__ import annotations

from collections.abc import Sequence

from raytrain.config.inference import Objective, Streams
from raytrain.errors import ConfigError
from raytrain.infer.contract import StreamShape
from raytrain.infer.streams.topology import Core, CpuTopology

Pool = list[Core]  # cores of one kind that share a node, or several nodes where a stream is larger than one


def plan_streams(
    topology: CpuTopology, streams: Streams, objective: Objective, spared: int = 0
) -> tuple[StreamShape, ...]:
    """Disjoint sets of physical cores. A stream crosses NUMA nodes only where it is larger than one.

    What is left out follows from the objective. Throughput: as many streams as there are cores, or as fit of the size
    asked for. Latency: one stream a node, with all of its cores of the fastest kind.

    Args:
        spared: physical cores to leave to the rest of the host, the slowest ones and from the largest nodes.

    Raises:
        ConfigError: they do not fit, or cores have no second hardware thread.
    """
    pools = _pools(topology, streams.threads_per_core, spared)
    said = _said(topology, pools, spared)
    several = len(topology.nodes) > 1
    if objective == "latency" and streams.count is None:
        fastest = [pool for pool in pools if pool[0].fast == pools[0][0].fast]
        if (streams.cores or 1) <= max(map(len, fastest)):
            pools = fastest
        if streams.cores is None:
            return tuple(_shape(cores, streams.threads_per_core, several) for cores in pools)
    chosen = _cut(pools, streams, objective, said)
    return tuple(_shape(cores, streams.threads_per_core, several) for cores in chosen)


def left_over(topology: CpuTopology, shapes: Sequence[StreamShape]) -> tuple[int, ...]:
    """CPUs for the rest of the host: of cores that no stream has; all where the streams have every core."""
    taken = {cpu for shape in shapes for cpu in shape.cpus}
    return topology.without(taken).cpus or topology.cpus


def _pools(topology: CpuTopology, threads_per_core: int, spared: int) -> list[Pool]:
    """Cores that streams may have, by node and kind, the fastest kind first."""
    cores = list(topology.cores)
    if threads_per_core > 1 and cores and all(len(core.cpus) == 1 for core in cores):
        raise ConfigError(
            f"inference.streams.threads_per_core is {threads_per_core}, but the cores of this host have one hardware "
            "thread each"
        )
    granted = len(cores)
    if topology.quota is not None:
        granted = min(granted, -(-topology.quota // threads_per_core))
    if spared >= granted:
        raise ConfigError(
            f"of {granted} physical cores that may be used on this host {spared} are for preprocessing: none is left "
            "for a stream"
        )
    keys = dict.fromkeys(sorted((not core.fast, core.node) for core in cores))
    pools = [[core for core in cores if (not core.fast, core.node) == key] for key in keys]
    for _ in range(len(cores) - granted + spared):
        slowest = [pool for pool in pools if pool and not pool[0].fast] or pools
        max(reversed(slowest), key=len).pop()  # of equals the last
    return [pool for pool in pools if pool]


def _cut(pools: list[Pool], streams: Streams, objective: Objective, said: str) -> list[Pool]:
    """Cores of each stream, all of one size."""
    total = sum(map(len, pools))
    count, size = streams.count, streams.cores
    if size is None:
        if count is None:
            size = 1
        elif count > total:
            raise ConfigError(f"inference.streams: {count} streams need a physical core each, and {said}")
        else:
            pools = _merged(pools, len(pools) // count)
            size = max(n for n in range(1, total // count + 1) if _fitting(pools, n) >= count)
    elif size > max(map(len, pools)):
        pools = [[core for pool in pools for core in pool]]
    fitting = _fitting(pools, size)
    if count is None:
        first = 1 if objective == "latency" else None  # one stream a node
        found = [cores for pool in pools for cores in _pieces(pool, size)[:first]]
        count = max(len(found), 1)
    else:
        found = [cores for pool in pools for cores in _pieces(pool, size)]
        if objective == "latency":  # their own node each, as far as there are nodes
            found = _in_turn([_pieces(pool, size) for pool in pools])
    if fitting < count:
        raise ConfigError(
            f"inference.streams: {_named(count, 'stream')} of {_named(size, 'core')} need {count * size} physical "
            f"ones, and {said}" + (f"; without crossing nodes {fitting} fit" if count * size <= total else "")
        )
    return found[:count]


def _merged(pools: list[Pool], each: int) -> list[Pool]:
    """So many whole pools as one; all of them as one where what is left over would not make another."""
    if each < 2:
        return pools
    ends = [*range(each, len(pools) - each + 1, each), len(pools)]
    return [
        [core for pool in pools[start:end] for core in pool] for start, end in zip([0, *ends[:-1]], ends, strict=True)
    ]


def _fitting(pools: list[Pool], size: int) -> int:
    return sum(len(pool) // size for pool in pools)


def _pieces(pool: Pool, size: int) -> list[Pool]:
    """Neighbours together: they share the last cache where they can."""
    return [pool[start : start + size] for start in range(0, len(pool) - size + 1, size)]


def _in_turn(pieces: list[list[Pool]]) -> list[Pool]:
    """The first of each, then the second of each."""
    rounds = range(max(map(len, pieces), default=0))
    return [own[number] for number in rounds for own in pieces if number < len(own)]


def _shape(cores: Pool, threads_per_core: int, several_nodes: bool) -> StreamShape:
    cpus = tuple(sorted(cpu for core in cores for cpu in core.cpus[:threads_per_core]))
    nodes = {core.node for core in cores}
    return StreamShape(cpus, len(cpus), nodes.pop() if several_nodes and len(nodes) == 1 else None)


def _named(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number > 1 else ''}"


def _said(topology: CpuTopology, pools: list[Pool], spared: int) -> str:
    """How many cores there are, for a message."""
    parts = [f"{len(topology.cores)} on this host"]
    if topology.quota is not None:
        parts.append(f"a quota of {topology.quota} CPUs")
    if spared:
        parts.append(f"{spared} spared for preprocessing")
    return f"{sum(map(len, pools))} may be used ({', '.join(parts)})"
