"""The charts of a page as plain values: what is drawn, not how."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from raytrain.cost.compare import Comparison, curve_of
from raytrain.cost.instances import Catalog
from raytrain.cost.planner import Plan, Prediction
from raytrain.record.schema import RunRecord
from raytrain.report.results import is_share, metrics_of, spoken

MAX_DOTS = 1500  # of all shapes; the best are always drawn
MAX_POINTS = 5000  # of all lines of a chart, so that a page stays small however many hosts there were
MAX_CURVES = 6
TIME_UNITS = ((600, 1, "seconds"), (4 * 3600, 60, "minutes"), (float("inf"), 3600, "hours"))


@dataclass(frozen=True)
class Series:
    """One line, or dots, of a chart.

    Attributes:
        color, dash: numbers, of a page's colours and dashes.
        line, dots: what is drawn; `stairs`: the line goes up or down first, then along.
        text: what each dot says when it is pointed at.
        labels: what stands beside each dot.
    """

    name: str
    x: list[float]
    y: list[float]
    color: int = 0
    dash: int = 0
    line: bool = True
    dots: bool = False
    stairs: bool = False
    text: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Chart:
    """Attributes: `about`: one sentence beneath it, if any; `x_range`, `y_range`: where several charts share one;
    `log_x`, `log_y`: an axis is logarithmic; `whole_x`: only whole numbers mean something on it; `x_values`: all that
    there are, which are written beside it in the place of round ones; `zero`: the y axis begins at 0; `percent`: values
    are from 0 to 100, and written with the sign."""

    title: str
    about: str
    series: list[Series]
    x_label: str
    y_label: str
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    log_x: bool = False
    log_y: bool = False
    whole_x: bool = False
    x_values: tuple[float, ...] = ()
    zero: bool = True
    percent: bool = False

    @property
    def unit(self) -> str:
        """What follows every number of the y axis."""
        return "%" if self.percent else ""


@dataclass(frozen=True)
class Bars:
    """Attributes: `rows`: what, and of each run that has it its number in `names` and its figure."""

    about: str
    names: list[str]
    rows: list[tuple[str, list[tuple[int, float]]]]


def epoch_charts(both: list[tuple[str, RunRecord]]) -> list[Chart]:
    """Every logged figure, epoch by epoch; one of validation stands in the same chart as that of training."""
    names = metrics_of([record for _, record in both])
    groups: dict[str, list[str]] = {}
    for name in names:
        of_training = name.removeprefix("validation_")
        groups.setdefault(of_training if of_training in names else name, []).append(name)
    return [_epochs(both, group) for group in groups.values()]


def _epochs(both: list[tuple[str, RunRecord]], group: list[str]) -> Chart:
    lines = []
    for number, (run, record) in enumerate(both):
        for index, metric in enumerate(group):
            logged = [(entry["epoch"], entry[metric]) for entry in record.epochs if entry.get(metric) is not None]
            if logged:
                color, dash = (number, index) if len(both) > 1 else (index, 0)
                name = f"{run}: {spoken(metric)}" if len(both) > 1 else spoken(metric)
                x, y = map(list, zip(*logged, strict=True))
                lines.append(Series(name, x, y, color, dash, dots=len(x) <= 100))
    entries = [entry for _, record in both for entry in record.epochs]
    percent = all(is_share(name, entry[name]) for name in group for entry in entries if entry.get(name) is not None)
    if percent:
        lines = [replace(line, y=[100 * value for value in line.y]) for line in lines]
    title = " and ".join(spoken(name) for name in group)
    return Chart(title, "", _thinned(lines), "epoch", "", whole_x=True, zero=False, percent=percent)


def time_charts(both: list[tuple[str, RunRecord]]) -> list[Chart]:
    """Only those that there are figures for, all on one time axis."""
    charts = [
        _progress(both, "samples_per_s", "Samples a second", "samples/s", 1.0),
        _progress(both, "wait_share", "Waiting for data", "% of the time", 100.0),
        _places(both),
        _hosts(both, "cpu_percent", "CPU busy, by host", "% (100 is one core)"),
        _hosts(both, "gpu_percent", "GPU busy, by host", "% (100 is one GPU)"),
        _hosts(both, "memory_percent", "Memory in use, by host", "%"),
    ]
    found = [chart for chart in charts if chart is not None]
    longest_s = max((line.x[-1] for chart in found for line in chart.series), default=0.0)
    _, divisor, unit = next(each for each in TIME_UNITS if longest_s <= each[0])
    return [
        replace(
            chart,
            series=[replace(line, x=[at / divisor for at in line.x]) for line in _thinned(chart.series)],
            x_label=f"{unit} since the command was given",
            x_range=(0.0, longest_s / divisor),
        )
        for chart in found
    ]


def _progress(both: list[tuple[str, RunRecord]], what: str, title: str, unit: str, factor: float) -> Chart | None:
    lines = [
        Series(name, record.progress.at_s, [v * factor for v in getattr(record.progress, what)], number)
        for number, (name, record) in enumerate(both)
        if record.progress and record.progress.at_s
    ]
    return Chart(title, "All ranks together.", lines, "", unit) if lines else None


def _places(both: list[tuple[str, RunRecord]]) -> Chart | None:
    """Of each stage that may run on either."""
    lines: list[Series] = []
    for name, record in both:
        at_s = [each.at_s for each in record.placements]
        for stage in record.placements[0].stages if record.placements else ():
            if stage.device_s is not None:
                if not any(each.share_on_device(stage.name) for each in record.placements):
                    continue
                there = [100 * each.share_on_device(stage.name) for each in record.placements]
                label = f"{name}: {stage.name}" if len(both) > 1 else stage.name
                end = max(record.totals.wall_s, at_s[-1])
                color, dash = len(lines), len(lines) // 6
                lines.append(Series(label, [0.0, *at_s, end], [0.0, 0.0, *there], color, dash, stairs=True))
    about = "The rest ran on CPUs. Batches that lay ready at the time come later."
    title = "Batches whose stage ran on the device"
    return Chart(title, about, lines, "", "", percent=True) if lines else None


def _hosts(both: list[tuple[str, RunRecord]], what: str, title: str, unit: str) -> Chart | None:
    lines = []
    for number, (name, record) in enumerate(both):
        for index, host in enumerate(record.timelines):
            if getattr(host, what):
                label = f"{name}: {host.host}" if len(both) > 1 else host.host
                color, dash = (number, index) if len(both) > 1 else (index, 0)
                lines.append(Series(label, host.at_s, getattr(host, what), color, dash))
    return Chart(title, "Sampled once a second on every host.", lines, "", unit) if lines else None


def _thinned(lines: list[Series]) -> list[Series]:
    """At most MAX_POINTS together: every so many-th point of a line, and its last."""
    step = -(-sum(len(line.x) for line in lines) // MAX_POINTS)
    if step <= 1:
        return lines
    kept = [sorted({*range(0, len(line.x), step), len(line.x) - 1}) for line in lines]
    return [
        replace(line, x=[line.x[i] for i in some], y=[line.y[i] for i in some])
        for line, some in zip(lines, kept, strict=True)
    ]


def stage_bars(both: list[tuple[str, RunRecord]]) -> Bars | None:
    rows: dict[str, list[tuple[int, float]]] = {}
    for number, (_, record) in enumerate(both):
        for stage in record.stages:
            if stage.of_training:
                rows.setdefault(stage.name, []).append((number, stage.cpu_s_per_sample * 1e3))
    if not rows:
        return None
    about = "Milliseconds of a CPU for a sample, in the workers of the training split."
    return Bars(about, [name for name, _ in both], list(rows.items()))


def cost_chart(records: list[RunRecord], comparison: Comparison, known: Catalog) -> Chart | None:
    found = curve_of(records[0], comparison, known) if comparison.columns else None
    if found is None:
        return None
    cpu_type, curve, points = found
    measured = Series(
        "measured",
        [float(hosts) for hosts, _ in points],
        [column.usd_per_million_samples for _, column in points],
        color=1,
        line=False,
        dots=True,
        labels=[column.name for _, column in points],
    )
    about = f"{curve[0].shape} alone and with hosts of {cpu_type}."
    lines = [_curve(f"predicted from {records[0].name}", curve, 0), measured]
    return Chart("Cost against CPU hosts", about, lines, f"hosts of {cpu_type}", "$ a million samples", whole_x=True)


def plan_charts(plan: Plan) -> list[Chart]:
    return [_time_and_money(plan), *_curves(plan)]


def _time_and_money(plan: Plan) -> Chart:
    front = plan.front()
    step = max(len(plan) // MAX_DOTS, 1)
    best = plan.order[:200]
    some = np.unique(np.concatenate([best, plan.order[::step]]))
    some = some[plan.figures["usd"][some] <= 5 * plan[0].usd]
    shapes = [plan.prediction(int(index)) for index in some]
    dots = _shapes("shapes", shapes, color=5, line=False, dots=True)
    edge = _shapes("nothing is both faster and cheaper", front, color=1, dots=True, stairs=True)
    about = "Every dot is a cluster shape, up to five times the money of the best; point at one to read which."
    return Chart(
        "Time and money", about, [dots, edge], "hours for the whole job", "$ for the whole job", log_x=True, zero=True
    )


def _shapes(name: str, found: list[Prediction], **look: int | bool) -> Series:
    text = [f"{each.shape}: {each.hours:,.2f} hours, ${each.usd:,.2f}" for each in found]
    return Series(name, [each.hours for each in found], [each.usd for each in found], text=text, **look)


def _curves(plan: Plan) -> list[Chart]:
    """Cost of the best shape's GPU host with 0 to N hosts of each CPU type that the best shapes have."""
    gpu_type = plan[0].shape.gpu_type
    cpu_types = list(dict.fromkeys(name for each in plan.best(200) for name, _ in each.shape.cpu_hosts))
    cpu_types = (cpu_types or [each.name for each in plan.cpus.types])[:MAX_CURVES]
    curves = {name: plan.curve(gpu_type, name) for name in cpu_types}
    lines = [_curve(name, curve, number) for number, (name, curve) in enumerate(curves.items()) if len(curve) > 1]
    if not lines:
        return []
    about = f"One {gpu_type} with CPU hosts of one type beside it."
    return [Chart("Cost against CPU hosts", about, lines, "CPU hosts", "$ a million samples", whole_x=True)]


def _curve(name: str, curve: list[Prediction], color: int) -> Series:
    hosts = [float(sum(count for _, count in each.shape.cpu_hosts)) for each in curve]
    text = [
        f"{each.shape}: ${each.usd_per_million_samples:,.2f}, {each.samples_per_s:,.0f} samples/s, "
        f"limited by {each.limit}"
        for each in curve
    ]
    return Series(name, hosts, [each.usd_per_million_samples for each in curve], color, dots=True, text=text)
