"""What a person sees of a plan, a comparison, a diagnosis and prices: the answer first, at any width, no cell cut."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from money import prices_file, profile, run_on
from rich.console import Console

from raytrain.cli import prices as command
from raytrain.cost.bounds import Bounds
from raytrain.cost.compare import compare
from raytrain.cost.instances import catalog
from raytrain.cost.planner import plan
from raytrain.cost.profile import Figure
from raytrain.record.schema import StageFigures
from raytrain.report.costs import show_comparison
from raytrain.report.diagnosis import show_diagnosis
from raytrain.report.fitting import Column, fitted, number, show_fitted
from raytrain.report.plans import SHAPES, shape_columns, show_plan, startup_line, verdict
from raytrain.run.verdict import who_waits
from raytrain.study.diagnose import Findings

EAST = Bounds("us-east-1")
PRICES = {"ml.g5.xlarge": 1.408, "ml.g5.2xlarge": 1.515, "ml.g5.12xlarge": 7.09, "ml.c5.4xlarge": 0.816}


def shown(show, width, *arguments, **options):
    console = Console(width=width, file=io.StringIO())
    show(*arguments, console=console, **options)
    return "\n".join(line.rstrip() for line in console.file.getvalue().split("\n"))


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    return catalog(prices_file(tmp_path_factory.mktemp("prices") / "p.yaml", PRICES))


@pytest.fixture(scope="module")
def planned(known):
    return plan(profile(), known, Bounds("here-1"))


AT_80 = """\
CPU hosts pay: 1 x ml.g5.2xlarge + 1 x ml.c5.4xlarge costs $7.20 for the job,
33.8% less than the best without (1 x ml.g5.12xlarge, $10.88)
The best 3 of 204 shapes
#  shape                                  $ in all  hours  samples/s  $/million
1  1 x ml.g5.2xlarge + 1 x ml.c5.4xlarge      7.20   3.09      1,164      0.556
2  2 x ml.g5.2xlarge + 2 x ml.c5.4xlarge      7.28   1.56      2,328      0.556
3  3 x ml.g5.2xlarge + 3 x ml.c5.4xlarge      7.36   1.05      3,492      0.556
left out at a width of 80: limited by, $/hour; --json has them all
assumed: a vCPU of g5 prepares as much as one of c5 did
assumed: several GPUs train as fast as one, times their number: what they tell
each other costs nothing
assumed: the model fits into every GPU's memory: none was measured
prices an hour in here-1: ml.c5.4xlarge $0.816, ml.g5.2xlarge $1.515 (a test's,
undated)
"""

AT_120 = """\
CPU hosts pay: 1 x ml.g5.2xlarge + 1 x ml.c5.4xlarge costs $7.20 for the job, 33.8% less than the best without (1 x
ml.g5.12xlarge, $10.88)
The best 3 of 204 shapes
#  shape                                  $ in all  hours  samples/s  $/million  limited by   $/hour
1  1 x ml.g5.2xlarge + 1 x ml.c5.4xlarge      7.20   3.09      1,164      0.556  accelerator   2.331
2  2 x ml.g5.2xlarge + 2 x ml.c5.4xlarge      7.28   1.56      2,328      0.556  accelerator   4.662
3  3 x ml.g5.2xlarge + 3 x ml.c5.4xlarge      7.36   1.05      3,492      0.556  accelerator   6.993
assumed: a vCPU of g5 prepares as much as one of c5 did
assumed: several GPUs train as fast as one, times their number: what they tell each other costs nothing
assumed: the model fits into every GPU's memory: none was measured
prices an hour in here-1: ml.c5.4xlarge $0.816, ml.g5.2xlarge $1.515 (a test's, undated)
"""


@pytest.mark.parametrize(("width", "text"), [(80, AT_80), (120, AT_120)])
def test_a_plan_answers_first_and_is_short(planned, known, width, text):
    assert shown(show_plan, width, planned, known, count=3) == text


def test_a_plan_of_the_whole_catalog_is_no_longer_than_a_screen_or_two():
    text = shown(show_plan, 80, plan(profile(), catalog(), EAST), catalog())
    assert text.startswith("CPU hosts pay: ")
    assert len(text.splitlines()) < 40


@settings(max_examples=40, deadline=None)
@given(width=st.integers(60, 200))
def test_no_cell_of_a_plan_is_cut(planned, known, width):
    """The essential columns are there at any width, a shape on one line or, in narrow places, on several."""
    best = planned.best(5)
    text = shown(show_plan, width, planned, known)
    lines = text.splitlines()
    assert "…" not in text
    assert all(len(line.rstrip()) <= width for line in lines)
    assert any({"#", "shape", "hours"} <= set(line.split()) and "$ in all" in line for line in lines)
    for place, each in enumerate(best, start=1):
        row = next(line for line in lines if line.startswith(f"{place}  "))
        assert number(each.usd) in row.split()
        assert str(each.shape) in row or f"{place}  {each.shape.gpu_hosts} x {each.shape.gpu_type}" in row


def test_a_narrow_plan_has_shapes_of_several_lines(planned, known):
    lines = shown(show_plan, 44, planned, known, count=1).splitlines()
    assert "1  1 x ml.g5.2xlarge        7.20   3.09" in lines
    assert "   + 1 x ml.c5.4xlarge" in [line.rstrip() for line in lines]


def test_shapes_beyond_the_best_are_shown_where_there_are_some(planned, known):
    best, front = planned.best(5), planned.front()[:5]
    [beyond] = {str(each.shape) for each in front} - {str(each.shape) for each in best}
    text = shown(show_plan, 120, planned, known, count=5)
    assert f"Nothing is both faster and cheaper than these 5 of {len(planned.front())}" in text
    assert beyond in text.partition("Nothing is")[2]
    assert beyond not in text.partition("Nothing is")[0]
    assert "Nothing is" not in shown(show_plan, 120, planned, known, count=3), "the best three are the same"


# -- what decides -------------------------------------------------------------


def small(**changes):
    """1,797 digits, thirty times: seconds of training."""
    cpu = {"cpu_s_per_sample": {"c5": Figure.once(0.004)}, "accelerator_s_per_sample": {"A10G": Figure.once(1 / 20000)}}
    return profile(**{**cpu, "num_samples": 1797, "epochs": 30, "startup_s": Figure.once(200.0), **changes})


def test_where_start_up_decides_it_says_so_and_cents_have_digits(known):
    """Of equal start-up the shapes differ in the third digit, and CPU hosts would halve the price of a sample."""
    found = plan(small(), known, Bounds("here-1"))
    text = shown(show_plan, 120, found, known, count=10)
    assert startup_line(found).startswith(f"start-up decides here: 200 s, {found.startup_share:.0%} of the 1 x ml.g5.")
    assert startup_line(found) in " ".join(text.split())
    costs = [number(each.usd) for each in found.best(10)]
    assert len(set(costs)) > 5, costs
    assert all(cost in text for cost in costs)
    said = verdict(found)
    assert said.startswith("CPU hosts do not pay: 1 x ml.g5.2xlarge is the cheapest, $0.0975 for the job")
    cheap = found.cheapest("usd_per_million_samples", found.figures["first_hosts"] > 0)
    assert (
        f"; they would pay for a longer job: a million samples cost ${number(cheap.usd_per_million_samples)} (" in said
    )


def test_a_start_up_that_nobody_knows_is_named_where_the_training_is_short(known):
    """Three of four vCPUs prepare 750 samples/s of 53,910: 72 s; twenty times as many take 24 minutes."""
    short = plan(small(on_sagemaker=False, efficiency=Figure.once(1.0)), known, Bounds("here-1"))
    assert verdict(short).startswith(
        "start-up decides: 1 x ml.g5.xlarge, the lowest price at $1.41 an hour, trains for 71.9 s only; every host is "
    )
    assert "(--startup SECONDS adds it), so that the order is by the price an hour" in verdict(short)
    assert startup_line(short) is None
    longer = plan(small(on_sagemaker=False, epochs=600), known, Bounds("here-1"))
    assert not longer.by_hour
    assert startup_line(longer).startswith(f"start-up may decide: {longer[0].shape} trains for ")
    assert startup_line(plan(profile(on_sagemaker=False), known, Bounds("here-1"))) is None, "hours of training"
    assert startup_line(plan(profile(), known, Bounds("here-1"))) is None, "120 s of hours"
    assert startup_line(plan(small(startup_s=Figure.once(0.1)), known, Bounds("here-1"))) is None


def test_a_tiny_job_is_told_in_seconds_and_not_in_parts_of_a_cent(known):
    tiny = plan(small(epochs=1, num_samples=100, startup_s=Figure.once(0.1)), known, Bounds("here-1"))
    text = shown(show_plan, 120, tiny, known)
    assert " is the cheapest, less than a cent for the job; " in verdict(tiny), verdict(tiny)
    assert re.search(r"\$ in all +seconds", text), text
    assert number(tiny[0].hours * 3600, least=0) in text.split()
    assert shape_columns(plan(profile(), known, Bounds("here-1")).best(5)) == SHAPES, "in hours"


def test_where_cpu_hosts_pay_for_no_job_nothing_more_is_said(known):
    light = plan(profile(cpu_s_per_sample={"c5": Figure.once(1e-5)}), known, Bounds("here-1"))
    assert verdict(light).startswith("CPU hosts do not pay: ")
    assert "longer job" not in verdict(light)


@pytest.mark.parametrize(
    ("value", "least", "text"),
    [
        (1234.5, 2, "1,234.50"),
        (31.041, 2, "31.04"),
        (1.408, 3, "1.408"),
        (1.408, 2, "1.41"),
        (0.7364, 2, "0.736"),
        (0.01234, 2, "0.0123"),
        (0.00098765, 2, "0.000988"),
        (22.05, 0, "22.1"),
        (1164.4, 0, "1,164"),
        (0.0, 2, "0.00"),
    ],
)
def test_a_number_has_three_digits_that_count(value, least, text):
    assert number(value, least) == text


# -- tables -------------------------------------------------------------------

COLUMNS = (Column("a"), Column("bb", leave=1), Column("ccc", leave=2), Column("dddd", leave=2))
ROWS = (("1", "22", "333", "4444"), ("1", "2", "3", "4"))


@pytest.mark.parametrize(
    ("width", "left_out"), [(99, ()), (16, ()), (15, ("dddd",)), (9, ("ccc", "dddd")), (4, ("bb", "ccc", "dddd"))]
)
def test_columns_go_by_importance_and_are_named(width, left_out):
    """1 + 2 + 3 + 4 characters and two between each two: 16."""
    _, found = fitted("t", COLUMNS, ROWS, width)
    assert found == left_out
    text = shown(show_fitted, width, "t", COLUMNS, ROWS, remedy="look there")
    assert ("left" in text) == bool(left_out)
    said = " ".join(text.split())
    assert not left_out or width < 9 or f"left out at a width of {width}: {', '.join(left_out)}; look there" in said


def test_what_fits_nowhere_is_broken_and_not_cut():
    text = shown(show_fitted, 5, "", (Column("shape", right=False),), [("abcdefghij",)], remedy="")
    assert "".join(text.split()) == "shapeabcdefghij"


def compared(record, number_of_runs=2):
    hosts = [{"ml.g5.xlarge": ("gpu", 1, 1)}, {"ml.g5.xlarge": ("gpu", 1, 1), "ml.c5.4xlarge": ("cpu", 1, 0)}]
    runs = [run_on(record, f"run-{n}", hosts[n % 2], samples_per_s=32.0 + n) for n in range(number_of_runs)]
    return compare(runs, catalog(), region="us-east-1")


@pytest.mark.parametrize(("width", "tables"), [(80, 3), (120, 2), (200, 1)])
def test_runs_that_do_not_fit_side_by_side_come_below(record, width, tables):
    comparison = compared(record, 5)
    text = shown(show_comparison, width, comparison, catalog())
    assert text.count("break-even speed-up") == tables
    assert "…" not in text
    assert all(len(line) <= width for line in text.splitlines())
    for column in comparison.columns:
        assert column.name in text
        assert all(f"{count} x {name}" in text for name, count in column.hosts.items())


def test_no_cell_of_a_comparison_is_cut_at_any_width(record):
    comparison = compared(record)
    for width in range(50, 140, 3):
        text = shown(show_comparison, width, comparison, catalog())
        assert "…" not in text
        assert {"run-0", "run-1", "ml.g5.xlarge", "ml.c5.4xlarge"} <= set(text.replace("│", " ").split())


def test_no_cell_of_a_diagnosis_is_cut():
    findings = Findings(100.0, 200.0, 300.0, 150.0, 120.0, 0.5, who_waits(0.5, [], []))
    shared = profile(efficiency=Figure.once(0.51), cores_shared_with="the CPU stages")
    text = shown(show_diagnosis, 80, findings, shared)
    assert "…" not in text
    assert "efficiency, on shared cores" in text


def test_a_diagnosis_names_the_columns_that_it_leaves_out():
    """Stages: 40 + 6 + 6 + 7 characters and two between each two are 65; the profile's names alone take 31."""
    costs = {"num_samples": 1000, "num_batches": 10, "batch_wall_p90_s": 0.1, "batch_wall_p99_s": 0.2}
    stage = StageFigures(name=40 * "x", cpu_s=3.0, wall_s=4.0, **costs)
    found = Findings(100.0, 200.0, 300.0, 150.0, 120.0, 0.5, who_waits(0.5, [], []), stages=(stage,))
    assert "left out" not in shown(show_diagnosis, 100, found, profile())
    narrow = shown(show_diagnosis, 60, found, profile())
    said = " ".join(narrow.split())
    assert "left out at a width of 60: lowest, highest; the profile's file has them" in said
    assert "left out at a width of 60: of all; a wider terminal or --json has them" in said
    assert "…" not in narrow and 40 * "x" in narrow


def prices(width, regions=("us-east-1", "us-west-2")):
    known = catalog()
    types = command._chosen(known, list(regions), "g5,c5", False)
    marks = command._marks(known, types, list(regions))
    columns, rows = command._columns(list(regions)), command._rows(known, types, list(regions), marks)
    return rows, shown(show_fitted, width, command.TITLE, columns, rows, remedy="--json has them")


@pytest.mark.parametrize(
    ("width", "left_out"),
    [
        (120, None),
        (80, "left out at a width of 80: Gbit/s, per vCPU-hour; --json has them"),
        (60, "left out at a width of 60: GiB, Gbit/s, us-west-2, per vCPU-hour; --json has them"),
    ],
)
def test_prices_say_what_they_leave_out(width, left_out):
    rows, text = prices(width)
    said = " ".join(text.split())
    assert (left_out or "per vCPU-hour") in said
    assert ("left out" in text) == (left_out is not None)
    assert "…" not in text
    for row in rows:
        line = next(line for line in text.splitlines() if line.startswith(f"{row[0]} "))
        assert row[5] in line, "the price in the first region"


def test_every_column_of_a_shape_can_be_left_out_but_the_answer():
    assert [column.name for column in SHAPES if not column.leave] == ["#", "shape", "$ in all", "hours"]
