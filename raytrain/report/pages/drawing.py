"""A chart as shapes for a page to place: paths in a square of 1000 by 1000, which the page stretches to its width, and
ticks in percent of it, which the page writes as text beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from raytrain.report.pages.charts import Bars, Chart, Series

SIDE = 1000
COLORS = 6  # that the page's style has
DASHES = 4
FURTHEST = 1e300  # that an axis leads to: none is infinitely long
MANY_POWERS = 5  # of ten, on a logarithmic axis: then these alone are written beside it


@dataclass(frozen=True)
class Tick:
    """Attributes: `at`: percent from the left, or from the bottom."""

    at: float
    text: str


@dataclass(frozen=True)
class Dot:
    path: str
    color: int
    text: str
    label: Tick | None = None  # beside it
    bottom: float = 0.0  # of the label, percent


@dataclass(frozen=True)
class Line:
    name: str
    path: str
    color: int
    dash: int


@dataclass(frozen=True)
class Drawing:
    """Attributes: `alt`: the chart in words; `scale`: (left, right, bottom, top) in numbers of the axes, where both are
    linear, so that the page can read out where someone points; `unit`: follows every number of the y axis."""

    title: str
    about: str
    alt: str
    x_label: str
    y_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line]
    dots: list[Dot]
    scale: tuple[float, float, float, float] | None
    unit: str = ""


@dataclass(frozen=True)
class Axis:
    low: float
    high: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """0 at its beginning, 1 at its end."""
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def draw(chart: Chart) -> Drawing:
    xs = [x for line in chart.series for x in line.x]
    ys = [y for line in chart.series for y in line.y]
    x_axis = _x_axis(chart, xs)
    y_axis = _y_axis(chart, ys)
    words = [_in_words(line, chart) for line in chart.series]
    return Drawing(
        title=chart.title,
        about=chart.about,
        alt=" ".join(part for part in (f"{chart.title}.", chart.about, *words) if part),
        x_label=chart.x_label,
        y_label=chart.y_label,
        x_ticks=[Tick(100 * x_axis.at(value), text) for value, text in _x_ticks(chart, x_axis)],
        y_ticks=[Tick(100 * y_axis.at(value), text + chart.unit) for value, text in ticks(y_axis)],
        lines=[
            Line(line.name, _path(line, x_axis, y_axis) if line.line else "", line.color % COLORS, line.dash % DASHES)
            for line in chart.series
        ],
        dots=[dot for line in chart.series for dot in _dots(line, chart, x_axis, y_axis)],
        scale=None if chart.log_x or chart.log_y else (x_axis.low, x_axis.high, y_axis.low, y_axis.high),
        unit=chart.unit,
    )


def _x_axis(chart: Chart, xs: list[float]) -> Axis:
    if chart.x_range is not None:
        low, high = chart.x_range
    elif chart.log_x:
        low, high = min(xs) / 1.1, max(xs) * 1.1
    else:
        low, high = max(min(xs), -FURTHEST), min(max(xs), FURTHEST)
    return Axis(low, high if high > low else low + 1, chart.log_x)


def _x_ticks(chart: Chart, axis: Axis) -> list[tuple[float, str]]:
    if chart.x_values:
        return [(value, f"{value:,g}") for value in chart.x_values]
    return ticks(axis, most=8, whole=chart.whole_x)


def _y_axis(chart: Chart, ys: list[float]) -> Axis:
    lowest, highest = chart.y_range or (max(min(ys), -FURTHEST), min(max(ys), FURTHEST))
    if chart.log_y:
        return Axis(lowest / 1.2, highest * 1.2, logarithmic=True)
    low, high = (min(0.0, lowest), highest) if chart.zero else (lowest, highest)
    room = (high - low or abs(high) or 1.0) * 0.05
    axis = Axis(low if chart.zero else low - room, high + room)
    return Axis(max(axis.low, 0.0), min(axis.high, 100.0)) if chart.percent else axis


def ticks(axis: Axis, *, most: int = 5, whole: bool = False) -> list[tuple[float, str]]:
    """About so many values of an axis that are good to read: steps of 1, 2 or 5, and powers of ten of them."""
    if axis.logarithmic:
        powers = range(math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high)) + 1)
        factors = (1, 2, 5) if len(powers) < MANY_POWERS else (1,)
        values = [factor * 10.0**power for power in powers for factor in factors]
        return [(value, f"{value:,.4g}") for value in values if axis.low <= value <= axis.high]
    span = axis.high - axis.low
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= span / most * 0.99)
    if whole:
        step = max(round(step), 1)
    first = math.ceil(axis.low / step - 1e-9)
    values = [number * step for number in range(first, math.floor(axis.high / step + 1e-9) + 1)]
    digits = max(0, -math.floor(math.log10(step)))
    return [(value, f"{value:,.{digits}f}" if digits <= 4 else f"{value:.3g}") for value in values]


def _path(line: Series, x_axis: Axis, y_axis: Axis) -> str:
    """Where the line is a stair, it goes up or down first and then along."""
    (first_x, first_y), *points = [_point(x, y, x_axis, y_axis) for x, y in zip(line.x, line.y, strict=True)]
    return f"M{first_x} {first_y}" + "".join(f"V{y}H{x}" if line.stairs else f"L{x} {y}" for x, y in points)


def _point(x: float, y: float, x_axis: Axis, y_axis: Axis) -> tuple[str, str]:
    """To a hundredth, so that four digits can be read back."""
    return f"{round(SIDE * x_axis.at(x), 2):.7g}", f"{round(SIDE * (1 - y_axis.at(y)), 2):.7g}"


def _dots(line: Series, chart: Chart, x_axis: Axis, y_axis: Axis) -> list[Dot]:
    """A line of one point is a dot, or nobody would see it."""
    if not (line.dots or len(line.x) == 1):
        return []
    found = []
    for number, (x, y) in enumerate(zip(line.x, line.y, strict=True)):
        px, py = _point(x, y, x_axis, y_axis)
        text = line.text[number] if line.text else f"{line.name}: {y:,.4g}{chart.unit} at {chart.x_label} {x:,.4g}"
        label = Tick(100 * x_axis.at(x), line.labels[number]) if line.labels else None
        found.append(Dot(f"M{px} {py}h0", line.color % COLORS, text, label, 100 * y_axis.at(y)))
    return found


def _in_words(line: Series, chart: Chart) -> str:
    """What someone who does not see it should hear."""
    low, low_x = min(zip(line.y, line.x, strict=True))
    high, high_x = max(zip(line.y, line.x, strict=True))
    unit = f" {chart.y_label}" if chart.y_label else chart.unit
    return (
        f"{line.name}: from {line.y[0]:,.4g} to {line.y[-1]:,.4g}{unit}, lowest {low:,.4g} at {low_x:,.4g}, highest "
        f"{high:,.4g} at {high_x:,.4g}."
    )


@dataclass(frozen=True)
class Bar:
    name: str
    color: int
    percent: float
    text: str


@dataclass(frozen=True)
class BarDrawing:
    about: str
    names: list[str]
    rows: list[tuple[str, list[Bar]]]


def draw_bars(chart: Bars) -> BarDrawing:
    """The longest takes all of the width."""
    longest = max((value for _, found in chart.rows for _, value in found), default=0.0) or 1.0
    rows = [
        (what, [Bar(chart.names[run], run % COLORS, 100 * value / longest, f"{value:,.3f}") for run, value in found])
        for what, found in chart.rows
    ]
    return BarDrawing(chart.about, chart.names, rows)
