"""`raytrain cpu-topology`: the cores of this host, and the streams that prediction starts on them."""

from __future__ import annotations

import json
from typing import Any

import typer

from raytrain.cli.options import Json
from raytrain.config.inference import Objective, Streams
from raytrain.infer.contract import StreamShape
from raytrain.infer.streams.shapes import plan_streams
from raytrain.infer.streams.topology import Core, CpuTopology, as_ranges, read_topology
from raytrain.report.fitting import Column, show_fitted

OBJECTIVES: tuple[Objective, ...] = ("throughput", "latency")
MOST_SHOWN = 16  # streams whose CPUs are named
COLUMNS = [
    Column("node"),
    Column("socket"),
    Column("kind", leave=2, right=False),
    Column("cores"),
    Column("hardware threads", right=False),
    Column("L2", leave=1, right=False),
    Column("L3", leave=1, right=False),
]

app = typer.Typer()


@app.command(epilog="Example: raytrain cpu-topology --json")
def cpu_topology(as_json: Json = False) -> None:
    """Show the cores of this host that may be used, and the streams that prediction starts on them."""
    from raytrain.report.terminal import terminal

    topology = read_topology()
    planned = {objective: plan_streams(topology, Streams(), objective) for objective in OBJECTIVES}
    if as_json:
        typer.echo(json.dumps(_tree(topology, planned), indent=1))
        return
    console = terminal(standard_output=True)
    typer.echo(f"{len(topology.cores)} physical cores, {len(topology.cpus)} hardware threads that may be used")
    show_fitted("", COLUMNS, _rows(topology), console, "a wider terminal or --json has them")
    if topology.quota is not None:
        typer.echo(f"a quota of its container leaves {topology.quota} of them busy at a time")
    for objective, shapes in planned.items():
        typer.echo(f"{objective}: {_streams(shapes)}")


def _rows(topology: CpuTopology) -> list[list[str]]:
    """A row for all cores that share node, socket, kind and last cache."""
    groups: dict[tuple[int, int, bool, int], list[Core]] = {}
    for core in topology.cores:
        groups.setdefault((core.node, core.socket, core.fast, core.l3), []).append(core)
    kinds = len({core.fast for core in topology.cores}) > 1
    if not any(cache.level == 3 for cache in topology.caches):  # else each core would have a row
        groups = {}
        for core in topology.cores:
            groups.setdefault((core.node, core.socket, core.fast, 0), []).append(core)
    return [
        [
            str(node),
            str(socket),
            ("fast" if fast else "slow") if kinds else "-",
            str(len(cores)),
            _threads(cores),
            *(_cache(topology, cores, level) for level in (2, 3)),
        ]
        for (node, socket, fast, _), cores in groups.items()
    ]


def _threads(cores: list[Core]) -> str:
    """The first thread of each core, then the second of each: `0-7 + 8-15`."""
    most = max(len(core.cpus) for core in cores)
    return " + ".join(as_ranges(core.cpus[n] for core in cores if n < len(core.cpus)) for n in range(most))


def _cache(topology: CpuTopology, cores: list[Core], level: int) -> str:
    """Number and size of those that some cores have: `8 x 1 MiB`."""
    cpus = {cpu for core in cores for cpu in core.cpus}
    found = [cache for cache in topology.caches if cache.level == level and cpus.intersection(cache.cpus)]
    sizes = {cache.size_bytes for cache in found}
    named = " / ".join(f"{size / (1 << 20):g} MiB" for size in sorted(sizes))
    return f"{len(found)} x {named}" if found else "-"


def _streams(shapes: tuple[StreamShape, ...]) -> str:
    cores = sorted({len(shape.cpus) for shape in shapes})
    sizes = " or ".join(map(str, cores)) + (" core" if cores == [1] else " cores")
    shown = " | ".join(as_ranges(shape.cpus) for shape in shapes[:MOST_SHOWN])
    more = " | …" if len(shapes) > MOST_SHOWN else ""
    return f"{len(shapes)} stream{'s' if len(shapes) > 1 else ''} of {sizes}, CPUs {shown}{more}"


def _tree(topology: CpuTopology, planned: dict[Objective, tuple[StreamShape, ...]]) -> dict[str, Any]:
    """For a program to read."""
    from dataclasses import asdict

    return {
        **asdict(topology),
        "streams": {objective: [asdict(shape) for shape in shapes] for objective, shapes in planned.items()},
    }
