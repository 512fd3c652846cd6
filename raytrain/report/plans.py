"""What a plan says: the answer first, then the shapes, then what it rests on."""

from __future__ import annotations

from dataclasses import replace

from rich.console import Console

from raytrain.cost.instances import Catalog
from raytrain.cost.planner import SHORT_JOB_S, Plan, Prediction
from raytrain.report.costs import price_lines
from raytrain.report.fitting import Column, number, show_fitted
from raytrain.report.places import WAYS, names_of, takes, way_rows

TOP = 5  # shapes of a table
STARTUP_DECIDES = 0.5  # share of the best shape's hours


def show_plan(plan: Plan, known: Catalog, console: Console, count: int = TOP) -> None:
    best, front = plan.best(count), plan.front()
    for line in answer(plan):
        console.print(line, markup=False, highlight=False)
    estimates = ", estimates" if plan.profile.estimated else ""
    _show(f"The best {len(best)} of {len(plan):,} shapes{estimates}", best, console)
    shown = front[:count]
    if {each.shape for each in shown} - {each.shape for each in best}:
        title = f"Nothing is both faster and cheaper than these {len(shown)} of {len(front)}{estimates}"
        _show(title, shown, console)
    if rows := way_rows(plan):
        show_fitted("Where stages may run", WAYS, rows, console, "--json has them all")
    for line in plan_lines(plan, known, [*best, *shown]):
        console.print(line, markup=False, highlight=False)


def answer(plan: Plan) -> list[str]:
    """The verdict, where the stages run, and what decides if that is the start-up."""
    return [line for line in (verdict(plan), takes(plan), startup_line(plan)) if line]


def plan_lines(plan: Plan, known: Catalog, shapes: list[Prediction]) -> list[str]:
    """What is assumed, and where the prices of some shapes are from."""
    shown = {name for each in shapes for name, _ in ((each.shape.gpu_type, 0), *each.shape.cpu_hosts)}
    return [
        *(f"assumed: {line}" for line in plan.assumptions),
        *price_lines([price for price in plan.prices if price.type in shown], known),
    ]


LEAST_USD = 0.01
LEAST_HOURS = 0.1  # of the longest of some shapes, to be told in hours


def in_all(usd: float) -> str:
    """What the job costs, in a sentence."""
    return "less than a cent" if usd < LEAST_USD else f"${number(usd)}"


def verdict(plan: Plan) -> str:
    """Whether CPU hosts pay, in one line."""
    text = _verdict(plan)
    return f"estimated, no GPU was measured: {text}" if plan.profile.estimated else text


def _verdict(plan: Plan) -> str:
    if plan.by_hour:
        return (
            f"start-up decides: {plan[0].shape}, the lowest price at ${number(plan[0].usd_per_hour)} an hour, trains "
            f"for {plan[0].hours * 3600:.3g} s only; every host is paid for while it starts too, which is not in these "
            "figures (--startup SECONDS adds it), so that the order is by the price an hour and CPU hosts do not pay"
        )
    without, with_hosts = plan.best_without_cpu_hosts, plan.best_with_cpu_hosts
    if without is None or with_hosts is None:
        return (
            f"{plan[0].shape} is the cheapest, {in_all(plan[0].usd)} for the job; only shapes "
            f"{'with' if without is None else 'without'} CPU hosts are within the limits"
        )
    if without.usd > with_hosts.usd:
        return (
            f"CPU hosts pay: {with_hosts.shape} costs {in_all(with_hosts.usd)} for the job, "
            f"{1 - with_hosts.usd / without.usd:.1%} less than the best without ({without.shape}, "
            f"{in_all(without.usd)})"
        )
    text = (
        f"CPU hosts do not pay: {without.shape} is the cheapest, {in_all(without.usd)} for the job; with CPU hosts it "
        f"costs at least {with_hosts.usd / without.usd - 1:.1%} more ({with_hosts.shape})"
    )
    alone = plan.figures["first_hosts"] == 0
    cheap, beside = (plan.cheapest("usd_per_million_samples", mask) for mask in (alone, ~alone))
    if beside.usd_per_million_samples < cheap.usd_per_million_samples:
        text += (
            f"; they would pay for a longer job: a million samples cost ${number(beside.usd_per_million_samples)} "
            f"({beside.shape}) against ${number(cheap.usd_per_million_samples)} ({cheap.shape})"
        )
    return text


def startup_line(plan: Plan) -> str | None:
    """Says so where start-up decides more than the shapes do; None where it does not."""
    best, trains_s = plan[0], plan[0].hours * 3600
    if plan.startup_share > STARTUP_DECIDES:
        return (
            f"start-up decides here: {plan.startup_s:.3g} s, {plan.startup_share:.0%} of the {best.shape}'s time, so "
            "that the price an hour counts more than the speed"
        )
    if plan.startup_s is not None or plan.by_hour or trains_s > SHORT_JOB_S:
        return None
    return (
        f"start-up may decide: {best.shape} trains for {trains_s:.3g} s only, and is paid for while it starts too, "
        "which is not in these figures (--startup SECONDS adds it)"
    )


SHAPES = (
    Column("#"),
    Column("shape", right=False, narrow=lambda text: text.replace(" + ", "\n+ ")),
    Column("$ in all"),
    Column("hours"),
    Column("samples/s", leave=1),
    Column("$/million", leave=2),
    Column("limited by", leave=3, right=False),
    Column("$/hour", leave=4),
)
ON_DEVICE = Column("on the device", leave=1, right=False)


def shape_columns(found: list[Prediction]) -> tuple[Column, ...]:
    """SHAPES, with what is on the device where something is; of jobs that are soon done the time is in seconds."""
    unit, _ = time_unit(found)
    columns = tuple(replace(each, name=unit) if each.name == "hours" else each for each in SHAPES)
    return (*columns, ON_DEVICE) if any(each.on_device for each in found) else columns


def time_unit(found: list[Prediction]) -> tuple[str, int]:
    """What the job's time is told in, and how many of them an hour has."""
    return ("hours", 1) if max(each.hours for each in found) >= LEAST_HOURS else ("seconds", 3600)


def shape_rows(found: list[Prediction]) -> list[list[str]]:
    """Cells of `shape_columns`."""
    _, an_hour = time_unit(found)
    moved = any(each.on_device for each in found)
    return [
        [
            str(place),
            str(each.shape),
            number(each.usd),
            number(each.hours * an_hour, least=0),
            number(each.samples_per_s, least=0),
            number(each.usd_per_million_samples),
            each.limit,
            number(each.usd_per_hour, least=3),
            *([names_of(each.on_device) if each.on_device else "-"] if moved else []),
        ]
        for place, each in enumerate(found, start=1)
    ]


def _show(title: str, found: list[Prediction], console: Console) -> None:
    show_fitted(title, shape_columns(found), shape_rows(found), console, "--json has them all")
