"""Tables of what things cost: comparisons, plans, profiles."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from raytrain.cost.compare import Column, Comparison
from raytrain.cost.instances import Catalog, Price
from raytrain.cost.planner import Plan, Prediction
from raytrain.cost.profile import TRAINED_ON_CPU, Figure, Profile


def comparison_rows(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """(what, its value in each column) of a comparison, in the order of reading."""
    rows = [("", [column.name + (" (predicted)" if column.predicted else "") for column in comparison.columns])]
    for what, value in (
        ("hosts", lambda c: hosts_text(c.hosts)),
        ("step time", lambda c: f"{c.step_s * 1e3:,.1f} ms"),
        ("samples/s", lambda c: f"{c.samples_per_s:,.1f}"),
        ("waiting for data", lambda c: share(c.wait_share)),
        ("CPU busy", lambda c: _busy(c.cpu_busy)),
        ("GPU busy", lambda c: _busy(c.gpu_busy)),
        ("price per hour", lambda c: usd(c.usd_per_hour, 3)),
        ("per million samples", lambda c: usd(c.usd_per_million_samples, 2)),
        ("per epoch", lambda c: usd(c.usd_per_epoch, 4)),
        ("start-up", lambda c: _startup(c)),
        ("speed-up", lambda c: f"{c.speedup:.2f}x"),
        ("break-even speed-up", lambda c: "-" if c.break_even is None else f"{c.break_even:.2f}x"),
        ("price efficiency", lambda c: "-" if c.price_efficiency is None else f"{c.price_efficiency:+.0%}"),
        ("a sample's cost", lambda c: _against(c)),
    ):
        rows.append((what, [value(column) for column in comparison.columns]))
    return rows


def show_comparison(comparison: Comparison, known: Catalog, console: Console) -> None:
    (_, names), *rows = comparison_rows(comparison)
    table = Table(title="What a sample costs", title_justify="left")
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    for what, values in rows:
        table.add_row(what, *values)
    console.print(table)
    for line in (*comparison.notes, *price_lines(comparison.prices, known)):
        console.print(line, markup=False, highlight=False)


def show_plan(plan: Plan, known: Catalog, console: Console, count: int = 10) -> None:
    console.print(_predictions(f"The best {min(count, len(plan))} of {len(plan):,} shapes", plan.best(count)))
    front = plan.front()
    title = f"Nothing is both faster and cheaper than these {min(count, len(front))} of {len(front)}"
    console.print(_predictions(title, front[:count]))
    for line in plan_lines(plan, known):
        console.print(line, markup=False, highlight=False)


def plan_lines(plan: Plan, known: Catalog) -> list[str]:
    """The verdict, what is assumed, and where prices are from."""
    shown = {name for each in (*plan.best(10), *plan.front()) for name in _types(each)}
    return [
        verdict(plan),
        *(f"assumed: {line}" for line in plan.assumptions),
        *price_lines([price for price in plan.prices if price.type in shown], known),
    ]


def verdict(plan: Plan) -> str:
    """Whether CPU hosts pay, in one line."""
    without, with_hosts = plan.best_without_cpu_hosts, plan.best_with_cpu_hosts
    if without is None or with_hosts is None:
        return "only shapes " + ("with" if without is None else "without") + " CPU hosts are within the limits"
    if without.usd <= with_hosts.usd:
        more = with_hosts.usd / without.usd - 1
        return (
            f"CPU hosts do not pay: {without.shape} is the cheapest, ${without.usd:.2f} for the job; with CPU hosts it "
            f"costs at least {more:.1%} more ({with_hosts.shape})"
        )
    saved = 1 - with_hosts.usd / without.usd
    return (
        f"CPU hosts pay: {with_hosts.shape} costs ${with_hosts.usd:.2f} for the job, {saved:.1%} less than the best "
        f"without ({without.shape}, ${without.usd:.2f})"
    )


def _types(prediction: Prediction) -> list[str]:
    return [prediction.shape.gpu_type, *(name for name, _ in prediction.shape.cpu_hosts)]


def _predictions(title: str, found: list[Prediction]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in ("", "shape", "samples/s", "limited by", "$/hour", "$/million", "hours", "$ in all"):
        table.add_column(name, justify="left" if name in ("shape", "limited by") else "right")
    for number, each in enumerate(found, start=1):
        money = (
            f"{each.usd_per_hour:.3f}",
            f"{each.usd_per_million_samples:.2f}",
            _hours(each.hours),
            f"{each.usd:.2f}",
        )
        table.add_row(str(number), str(each.shape), f"{each.samples_per_s:,.0f}", each.limit, *money)
    return table


def _hours(hours: float) -> str:
    return f"{hours:.2f}" if hours < 100 else f"{hours:,.0f}"


def profile_rows(profile: Profile) -> list[tuple[str, Figure, str]]:
    """(what, figure, unit) of a profile."""
    rows = [(f"a vCPU for a sample ({kind})", figure, "ms") for kind, figure in profile.cpu_s_per_sample.items()]
    if profile.cpu_s_per_sample_alone:
        rows.append(("the same, the others idle", profile.cpu_s_per_sample_alone, "ms"))
    if profile.read_wait_s_per_sample:
        rows.append(("waiting for storage, a sample", profile.read_wait_s_per_sample, "ms"))
    for kind, figure in profile.accelerator_s_per_sample.items():
        who = "a rank" if kind == TRAINED_ON_CPU else "an accelerator"
        rows.append((f"{who} for a sample ({kind})", figure, "ms"))
    return [
        *rows,
        ("from CPU host to rank, a sample", profile.wire_bytes_per_sample, "B"),
        ("from storage, a sample", profile.read_bytes_per_sample, "B"),
        ("start-up", profile.startup_s, "s"),
        ("efficiency of the whole", profile.efficiency, "%"),
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
    return " + ".join(f"{count} x {name}" for name, count in hosts.items()) or "-"


def share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def usd(value: float | None, digits: int) -> str:
    return "-" if value is None else f"${value:,.{digits}f}"


def _busy(busy: dict[str, float]) -> str:
    return "\n".join(f"{host} {value:.0%}" for host, value in busy.items()) or "-"


def _against(column: Column) -> str:
    """Of a sample, against the first column's."""
    return "-" if column.price_efficiency is None else f"{1 / (1 + column.price_efficiency) - 1:+.0%}"


def _startup(column: Column) -> str:
    if column.startup_s is None:
        return "-"
    money = "" if column.startup_usd is None else f", {usd(column.startup_usd, 4)}"
    return f"{column.startup_s:.1f} s{money}"
