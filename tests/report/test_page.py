"""The pages, in a real browser."""

from __future__ import annotations

import re
import shutil
import sys

import pytest
from money import profile, run_on
from patience import patient

from raytrain.cli.main import main
from raytrain.cost.bounds import Bounds
from raytrain.cost.compare import compare
from raytrain.cost.instances import catalog
from raytrain.cost.planner import plan
from raytrain.report.fitting import number
from raytrain.report.pages.page import write_plan, write_report

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: make test installs Debian's where it is root")

SINGLE = {"ml.g5.xlarge": ("gpu", 1, 1)}
BOTH = {"ml.g5.xlarge": ("gpu", 1, 1), "ml.c5.4xlarge": ("cpu", 1, 0)}
EPOCHS = [
    {
        "epoch": 1,
        "loss": 2.0,
        "validation_loss": 2.5,
        "validation_accuracy": 0.25,
        "learning_rate": 1e-3,
        "my_own": 7.0,
    },
    {"epoch": 2, "loss": 1.0, "validation_loss": 1.25, "validation_accuracy": 0.75, "learning_rate": 5e-4},
    {"epoch": 3, "loss": None, "validation_loss": 1.5, "validation_accuracy": 0.5, "learning_rate": 1e-5},
]
EVIL = "</script><script>window.evil = 1</script><img src=x onerror='window.evil = 1'>"


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=patient(60) * 1000)
        yield running
        running.close()


@pytest.fixture
def opened(browser):
    """Opens a page and notes everything that it says and asks for."""
    contexts = []

    def show(path, **options):
        context = browser.new_context(**options)
        context.set_default_timeout(patient(30) * 1000)
        contexts.append(context)
        page = context.new_page()
        page.said, page.asked = [], []
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector("main section", state="attached")
        return page

    yield show
    for context in contexts:
        context.close()


@pytest.fixture
def report(record, tmp_path):
    runs = [
        run_on(record, "single", SINGLE, samples_per_s=32.0, epochs=EPOCHS),
        run_on(record, f"both {EVIL}", BOTH, samples_per_s=62.2, wait_share=0.031, epochs=EPOCHS[:2]),
    ]
    path = tmp_path / "report.html"
    write_report(runs, compare(runs, catalog(), region="us-east-1"), catalog(), path)
    return runs, path


def drawn(figure):
    """(name, numbers along, numbers up) of each line of a chart, read off its path."""
    left, right, bottom, top = map(float, figure.locator(".plot").get_attribute("data-scale").split())
    lines = []
    for path in figure.locator("path.line[data-name]").all():
        points = [point.split(" ") for point in re.split("[ML]", path.get_attribute("d"))[1:]]
        along = [left + float(x) / 1000 * (right - left) for x, _ in points]
        lines.append(
            (path.get_attribute("data-name"), along, [top - float(y) / 1000 * (top - bottom) for _, y in points])
        )
    return lines


def near(values):
    """As near as a hundredth of a thousandth of an axis."""
    return pytest.approx(values, rel=1e-3, abs=1e-3)


def cells(page, title):
    """Rows of the table under a heading."""
    rows = page.locator(f"section:has(h2:text-is('{title}')) tr").all()
    return [[cell.inner_text() for cell in row.locator("th, td").all()] for row in rows]


def test_the_numbers_on_the_page_are_the_records(report, opened):
    runs, path = report
    page = opened(path)
    assert page.said == [], "the console is empty"
    assert page.asked == [path.as_uri()], "nothing else is loaded"
    assert page.evaluate("window.evil") is None
    assert page.evaluate("document.title").startswith("single and both </script>")
    table = {row[0]: row[1:] for row in cells(page, "Comparison")}
    assert table["samples/s"][:2] == ["32.0", "62.2"]
    assert table["waiting for data"][:2] == ["50.0%", "3.1%"]
    assert table["price per hour"][:2] == ["$1.408", "$2.224"]
    assert table["price efficiency"][:2] == ["+0%", f"{62.2 / 32 / (2.224 / 1.408) - 1:+.0%}"]
    assert cells(page, "CPU stages")[1] == ["single", "decode", "5.000", "7.000", "3.20", "4.48", "640"]
    hosts = cells(page, "Hosts")
    assert hosts[3] == [runs[1].name, "cpu-1", "ml.c5.4xlarge", "16", "0", "320"]
    charts = {chart.locator("h3").inner_text(): chart for chart in page.locator("figure").all()}
    assert drawn(charts["Samples a second"])[0] == (
        "single",
        near(runs[0].progress.at_s),
        near(runs[0].progress.samples_per_s),
    )
    assert drawn(charts["Waiting for data"])[1][2] == near([3.1] * 10)
    assert {name for name, _, _ in drawn(charts["CPU busy, by host"])} >= {"single: gpu-1"}
    bars = page.locator("section:has(h2:text-is('CPU stages')) .bars").inner_text().split()
    assert bars == ["decode", "5.000", "5.000", "read", "0.000", "0.000"]
    ((_, along, predicted),) = drawn(charts["Cost against CPU hosts"])
    assert along[:3] == near([0, 1, 2])
    assert predicted[0] == near(1.408 / 3600 / 32 * 1e6), "the curve goes through the run that it is predicted from"
    said = charts["Cost against CPU hosts"].locator("path.dot title").all_text_contents()
    assert said[0].startswith("1 x ml.g5.xlarge: $12.22, 32 samples/s, limited by ")
    assert "measured: 12.22 at hosts of ml.c5.4xlarge 0" in said
    facts = page.locator("section:has(h2:text-is('Facts'))").inner_text()
    assert "ml.g5.xlarge $1.408" in facts
    assert "python 3.11" in facts


def test_every_logged_figure_has_a_curve_and_its_last_value_stands_at_the_top(report, opened):
    _, path = report
    page = opened(path)
    assert page.locator("h2").first.inner_text() == "Results"
    table = {row[0]: row[1:] for row in cells(page, "Results")}
    assert (table["loss"][0], table["validation accuracy"]) == ("-", ["50.00%", "75.00%"])
    assert table["best"] == ["validation accuracy 75.00%\nin epoch 2"] * 2
    assert table["learning rate"] == ["1e-05", "0.0005"]
    assert table["samples left out"] == ["2 of 640 training"] * 2
    section = page.locator("section:has(h2:text-is('Epoch by epoch'))")
    charts = {chart.locator("h3").inner_text(): drawn(chart) for chart in section.locator("figure").all()}
    assert list(charts) == ["loss and validation loss", "learning rate", "my own", "validation accuracy"]
    of_single = [line for line in charts["loss and validation loss"] if line[0].startswith("single")]
    assert of_single == [
        ("single: loss", near([1, 2]), near([2.0, 1.0])),
        ("single: validation loss", near([1, 2, 3]), near([2.5, 1.25, 1.5])),
    ]
    assert charts["learning rate"][0][2] == pytest.approx([1e-3, 5e-4, 1e-5], rel=1e-2)
    assert charts["validation accuracy"][0][2] == near([25, 75, 50]), "in percent"
    assert section.inner_text().count("As logged at the end of each epoch.") == 1
    ends = [figure.bounding_box() for figure in section.locator("figure").all()]
    room = section.locator(".table").bounding_box()["y"] - max(box["y"] + box["height"] for box in ends)
    assert room >= 10, "between the last chart and the table"
    assert cells(page, "Samples left out")[1] == ["single", "train: a.jpg: bad"]


def test_all_time_charts_have_one_axis(report, opened):
    _, path = report
    page = opened(path)
    section = page.locator("section:has(h2:text-is('Over time'))")
    scales = section.locator(".plot").evaluate_all("plots => plots.map(p => p.dataset.scale.split(' ').slice(0, 2))")
    assert len(scales) == 4
    assert {tuple(scale) for scale in scales} == {("0.0", "129.0")}
    places = section.locator(".plot").evaluate_all(
        "plots => plots.map(p => [p.clientLeft + p.offsetLeft, p.clientWidth])"
    )
    assert len({tuple(place) for place in places}) == 1, "one stands above the other"


def test_a_chart_is_read_with_the_keyboard_with_a_pointer_and_aloud(report, opened):
    _, path = report
    page = opened(path)
    figure = page.locator("figure").first
    said = figure.locator("output")
    figure.locator(".plot").focus()
    page.keyboard.press("ArrowRight")
    assert said.inner_text().startswith("epoch 1: single: loss 2, single: validation loss 2.5, both ")
    page.keyboard.press("ArrowRight")
    assert said.inner_text().startswith("epoch 2: single: loss 1, single: validation loss 1.25, both ")
    page.keyboard.press("End")
    assert said.inner_text().startswith("epoch 3: ")
    box = figure.locator(".plot").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 5)
    assert said.inner_text().startswith("epoch 2: ")
    alt = figure.locator("svg[role=img]").get_attribute("aria-label")
    assert "single: loss: from 2 to 1, lowest 1 at 2, highest 2 at 1." in alt
    assert page.locator("svg:not([aria-label]):not([aria-hidden])").count() == 0
    assert page.said == []


def test_light_dark_phone_and_print(report, opened):
    _, path = report
    page = opened(path, color_scheme="light", viewport={"width": 390, "height": 800})
    back = "getComputedStyle(document.body).backgroundColor"
    font = "getComputedStyle(document.querySelector('.beside')).color"
    line = "getComputedStyle(document.querySelector('path.line')).stroke"
    assert [page.evaluate(each) for each in (back, font)] == ["rgb(255, 255, 255)", "rgb(27, 31, 36)"]
    assert page.evaluate(line) == "rgb(0, 114, 178)"
    page.emulate_media(color_scheme="dark")
    assert [page.evaluate(each) for each in (back, font)] == ["rgb(20, 24, 29)", "rgb(230, 233, 236)"]
    assert page.evaluate(line) == "rgb(58, 155, 220)"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "a phone need not scroll sideways"
    plots = page.locator(".plot").evaluate_all("plots => plots.map(p => p.getBoundingClientRect().right)")
    assert max(plots) <= 390
    page.emulate_media(color_scheme="dark", media="print")
    assert [page.evaluate(each) for each in (back, font)] == ["rgb(255, 255, 255)", "rgb(27, 31, 36)"]
    assert page.pdf()[:5] == b"%PDF-"
    assert page.said == []


def test_a_plans_page(tmp_path, opened):
    known = catalog()
    found = plan(profile(), known, Bounds("us-east-1"))
    write_plan(found, known, tmp_path / "plan.html")
    page = opened(tmp_path / "plan.html")
    assert page.said == []
    assert page.asked == [(tmp_path / "plan.html").as_uri()]
    best = cells(page, f"The best 10 of {len(found):,} shapes")[1]
    assert best[0] == str(found[0].shape)
    assert best[4] == f"${number(found[0].usd_per_million_samples)}"
    assert page.locator(".lead").inner_text().startswith("CPU hosts pay: ")
    shapes, front = page.locator("figure").first.locator(".legend li").all_inner_texts()
    assert (shapes, front) == ("shapes", "nothing is both faster and cheaper")
    cheapest = found[0]
    said = page.locator("figure").first.locator("title").all_text_contents()
    assert f"{cheapest.shape}: {cheapest.hours:,.2f} hours, ${cheapest.usd:,.2f}" in said
    assert "ml.c5.4xlarge" in page.locator("figure").nth(1).locator(".legend li").all_inner_texts()


def test_a_run_that_failed_has_its_curves_and_says_why(record, tmp_path, opened, monkeypatch):
    nothing = record.totals.model_copy(update={"samples": 0, "samples_per_s": 0.0, "wait_share": 0.0})
    changes = {
        "status": "failed",
        "error": "the loss is nan at step 9\nmore",
        "totals": nothing,
        "ranks": [],
        "stages": [],
    }
    record.model_copy(update={**changes, "epochs": EPOCHS[:2]}).write(tmp_path / "run" / "record.json")
    monkeypatch.setattr(sys, "argv", ["raytrain", "report", str(tmp_path / "run"), "-o", str(tmp_path / "r.html")])
    with pytest.raises(SystemExit, match="0"):
        main()
    page = opened(tmp_path / "r.html")
    assert page.locator(".lead").all_inner_texts() == ["small failed: the loss is nan at step 9"]
    assert drawn(page.locator("figure").first)[0] == ("loss", near([1, 2]), near([2.0, 1.0]))
    table = {row[0]: row[1:] for row in cells(page, "Results")}
    assert table["status"] == ["failed"] and "samples/s" not in table
    assert page.said == []


def test_a_record_without_samplers_prices_or_gpus_has_a_page_too(record, tmp_path, opened):
    record.corrupt.train, record.corrupt.listed = 0, []
    write_report([record], compare([record], catalog()), catalog(), tmp_path / "r.html")
    page = opened(tmp_path / "r.html")
    assert page.said == []
    headings = page.locator("h2").all_inner_texts()
    assert headings == ["Results", "Epoch by epoch", "CPU stages", "Hosts", "Facts"], "and nothing that is empty"
    assert "price" not in page.locator("section:has(h2:text-is('Results'))").inner_text()
    assert "no single instance is predicted" in page.locator("section:has(h2:text-is('Facts'))").inner_text()


def test_stages_on_the_device_have_a_table_of_their_own(record, tmp_path, opened):
    record.ranks[0].device_stage_s = {"gaussian_blur": 1.28}
    record.ranks[0].device_stage_samples = {"gaussian_blur": 320}
    write_report([record], compare([record], catalog()), catalog(), tmp_path / "r.html")
    page = opened(tmp_path / "r.html")
    _, row = cells(page, "Stages on the device")
    assert row == ["small", "gaussian_blur", "320", "4.000", "1.28"]
