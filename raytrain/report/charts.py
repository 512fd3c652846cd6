"""The charts of a page as Plotly's traces and layouts, which are plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from raytrain.cost.compare import Comparison, curve_of
from raytrain.cost.instances import Catalog
from raytrain.cost.planner import Plan, Prediction
from raytrain.record import RunRecord

# Okabe and Ito's colours, told apart by people with colour blindness and on white as on black
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES = ("solid", "dash", "dot", "dashdot")
MAX_POINTS = 1500  # of all shapes; the best are always drawn


@dataclass(frozen=True)
class Chart:
    """Attributes: `data`, `layout`: as Plotly has them; `about`: one sentence beneath it."""

    title: str
    about: str
    data: list[dict[str, Any]]
    layout: dict[str, Any] = field(default_factory=dict)


def run_charts(records: list[RunRecord], names: list[str], comparison: Comparison, known: Catalog) -> list[Chart]:
    """Only those that there are figures for."""
    both = list(zip(names, records, strict=True))
    charts = [
        _progress(both, "samples_per_s", "Samples a second", "samples/s", 1.0),
        _progress(both, "wait_share", "Waiting for data", "% of the time", 100.0),
        _hosts(both, "cpu_percent", "CPU busy, by host", "% (100 is one core)"),
        _hosts(both, "gpu_percent", "GPU busy, by host", "% (100 is one GPU)"),
        _stages(both),
        _cost_by_hosts(records, comparison, known),
    ]
    return [chart for chart in charts if chart is not None]


def _progress(both: list[tuple[str, RunRecord]], what: str, title: str, unit: str, factor: float) -> Chart | None:
    data = [
        _line(name, record.progress.at_s, [v * factor for v in getattr(record.progress, what)], number)
        for number, (name, record) in enumerate(both)
        if record.progress and record.progress.at_s
    ]
    if not data:
        return None
    about = "All ranks together, over the seconds since the command was given."
    return Chart(title, about, data, _axes("seconds", unit))


def _hosts(both: list[tuple[str, RunRecord]], what: str, title: str, unit: str) -> Chart | None:
    data = []
    for number, (name, record) in enumerate(both):
        for dash, host in enumerate(record.timelines):
            if getattr(host, what):
                label = f"{name}: {host.host}" if len(both) > 1 else host.host
                line = _line(label, host.at_s, getattr(host, what), number if len(both) > 1 else dash)
                line["line"]["dash"] = DASHES[dash % len(DASHES)] if len(both) > 1 else "solid"
                data.append(line)
    if not data:
        return None
    return Chart(title, "Sampled once a second on every host.", data, _axes("seconds", unit))


def _stages(both: list[tuple[str, RunRecord]]) -> Chart | None:
    data = []
    for number, (name, record) in enumerate(both):
        stages = [stage for stage in record.stages if stage.of_training]
        if stages:
            data.append(
                {
                    "type": "bar",
                    "orientation": "h",
                    "name": name,
                    "y": [stage.name for stage in stages],
                    "x": [stage.cpu_s_per_sample * 1e3 for stage in stages],
                    "marker": {"color": COLORS[number % len(COLORS)]},
                }
            )
    if not data:
        return None
    layout = _axes("ms of a CPU for a sample", "")
    layout["yaxis"] |= {"autorange": "reversed", "title": None}
    return Chart("What the CPU stages cost", "CPU time in each stage of the training split.", data, layout)


def _cost_by_hosts(records: list[RunRecord], comparison: Comparison, known: Catalog) -> Chart | None:
    found = curve_of(records[0], comparison, known)
    if found is None:
        return None
    cpu_type, curve, points = found
    data = [_curve(f"predicted from {records[0].name}", curve, 0)]
    data.append(
        {
            "type": "scatter",
            "mode": "markers+text",
            "name": "measured",
            "x": [hosts for hosts, _ in points],
            "y": [column.usd_per_million_samples for _, column in points],
            "text": [column.name for _, column in points],
            "textposition": "top right",
            "cliponaxis": False,
            "marker": {"color": COLORS[1], "size": 11, "symbol": "diamond"},
        }
    )
    about = f"{curve[0].shape} alone and with hosts of {cpu_type}."
    return Chart("Cost against CPU hosts", about, data, _axes(f"hosts of {cpu_type}", "$ a million samples", zero=True))


def plan_charts(plan: Plan) -> list[Chart]:
    return [_time_and_money(plan), *_curves(plan)]


def _time_and_money(plan: Plan) -> Chart:
    front = plan.front()
    step = max(len(plan) // MAX_POINTS, 1)
    best = plan.order[:200]
    some = np.unique(np.concatenate([best, plan.order[::step]]))
    some = some[plan.figures["usd"][some] <= 5 * plan[0].usd]
    shapes = [plan.prediction(int(index)) for index in some]
    data = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "shapes",
            "x": [each.hours for each in shapes],
            "y": [each.usd for each in shapes],
            "text": [str(each.shape) for each in shapes],
            "marker": {"color": COLORS[5], "size": 5, "opacity": 0.6},
        },
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": "nothing is both faster and cheaper",
            "x": [each.hours for each in front],
            "y": [each.usd for each in front],
            "text": [str(each.shape) for each in front],
            "line": {"color": COLORS[1], "shape": "vh"},
        },
    ]
    about = "Every dot is a cluster shape, up to five times the money of the best; hover to read which."
    layout = _axes("hours for the whole job", "$ for the whole job", zero=True)
    layout["xaxis"] |= {"type": "log", "dtick": "D2", "tickformat": "~g"}
    layout["xaxis"].pop("rangemode")
    return Chart("Time and money", about, data, layout)


def _curves(plan: Plan) -> list[Chart]:
    """Cost of the best shape's GPU host with 0 to N hosts of each CPU type that the best shapes have."""
    gpu_type = plan[0].shape.gpu_type
    cpu_types = list(dict.fromkeys(name for each in plan.best(200) for name, _ in each.shape.cpu_hosts))
    cpu_types = (cpu_types or [each.name for each in plan.cpus.types])[: len(COLORS)]
    curves = {name: plan.curve(gpu_type, name) for name in cpu_types}
    data = [_curve(name, curve, number) for number, (name, curve) in enumerate(curves.items()) if len(curve) > 1]
    if not data:
        return []
    about = f"One {gpu_type} with CPU hosts of one type beside it."
    return [Chart("Cost against CPU hosts", about, data, _axes("CPU hosts", "$ a million samples", zero=True))]


def _curve(name: str, curve: list[Prediction], number: int) -> dict[str, Any]:
    hosts = [sum(count for _, count in each.shape.cpu_hosts) for each in curve]
    line = _line(name, hosts, [each.usd_per_million_samples for each in curve], number)
    limits = [f"{each.samples_per_s:,.0f} samples/s, limited by {each.limit}" for each in curve]
    return {**line, "mode": "lines+markers", "text": limits}


def _line(name: str, x: list[float], y: list[float], number: int) -> dict[str, Any]:
    color = COLORS[number % len(COLORS)]
    return {"type": "scatter", "mode": "lines", "name": name, "x": x, "y": y, "line": {"color": color, "width": 2}}


def _axes(x: str, y: str, *, zero: bool = False) -> dict[str, Any]:
    mode = {"rangemode": "tozero"}
    return {"xaxis": {"title": {"text": x}, **(mode if zero else {})}, "yaxis": {"title": {"text": y}, **mode}}
