"""One self-contained page about runs, or about a plan: tables and charts, without a library and without network."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from raytrain import __version__
from raytrain.cost.compare import Comparison
from raytrain.cost.instances import Catalog
from raytrain.cost.planner import Plan, Prediction
from raytrain.errors import ConfigError
from raytrain.record.schema import RunRecord, of_device_stages
from raytrain.report.costs import comparison_rows, price_lines, profile_rows
from raytrain.report.fitting import number
from raytrain.report.pages.charts import cost_chart, epoch_charts, plan_charts, stage_bars, time_charts
from raytrain.report.pages.drawing import BarDrawing, Drawing, draw, draw_bars
from raytrain.report.places import WAYS, names_of, way_rows
from raytrain.report.plans import answer, plan_lines, time_unit
from raytrain.report.results import PageTable, epochs, left_out, results
from raytrain.run.verdict import against_gaps

TEMPLATE = Path(__file__).with_name("page.html.j2")
PACKAGES = ("raytrain", "ray", "torch", "timm", "python")  # whose versions come first


@dataclass(frozen=True)
class Section:
    """Attributes: `wide`: its charts take the page's width, one below the other, so that their axes are above each
    other."""

    title: str
    table: PageTable | None = None
    charts: list[Drawing] = field(default_factory=list)
    bars: BarDrawing | None = None
    about: str = ""
    wide: bool = False


def write_report(records: list[RunRecord], comparison: Comparison, known: Catalog, path: Path) -> None:
    """A page about runs.

    Args:
        comparison: of the records; without columns where there is nothing to compare.

    Raises:
        ConfigError: it cannot be written, or what draws it is not installed.
    """
    names = [column.name for column in comparison.columns if not column.predicted] or [each.name for each in records]
    both = list(zip(names, records, strict=True))
    cost, stages = cost_chart(records, comparison, known), stage_bars(both)
    about = "All on one time axis. Point at a chart, or go to it with the tab key and along it with the arrow keys."
    curves = [draw(chart) for chart in epoch_charts(both)]
    logged = "As logged at the end of each epoch." if curves else ""
    gone = "They could not be prepared, and no step had them."
    sections = [
        Section("Results", results(records, names, comparison)),
        *_comparison(comparison),
        Section("Epoch by epoch", epochs(records, names), curves, about=logged),
        Section("Samples left out", left_out(records, names), about=gone),
        Section("Over time", None, [draw(chart) for chart in time_charts(both)], about=about, wide=True),
        Section("CPU stages", _stages(records, names), bars=draw_bars(stages) if stages else None),
        Section("Stages on the device", _device_stages(records, names)),
        Section("Where the stages ran", _placements(records, names)),
        Section("Money", None, [draw(cost)] if cost else []),
        Section("Hosts", _hosts(records, names)),
    ]
    facts = [*_facts(records, names), *price_lines(comparison.prices, known)]
    if len(comparison.columns) < 2:
        facts += comparison.notes
    ends = [f"{name} {each.status}: {each.error.splitlines()[0]}" for name, each in both if each.error]
    title = " and ".join(names) if len(names) < 4 else f"{len(names)} runs"
    write_page(path, title=title, lead=[*ends, *_lead(comparison)], sections=sections, facts=facts)


def _comparison(comparison: Comparison) -> list[Section]:
    """None of one run that nothing is predicted beside."""
    if len(comparison.columns) < 2:
        return []
    (_, names), *rows = comparison_rows(comparison)
    table = PageTable(["", *names], [[what, *values] for what, values in rows], list(comparison.notes))
    return [Section("Comparison", table)]


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
    best, front, rows = plan.best(10), plan.front()[:20], way_rows(plan)
    estimates = ", estimates" if profile.estimated else ""
    sections = [
        Section(f"The best {len(best)} of {len(plan):,} shapes{estimates}", _predictions(best)),
        Section(f"Nothing is both faster and cheaper than these{estimates}", _predictions(front)),
        *([Section("Where stages may run", PageTable([c.name for c in WAYS], rows, text=(1,)))] if rows else []),
        Section("Time and money", None, [draw(chart) for chart in plan_charts(plan)], wide=True),
        Section(
            "What it is predicted from",
            PageTable(["", "median", "lowest", "highest", "unit"], measured, text=(4,)),
        ),
    ]
    facts = [
        f"{profile.num_samples:,} samples an epoch, {profile.epochs:g} epochs",
        f"measured on {profile.hardware}, {profile.measured_at}, by {profile.source}",
        *plan_lines(plan, known, [*best, *front]),
    ]
    write_page(path, title=f"Plan for {profile.name}", lead=answer(plan), sections=sections, facts=facts)


_UNITS = {"ms": "s", "s": "s", "%": "share", "B": "bytes"}


def _lead(comparison: Comparison) -> list[str]:
    """What the comparison comes to, in a line a column."""
    lines = []
    for column in comparison.columns[1:]:
        first = comparison.columns[0]
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
    return PageTable(head, rows, text=(1,))


def _device_stages(records: list[RunRecord], names: list[str]) -> PageTable:
    rows = [
        [name, stage, f"{samples:,}", f"{seconds / max(samples, 1) * 1e3:.3f}", f"{seconds:,.2f}"]
        for name, record in zip(names, records, strict=True)
        for stage, (samples, seconds) in of_device_stages(record.ranks).items()
    ]
    return PageTable(["run", "stage", "samples", "ms a sample", "seconds"], rows, text=(1,))


def _placements(records: list[RunRecord], names: list[str]) -> PageTable:
    rows = []
    for name, record in zip(names, records, strict=True):
        for each in record.placements:
            some = f"{', '.join(each.sometimes_on_device)} for {each.share:.0%}" if each.sometimes_on_device else ""
            there = ", ".join([*each.on_device, *([some] if some else [])])
            cores = (str(each.cpu_cores), str(each.host_cores))
            rates = (f"{each.samples_per_s:,.0f}", f"{each.samples_per_s_before:,.0f}")
            rows.append([name, f"{each.at_s:.0f}", there or "nothing", *cores, f"{each.step_s * 1e3:.3f}", *rates])
    head = [
        "run",
        "from second",
        "on the device",
        "cores of CPU hosts",
        "of training hosts",
        "step ms a sample",
        "samples/s expected",
        "as placed before",
    ]
    return PageTable(head, rows, text=(2,))


def _hosts(records: list[RunRecord], names: list[str]) -> PageTable:
    rows = []
    for name, record in zip(names, records, strict=True):
        for host in record.hosts:
            kind = host.instance_type or ("emulated" if host.emulated else "-")
            rows.append([name, host.name, kind, f"{host.cpus:g}", f"{host.gpus:g}", f"{host.samples_prepared:,}"])
    head = ["run", "host", "type", "CPUs", "GPUs", "samples prepared"]
    return PageTable(head, rows, text=(1, 2))


def _predictions(found: list[Prediction]) -> PageTable:
    unit, an_hour = time_unit(found)
    moved = any(each.on_device for each in found)
    rows = [
        [
            str(each.shape),
            number(each.samples_per_s, least=0),
            each.limit,
            f"${number(each.usd_per_hour, least=3)}",
            f"${number(each.usd_per_million_samples)}",
            number(each.hours * an_hour, least=0),
            f"${number(each.usd)}",
            *([names_of(each.on_device) if each.on_device else "-"] if moved else []),
        ]
        for each in found
    ]
    head = ["shape", "samples/s", "limited by", "an hour", "a million samples", unit, "in all"]
    return PageTable([*head, "on the device"] if moved else head, rows, text=(2, 7) if moved else (2,))


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
        if (helps := against_gaps(record.ranks)) is not None:
            lines.append(f"{name}: {helps}")
        if any(host.emulated for host in record.hosts):
            lines.append(f"{name}: its {len(record.hosts)} nodes are emulated on one machine")
    return lines


def write_page(path: Path, *, title: str, lead: list[str], sections: list[Section], facts: list[str]) -> None:
    """
    Raises:
        ConfigError: it cannot be written, or what draws it is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise ConfigError(f"pages need {error.name}: pip install 'raytrain[report]'") from None
    template = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(TEMPLATE.read_text(encoding="utf-8"))
    text = template.render(
        title=title,
        lead=lead,
        sections=[section for section in sections if _has_something(section)],
        facts=facts,
        version=__version__,
        written=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the page cannot be written to {path}: {error.strerror}") from None


def _has_something(section: Section) -> bool:
    return bool(section.charts or section.bars or (section.table and section.table.rows))
