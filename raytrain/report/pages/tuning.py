"""A page about tuning: the grid as far as it was tried, in small multiples, and which points are worth a look."""

from __future__ import annotations

from pathlib import Path

from raytrain.cost.instances import Catalog
from raytrain.infer.contract import Setting
from raytrain.infer.tune.pareto import Rate
from raytrain.infer.tune.tuned import said
from raytrain.infer.tune.tuning import Row, Tuned
from raytrain.report.fitting import Column
from raytrain.report.pages.charts import Chart, Series
from raytrain.report.pages.drawing import COLORS, Drawing, draw
from raytrain.report.pages.page import Section, write_page
from raytrain.report.results import PageTable
from raytrain.report.tuning import (
    left_out,
    milliseconds,
    points_table,
    price_said,
    refusals,
    title_of,
    whole_table,
)


def write_tuning(name: str, tuned: Tuned, rate: Rate | None, known: Catalog, path: Path) -> None:
    """
    Args:
        name: of the job.

    Raises:
        ConfigError: it cannot be written, or what draws it is not installed.
    """
    grid = "The model alone, by batch size; each dot is a setting, point at one to read which. One scale for all."
    sections = [
        Section("With preprocessing, samples a second", _table(*whole_table(tuned, rate))),
        Section("Throughput against latency", None, [draw(_front(tuned))], wide=True),
        Section("The grid, as far as it was tried", None, _multiples(tuned), about=grid),
        Section("All points", _table(*points_table(tuned, rate)), about=title_of(tuned)),
    ]
    facts = [*refusals(tuned), *left_out(tuned), *price_said(rate, known), *_machine(tuned)]
    write_page(path, title=f"Tuning of {name}", lead=[f"pick: {tuned.why}"], sections=sections, facts=facts)


def _table(columns: list[Column], rows: list[list[str]]) -> PageTable:
    text = tuple(place for place, column in enumerate(columns) if not column.right)
    return PageTable([column.name for column in columns], rows, text=text)


def _machine(tuned: Tuned) -> list[str]:
    subject = tuned.points[0].subject
    machine = subject.hardware
    gpus = f", {', '.join(machine['gpus'])}" if machine["gpus"] else ", no GPU"
    versions = ", ".join(f"{package} {version}" for package, version in subject.versions.items())
    return [f"{machine['cpu_cores']} x {machine['cpu_model']}{gpus}", versions, f"model {subject.model[:12]}"]


def _timed(tuned: Tuned) -> list[Row]:
    return [row for row in tuned.rows if row.refused is None]


def _front(tuned: Tuned) -> Chart:
    rows = _timed(tuned)
    by_setting = {row.setting: row for row in rows}
    edge = sorted((by_setting[setting] for setting in tuned.front), key=lambda row: row.p95_s or 0.0)
    pick = [tuned.picked_row]
    series = [
        _dots("settings tried", rows, tuned, color=5),
        _dots("no other one beats these in both", edge, tuned, color=1, line=True, stairs=True),
        _dots("the pick", pick, tuned, color=2),
    ]
    about = "The model alone."
    return Chart("", about, series, "p95 of a batch, ms", "samples/s", log_x=True)


def _dots(name: str, rows: list[Row], tuned: Tuned, *, color: int, line: bool = False, stairs: bool = False) -> Series:
    return Series(
        name,
        [(row.p95_s or 0.0) * 1e3 for row in rows],
        [row.samples_per_s or 0.0 for row in rows],
        color,
        line=line,
        dots=True,
        stairs=stairs,
        text=[_text(row, tuned) for row in rows],
    )


def _text(row: Row, tuned: Tuned) -> str:
    return (
        f"{said(row.setting, tuned.space.on_gpu)}: {row.samples_per_s:,.4g} samples/s, p95 {milliseconds(row.p95_s)} ms"
    )


def _multiples(tuned: Tuned) -> list[Drawing]:
    """Two charts a back end and precision, a line a shape of streams; colours mean the same shape in all of them."""
    rows = _timed(tuned)
    shapes = sorted({_shape(row.setting, tuned.space.on_gpu) for row in rows})
    found = []
    for engine in sorted({(row.setting.backend, row.setting.precision) for row in rows}):
        own = [row for row in rows if (row.setting.backend, row.setting.precision) == engine]
        for latency in (False, True):
            lines = [
                _line(number, shape, some, tuned, latency)
                for number, shape in enumerate(shapes)
                if (some := [row for row in own if _shape(row.setting, tuned.space.on_gpu) == shape])
            ]
            found.append(draw(_multiple(" ".join(engine), lines, rows, latency)))
    return found


def _line(number: int, shape: tuple[int, int], rows: list[Row], tuned: Tuned, latency: bool) -> Series:
    rows = sorted(rows, key=lambda row: row.setting.batch_size)
    return Series(
        _named(shape, tuned.space.on_gpu),
        [float(row.setting.batch_size) for row in rows],
        [_value(row, latency) for row in rows],
        number % COLORS,
        number // COLORS,
        dots=True,
        text=[_text(row, tuned) for row in rows],
    )


def _multiple(engine: str, lines: list[Series], rows: list[Row], latency: bool) -> Chart:
    """`rows`: of all of them, so that they share their scales."""
    batches = sorted({float(row.setting.batch_size) for row in rows})
    values = [_value(row, latency) for row in rows]
    return Chart(
        f"{engine}: {'p95 of a batch' if latency else 'samples a second'}",
        lines[0].name if len(lines) == 1 else "",  # there is no legend then
        lines,
        "batch size",
        "ms" if latency else "samples/s",
        x_range=(batches[0] / 1.2, batches[-1] * 1.2),
        y_range=(min(values), max(values)),
        log_x=True,
        log_y=latency,
        x_values=tuple(batches),
    )


def _value(row: Row, latency: bool) -> float:
    return (row.p95_s or 0.0) * 1e3 if latency else row.samples_per_s or 0.0


def _shape(setting: Setting, on_gpu: bool) -> tuple[int, int]:
    return (setting.tasks_per_gpu, 0) if on_gpu else (setting.streams, setting.cores)


def _named(shape: tuple[int, int], on_gpu: bool) -> str:
    if on_gpu:
        return f"{shape[0]} a GPU"
    return f"{shape[0]} x {shape[1]} core{'s' if shape[1] > 1 else ''}"
