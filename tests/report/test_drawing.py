"""What a page shows, as values: ticks, paths, words, and how large it becomes."""

from __future__ import annotations

import pytest
from money import run_on

from raytrain.cost.compare import compare
from raytrain.cost.instances import catalog
from raytrain.record.schema import HostTimeline, Progress
from raytrain.report.costs import comparison_rows
from raytrain.report.pages.charts import Chart, Series, epoch_charts, time_charts
from raytrain.report.pages.drawing import Axis, draw, ticks
from raytrain.report.pages.page import write_report
from raytrain.report.results import epochs, left_out, results


@pytest.mark.parametrize(
    ("axis", "options", "expected"),
    [
        (Axis(0, 114), {}, ["0", "50", "100"]),
        (Axis(0, 114), {"most": 8}, ["0", "20", "40", "60", "80", "100"]),
        (Axis(0.17, 1.03), {}, ["0.2", "0.4", "0.6", "0.8", "1.0"]),
        (Axis(1, 3), {"most": 8, "whole": True}, ["1", "2", "3"]),
        (Axis(1, 1500), {}, ["500", "1,000", "1,500"]),
        (Axis(-1e-6, 2.1e-5), {}, ["0", "5e-06", "1e-05", "1.5e-05", "2e-05"]),
        (Axis(0.3, 30, logarithmic=True), {}, ["0.5", "1", "2", "5", "10", "20"]),
    ],
)
def test_ticks_are_good_to_read(axis, options, expected):
    found = ticks(axis, **options)
    assert [text for _, text in found] == expected
    assert all(axis.low <= value <= axis.high for value, _ in found)


def test_a_line_goes_from_corner_to_corner_and_a_stair_up_before_along():
    chart = Chart("t", "a", [Series("n", [0.0, 10.0, 40.0], [0.0, 50.0, 100.0], stairs=False)], "x", "y")
    drawing = draw(chart)
    assert drawing.scale == (0, 40, 0, 105), "a twentieth of room above"
    assert drawing.lines[0].path == "M0 1000L250 523.81L1000 47.62"
    assert drawing.x_ticks[1].at == 12.5 and drawing.x_ticks[1].text == "5"
    stairs = draw(Chart("t", "a", [Series("n", [0.0, 40.0], [0.0, 100.0], stairs=True)], "x", "y"))
    assert stairs.lines[0].path == "M0 1000V47.62H1000"


def test_a_logarithmic_axis_is_one():
    drawing = draw(Chart("t", "a", [Series("n", [1.0, 10.0, 100.0], [1.0, 1.0, 1.0])], "x", "y", log_x=True))
    (first, _), (middle, _), (last, _) = (point.split(" ") for point in drawing.lines[0].path[1:].split("L"))
    assert float(middle) == pytest.approx(500) and float(first) == pytest.approx(1000 - float(last), abs=0.02)
    assert drawing.scale is None


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0])
def test_one_point_is_drawn_too(value):
    drawing = draw(Chart("t", "a", [Series("n", [1.0], [value])], "epoch", "", zero=False))
    assert [dot.path for dot in drawing.dots] == ["M0 500h0"]


def test_a_figure_that_is_none_is_left_out_of_its_line(record):
    record.epochs = [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": None}, {"epoch": 3, "loss": 0.25}]
    [chart] = epoch_charts([("small", record)])
    assert (chart.series[0].x, chart.series[0].y) == ([1, 3], [0.5, 0.25])


def test_an_accuracy_is_drawn_in_percent_as_the_table_has_it_and_no_axis_goes_beyond_them(record):
    record.epochs = [{"epoch": n, "validation_accuracy": 1.0, "f1": 1.0} for n in (1, 2)]
    f1, accuracy = (draw(chart) for chart in epoch_charts([("small", record)]))
    assert accuracy.scale == (1, 2, 95, 100) and f1.scale == (1, 2, 0.95, 1.05)
    assert [tick.text for tick in accuracy.y_ticks] == ["95%", "96%", "97%", "98%", "99%", "100%"]
    assert accuracy.dots[0].text == "validation accuracy: 100% at epoch 1"
    assert accuracy.alt.startswith("validation accuracy. validation accuracy: from 100 to 100%, lowest 100 at 1, ")
    record.epochs = [{"epoch": 1, "accuracy": 0.0}, {"epoch": 2, "accuracy": 0.5}]
    assert draw(*epoch_charts([("small", record)])).scale == (1, 2, 0, 52.5)
    record.epochs[1]["accuracy"] = 50.0
    assert draw(*epoch_charts([("small", record)])).unit == "", "it was in percent before, which the table has too"


def test_the_time_of_a_long_run_is_in_hours(record):
    record.progress = Progress(at_s=[0.0, 36_000.0], samples_per_s=[1.0, 2.0], wait_share=[0.0, 0.5])
    rate, waiting = time_charts([("small", record)])
    assert rate.series[0].x == [0, 10] and rate.x_range == waiting.x_range == (0, 10)
    assert rate.x_label == "hours since the command was given"
    assert waiting.series[0].y == [0, 50]


def test_what_is_not_known_has_no_row(record):
    comparison = compare([record], catalog())
    rows = {row[0]: row[1:] for row in results([record], ["small"], comparison).rows}
    assert rows["limited by"] == ["balanced"]
    assert rows["best"] == ["validation accuracy 90.00%\nin epoch 1"]
    assert rows["samples left out"] == ["2 of 640 training"]
    assert not {"first step after", "attempts", "price per hour", "updates left out"} & set(rows)
    record.unusual.skipped_steps, record.totals.attempts = 3, 2
    rows = {row[0]: row[1:] for row in results([record], ["small"], comparison).rows}
    assert (rows["updates left out"], rows["attempts"]) == (["3"], ["2"])
    record.epochs = []
    rows = {row[0]: row[1:] for row in results([record], ["small"], comparison).rows}
    assert not {"epochs", "loss", "best"} & set(rows)


def test_what_one_run_cost_stands_with_its_results(record):
    run = run_on(record, "gpu", {"ml.g5.xlarge": ("gpu", 1, 1)}, samples_per_s=32.0)
    comparison = compare([run], catalog(), region="us-east-1")
    alone = type(comparison)(comparison.columns[:1], comparison.notes, comparison.prices)
    rows = {row[0]: row[1:] for row in results([run], ["gpu"], alone).rows}
    assert rows["price per hour"] == ["$1.408"] and rows["per million samples"] == ["$12.22"]


def test_gaps_between_kernels_have_a_row_where_somebody_can_tell(record):
    """14 s of 100 s, less than half of a point of them rounded away."""
    run = run_on(record, "gpu", {"ml.g5.xlarge": ("gpu", 1, 1)})
    times = {"wait_s": 2.0, "compute_s": 84.04, "gap_s": 13.96, "transfer_overlaps": True}
    told = run.model_copy(update={"ranks": [run.ranks[0].model_copy(update=times)]})
    for records, shown in (([run, run], None), ([run, told], ["-", "14.0%"])):
        comparison = compare(records, catalog(), region="us-east-1")
        names = [column.name for column in comparison.columns[:2]]
        rows = {row[0]: row[1:] for row in results(records, names, comparison).rows}
        assert rows.get("GPU idle between kernels") == shown
        rows = dict(comparison_rows(comparison))
        assert (rows.get("GPU idle between kernels") or [None])[:2] == (shown or [None])


def test_samples_beyond_those_that_a_record_names_are_counted(record):
    record.corrupt.train, record.corrupt.listed = 1500, [f"train: {n}.jpg: bad" for n in range(100)]
    table = left_out([record], ["small"])
    assert (len(table.rows), table.folded) == (100, True)
    assert table.notes == ["1,500 were left out; a record names the first 100"]


def test_a_page_is_small_however_long_the_run_and_however_many_hosts(record, tmp_path):
    at_s = [2.0 * number for number in range(600)]
    busy = {name: [123.456789] * 600 for name in ("cpu_percent", "memory_percent", "gpu_percent")}
    timelines = [
        HostTimeline(host=f"host-{n}", at_s=at_s, **busy, received_mbit_per_s=[1.0] * 600, sent_mbit_per_s=[1.0] * 600)
        for n in range(20)
    ]
    logged = [{"epoch": n + 1, **{f"metric {m}": 1 / (n + m + 1) for m in range(8)}} for n in range(10_000)]
    run = run_on(record, "long", {"ml.g5.xlarge": ("gpu", 1, 1)}, timelines=timelines, epochs=logged)
    runs = [run, run]
    write_report(runs, compare(runs, catalog(), region="us-east-1"), catalog(), tmp_path / "r.html")
    assert (tmp_path / "r.html").stat().st_size < 1_000_000
    table = epochs(runs, ["a", "b"])
    assert len(table.rows) == 202 and table.notes == ["every 100th epoch, and the last"]
    assert [row[1] for row in table.rows[99:102]] == ["9901", "10000", "1"]
    last = epoch_charts([("a", run), ("b", run)])[0].series[0]
    assert last.x[-1] == 10_000 and len(last.x) <= 2501


def test_figures_at_the_end_of_what_a_float_can_be(record):
    """Each can be read from a record; how far they lie apart is no number."""
    progress = Progress(at_s=[-1.7e308, 1.7e308], samples_per_s=[-1.7e308, 1.7e308], wait_share=[0.0, 1.0])
    run = run_on(record, "far", {"ml.g5.xlarge": ("gpu", 1, 1)}, progress=progress)
    for chart in time_charts([("far", run)]):
        assert draw(chart)
