"""One self-contained page about runs, or about a plan: tables, and charts that need no network."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from raytrain import __version__
from raytrain.cost.compare import Comparison
from raytrain.cost.instances import Catalog
from raytrain.cost.planner import Plan, Prediction
from raytrain.errors import ConfigError
from raytrain.record import RunRecord
from raytrain.report.charts import Chart, plan_charts, run_charts
from raytrain.report.costs import comparison_rows, price_lines, profile_rows
from raytrain.report.fitting import number
from raytrain.report.plans import answer, plan_lines

TEMPLATE = Path(__file__).with_name("page.html.j2")
PACKAGES = ("raytrain", "ray", "torch", "timm", "python")  # whose versions come first


@dataclass(frozen=True)
class PageTable:
    """Attributes: `text`: numbers of the columns that hold text, the first apart."""

    title: str
    head: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    text: tuple[int, ...] = ()


def write_report(records: list[RunRecord], comparison: Comparison, known: Catalog, path: Path) -> None:
    """A page about runs.

    Raises:
        ConfigError: it cannot be written, or what draws it is not installed.
    """
    (_, names), *rows = comparison_rows(comparison)
    measured = [column.name for column in comparison.columns if not column.predicted]
    tables = [
        PageTable("Comparison", ["", *names], [[what, *values] for what, values in rows], list(comparison.notes)),
        _stages(records, measured),
        _hosts(records, measured),
    ]
    _write(
        path,
        title=" and ".join(measured) if len(measured) < 4 else f"{len(measured)} runs",
        lead=_lead(comparison),
        tables=[table for table in tables if table.rows],
        charts=run_charts(records, measured, comparison, known),
        facts=[*_facts(records, measured), *price_lines(comparison.prices, known)],
    )


def write_plan(plan: Plan, known: Catalog, path: Path) -> None:
    """A page about a plan.

    Raises:
        ConfigError: as `write_report`.
    """
    profile = plan.profile
    measured = [
        [what, *(f"{value:.6g}" for value in (figure.value, figure.low, figure.high)), _UNITS[unit]]
        for what, figure, unit in profile_rows(profile)
    ]
    best, front = plan.best(10), plan.front()[:20]
    estimates = ", estimates" if profile.estimated else ""
    tables = [
        _predictions(f"The best {len(best)} of {len(plan):,} shapes{estimates}", best),
        _predictions(f"Nothing is both faster and cheaper than these{estimates}", front),
        PageTable("What it is predicted from", ["", "median", "lowest", "highest", "unit"], measured, text=(4,)),
    ]
    facts = [
        f"{profile.num_samples:,} samples an epoch, {profile.epochs:g} epochs",
        f"measured on {profile.hardware}, {profile.measured_at}, by {profile.source}",
        *plan_lines(plan, known, [*best, *front]),
    ]
    charts = plan_charts(plan)
    _write(path, title=f"Plan for {profile.name}", lead=answer(plan), tables=tables, charts=charts, facts=facts)


_UNITS = {"ms": "s", "s": "s", "%": "share", "B": "bytes"}


def _lead(comparison: Comparison) -> list[str]:
    """What the comparison comes to, in a line a column."""
    lines = []
    first, *others = comparison.columns
    for column in others:
        word = "is predicted at" if column.predicted else "has"
        if column.price_efficiency is None:
            lines.append(f"{column.name} {word} {column.speedup:.2f} times the samples a second of {first.name}")
        else:
            kind = "more" if column.price_efficiency >= 0 else "fewer"
            lines.append(
                f"{column.name} {word} {abs(column.price_efficiency):.0%} {kind} samples a dollar than {first.name}: "
                f"{column.speedup:.2f} times as fast at {column.break_even:.2f} times the price"
            )
    return lines


def _stages(records: list[RunRecord], names: list[str]) -> PageTable:
    rows = [
        [
            name,
            stage.name,
            f"{stage.cpu_s_per_sample * 1e3:.3f}",
            f"{stage.wall_s_per_sample * 1e3:.3f}",
            f"{stage.cpu_s:,.2f}",
            f"{stage.wall_s:,.2f}",
            f"{stage.num_samples:,}",
        ]
        for name, record in zip(names, records, strict=True)
        for stage in record.stages
    ]
    head = ["run", "stage", "CPU ms a sample", "wall ms a sample", "CPU seconds", "wall seconds", "samples"]
    return PageTable("CPU stages", head, rows, text=(1,))


def _hosts(records: list[RunRecord], names: list[str]) -> PageTable:
    rows = []
    for name, record in zip(names, records, strict=True):
        for host in record.hosts:
            kind = host.instance_type or ("emulated" if host.emulated else "-")
            rows.append([name, host.name, kind, f"{host.cpus:g}", f"{host.gpus:g}", f"{host.samples_prepared:,}"])
    head = ["run", "host", "type", "CPUs", "GPUs", "samples prepared"]
    return PageTable("Hosts", head, rows, text=(1, 2))


def _predictions(title: str, found: list[Prediction]) -> PageTable:
    rows = [
        [
            str(each.shape),
            number(each.samples_per_s, least=0),
            each.limit,
            f"${number(each.usd_per_hour, least=3)}",
            f"${number(each.usd_per_million_samples)}",
            number(each.hours, least=0),
            f"${number(each.usd)}",
        ]
        for each in found
    ]
    head = ["shape", "samples/s", "limited by", "an hour", "a million samples", "hours", "in all"]
    return PageTable(title, head, rows, text=(2,))


def _facts(records: list[RunRecord], names: list[str]) -> list[str]:
    lines = []
    for name, record in zip(names, records, strict=True):
        hardware = record.hardware
        gpus = f", {', '.join(hardware.gpus)}" if hardware.gpus else ", no GPU"
        first = [package for package in PACKAGES if package in record.versions]
        rest = sorted(set(record.versions) - set(first))
        versions = ", ".join(f"{package} {record.versions[package]}" for package in (*first, *rest))
        lines += [
            f"{name}: {record.status}, started {record.started_at}, {record.totals.samples:,} samples, "
            f"{record.totals.wall_s:.1f} s in all; bottleneck: {record.totals.bottleneck}",
            f"{name}: {hardware.cpu_cores} x {hardware.cpu_model}, {hardware.memory_bytes / 2**30:.0f} GiB{gpus}, "
            f"{hardware.platform}",
            f"{name}: {versions}",
        ]
        if any(host.emulated for host in record.hosts):
            lines.append(f"{name}: its {len(record.hosts)} nodes are emulated on one machine")
    return lines


def _write(
    path: Path, *, title: str, lead: list[str], tables: list[PageTable], charts: list[Chart], facts: list[str]
) -> None:
    try:
        from jinja2 import Environment, StrictUndefined
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ConfigError(f"pages need {error.name}: pip install 'raytrain[report]'") from None
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(
        TEMPLATE.read_text(encoding="utf-8")
    )
    text = template.render(
        title=title,
        lead=lead,
        tables=tables,
        charts=charts,
        charts_json=_json([{"data": chart.data, "layout": chart.layout} for chart in charts]),
        facts=facts,
        plotly=get_plotlyjs(),
        version=__version__,
        written=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the page cannot be written to {path}: {error.strerror}") from None


def _json(tree: Any) -> str:
    """JSON that cannot end the script element that it stands in."""
    return json.dumps(tree, allow_nan=False).replace("<", "\\u003c")
