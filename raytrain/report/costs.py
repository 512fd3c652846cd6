"""Tables of what things cost: comparisons, plans, profiles."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from raytrain.cost.compare import Column, Comparison
from raytrain.cost.instances import Catalog, Price
from raytrain.cost.profile import TRAINED_ON_CPU, Figure, Profile
from raytrain.report.fitting import number, widest

FRAME = 3  # of a column: a line and a space to each side


def comparison_rows(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """(what, its value in each column) of a comparison, in the order of reading."""
    told = any(column.gap_share is not None for column in comparison.columns)
    rows = [("", [column.name + ("\n(predicted)" if column.predicted else "") for column in comparison.columns])]
    for what, value in (
        ("hosts", lambda c: hosts_text(c.hosts)),
        ("step time", lambda c: f"{c.step_s * 1e3:,.1f} ms"),
        ("samples/s", lambda c: f"{c.samples_per_s:,.1f}"),
        ("waiting for data", lambda c: share(c.wait_share)),
        *([("GPU idle between kernels", lambda c: share(c.gap_share))] if told else []),
        ("CPU busy", lambda c: _busy(c.cpu_busy)),
        ("GPU busy", lambda c: _busy(c.gpu_busy)),
        ("price per hour", lambda c: usd(c.usd_per_hour, 3)),
        ("per million samples", lambda c: usd(c.usd_per_million_samples)),
        ("per epoch", lambda c: usd(c.usd_per_epoch)),
        ("start-up", lambda c: _startup(c)),
        ("speed-up", lambda c: f"{c.speedup:.2f}x"),
        ("break-even speed-up", lambda c: "-" if c.break_even is None else f"{c.break_even:.2f}x"),
        ("price efficiency", lambda c: "-" if c.price_efficiency is None else f"{c.price_efficiency:+.0%}"),
        ("a sample's cost", lambda c: _against(c)),
    ):
        rows.append((what, [value(column) for column in comparison.columns]))
    return rows


def show_comparison(comparison: Comparison, known: Catalog, console: Console) -> None:
    """As many runs side by side as fit, and the others below them."""
    rows = comparison_rows(comparison)
    for place, group in enumerate(_groups(rows, console.width)):
        table = Table(title=None if place else "What a sample costs", title_justify="left")
        table.add_column("", overflow="fold")
        for run in group:
            table.add_column(rows[0][1][run], justify="right", overflow="fold")
        for what, values in rows[1:]:
            table.add_row(what, *(values[run] for run in group))
        console.print(table)
    for line in (*comparison.notes, *price_lines(comparison.prices, known)):
        console.print(line, markup=False, highlight=False)


def _groups(rows: list[tuple[str, list[str]]], width: int) -> list[list[int]]:
    """Numbers of the runs of each table: none is cut, and none is left out."""
    label = widest([what for what, _ in rows]) + FRAME + 1
    groups, room = [[]], width - label
    for run in range(len(rows[0][1])):
        needs = widest([values[run] for _, values in rows]) + FRAME
        if groups[-1] and needs > room:
            groups.append([])
            room = width - label
        groups[-1].append(run)
        room -= needs
    return groups


def profile_rows(profile: Profile) -> list[tuple[str, Figure, str]]:
    """(what, figure, unit) of a profile."""
    rows = [(f"a vCPU for a sample ({kind})", figure, "ms") for kind, figure in profile.cpu_s_per_sample.items()]
    if profile.cpu_s_per_sample_alone:
        rows.append(("the same, the others idle", profile.cpu_s_per_sample_alone, "ms"))
    if profile.read_wait_s_per_sample:
        rows.append(("waiting for storage, a sample", profile.read_wait_s_per_sample, "ms"))
    for kind, figure in profile.accelerator_s_per_sample.items():
        who = "a rank" if kind == TRAINED_ON_CPU else "an accelerator"
        guess = ", estimated" if profile.estimated and kind != TRAINED_ON_CPU else ""
        rows.append((f"{who} for a sample ({kind}{guess})", figure, "ms"))
    return [
        *rows,
        ("from CPU host to rank, a sample", profile.wire_bytes_per_sample, "B"),
        ("from storage, a sample", profile.read_bytes_per_sample, "B"),
        ("start-up", profile.startup_s, "s"),
        (
            "efficiency" + (", on shared cores" if profile.cores_shared_with else " of the whole"),
            profile.efficiency,
            "%",
        ),
    ]


def figure_text(value: float, unit: str) -> str:
    return {"ms": f"{value * 1e3:,.3f} ms", "s": f"{value:,.1f} s", "%": f"{value:.0%}", "B": f"{value:,.0f} bytes"}[
        unit
    ]


def price_lines(prices: tuple[Price, ...] | list[Price], known: Catalog) -> list[str]:
    """Every price with its date and source, a line a source."""
    by_source: dict[tuple[str, str], list[str]] = {}
    for price in sorted(prices, key=lambda p: (p.source, p.type)):
        by_source.setdefault((price.source, price.region), []).append(f"{price.type} ${price.usd_per_hour:g}")
    lines = []
    for (name, region), listed in by_source.items():
        source = known.sources[name]
        lines.append(f"prices an hour in {region}: {', '.join(listed)} ({source.text}, {source.date or 'undated'})")
    return lines


def hosts_text(hosts: dict[str, int]) -> str:
    """A kind a line."""
    return "\n+ ".join(f"{count} x {name}" for name, count in hosts.items()) or "-"


def share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def usd(value: float | None, least: int = 2) -> str:
    return "-" if value is None else f"${number(value, least)}"


def _busy(busy: dict[str, float]) -> str:
    return "\n".join(f"{host} {value:.0%}" for host, value in busy.items()) or "-"


def _against(column: Column) -> str:
    """Of a sample, against the first column's."""
    return "-" if column.break_even is None else f"{column.break_even / column.speedup - 1:+.0%}"


def _startup(column: Column) -> str:
    if column.startup_s is None:
        return "-"
    money = "" if column.startup_usd is None else f", {usd(column.startup_usd)}"
    return f"{column.startup_s:.1f} s{money}"
