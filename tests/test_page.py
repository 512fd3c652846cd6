"""The pages, in a real browser."""

from __future__ import annotations

import json
import shutil

import pytest
from money import profile, run_on
from patience import patient

from raytrain.cost.compare import compare
from raytrain.cost.instances import catalog
from raytrain.cost.planner import Bounds, plan
from raytrain.report.page import write_plan, write_report

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: make test installs Debian's where it is root")

SINGLE = {"ml.g5.xlarge": ("gpu", 1, 1)}
BOTH = {"ml.g5.xlarge": ("gpu", 1, 1), "ml.c5.4xlarge": ("cpu", 1, 0)}
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
        page.wait_for_selector(".main-svg")
        return page

    yield show
    for context in contexts:
        context.close()


@pytest.fixture
def report(record, tmp_path):
    runs = [
        run_on(record, "single", SINGLE, samples_per_s=32.0),
        run_on(record, f"both {EVIL}", BOTH, samples_per_s=62.2, wait_share=0.031),
    ]
    path = tmp_path / "report.html"
    write_report(runs, compare(runs, catalog(), region="us-east-1"), catalog(), path)
    return runs, path


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
    drawn = page.evaluate("[...document.querySelectorAll('.chart')].map(c => c.data.map(t => [t.name, t.x, t.y]))")
    titles = page.locator("section:has(.chart) h2").all_inner_texts()
    charts = dict(zip(titles, drawn, strict=True))
    assert charts["Samples a second"][0] == ["single", runs[0].progress.at_s, runs[0].progress.samples_per_s]
    assert charts["Waiting for data"][1][2] == [pytest.approx(3.1)] * 10
    assert {name for name, _, _ in charts["CPU busy, by host"]} >= {"single: gpu-1"}
    assert charts["What the CPU stages cost"][0][1:] == [[5.0, 0.0], ["decode", "read"]]
    (_, x, predicted), (_, at, measured) = charts["Cost against CPU hosts"]
    assert (x[:3], at) == ([0, 1, 2], [0, 1])
    assert measured[0] == pytest.approx(predicted[0]), "the curve goes through the run that it is predicted from"
    assert page.locator(".chart .main-svg path.js-line, .chart .main-svg .point path").count() > 5
    facts = page.locator("section:has(h2:text-is('Facts'))").inner_text()
    assert "ml.g5.xlarge $1.408" in facts
    assert "python 3.11" in facts


def test_light_dark_phone_and_print(report, opened):
    _, path = report
    page = opened(path, color_scheme="light", viewport={"width": 390, "height": 800})
    back = "getComputedStyle(document.body).backgroundColor"
    font = "document.querySelector('.chart').layout.font.color"
    assert (page.evaluate(back), page.evaluate(font)) == ("rgb(255, 255, 255)", "#1b1f24")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"{font} === '#e6e9ec'")
    assert page.evaluate(back) == "rgb(20, 24, 29)"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "a phone need not scroll sideways"
    assert page.evaluate("document.querySelector('.main-svg').getBoundingClientRect().right") <= 390
    page.emulate_media(color_scheme="dark", media="print")
    page.wait_for_function(f"{font} === '#1b1f24'")
    assert page.evaluate(back) == "rgb(255, 255, 255)"
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
    assert best[4] == f"${found[0].usd_per_million_samples:.2f}"
    assert page.locator(".lead").inner_text().startswith("CPU hosts pay: ")
    names = page.evaluate("[...document.querySelectorAll('.chart')].map(c => c.data.map(t => t.name))")
    assert names[0] == ["shapes", "nothing is both faster and cheaper"]
    assert "ml.c5.4xlarge" in names[1]


def test_a_record_without_samplers_prices_or_gpus_has_a_page_too(record, tmp_path, opened):
    write_report([record], compare([record], catalog()), catalog(), tmp_path / "r.html")
    page = opened(tmp_path / "r.html")
    assert page.said == []
    assert page.locator("section:has(.chart) h2").all_inner_texts() == ["What the CPU stages cost"]
    assert json.loads(page.locator("#charts").inner_text())
