"""What a person sees of tuning: a line or a bar while it measures, and then the points, the leaders and the pick."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.table import Table

from raytrain.cluster import hardware
from raytrain.config.inference import PredictionJob
from raytrain.cost.instances import Catalog
from raytrain.errors import ConfigError
from raytrain.infer.tune.pareto import Rate, rate_of
from raytrain.infer.tune.points import FILE, Point, Points
from raytrain.infer.tune.search import Limits, Refused, Trial
from raytrain.infer.tune.space import space_of
from raytrain.infer.tune.tuned import keys_of, said
from raytrain.infer.tune.tuning import Measures, Row, Tuned, goal_of, tune
from raytrain.record.holding import take
from raytrain.report.costs import price_lines, usd
from raytrain.report.fitting import Column, number, show_fitted
from raytrain.report.terminal import LiveDisplay

WHOLE = "With preprocessing: the leader, and others that leave it other cores (samples/s)"
REMEDY = "a wider terminal or --json has them"


class Display(LiveDisplay):
    """Shows how tuning stands."""

    def __init__(self, console: Console, most: int, on_gpu: bool):
        super().__init__(console)
        self._most, self._on_gpu = most, on_gpu
        self._tried: set[object] = set()
        self._doing = ""

    def update(self, told: str | Trial | Point) -> None:
        """Called with what is being done, and with every measurement."""
        if isinstance(told, str):
            self._doing = told
        elif isinstance(told, Trial):
            self._tried.add(told.setting)
            self._print(f"{said(told.setting, self._on_gpu)}: {_outcome(told)}")
        else:
            self._print(f"{said(told.setting, self._on_gpu)}: {_of_whole(told)}")
        if self._live is not None:
            grid = Table.grid(padding=(0, 2), expand=True)
            grid.add_row(f"{len(self._tried)} of at most {self._most} settings  {self._doing}")
            grid.add_row(ProgressBar(total=self._most, completed=len(self._tried)))
            self._live.update(grid, refresh=True)

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _outcome(trial: Trial) -> str:
    if isinstance(trial.measured, Refused):
        return f"not possible: {trial.measured.reason}"
    timed = trial.measured
    return f"{number(timed.samples_per_s, least=1)} samples/s, p95 {milliseconds(timed.percentile(0.95))} ms"


def _of_whole(point: Point) -> str:
    if point.samples_per_s is None:
        return f"not possible on the whole path: {point.refused}"
    return f"{number(point.samples_per_s, least=1)} samples/s with preprocessing, blocks of {point.setting.block_rows}"


def show_tuned(tuned: Tuned, rate: Rate | None, known: Catalog, console: Console) -> None:
    """All that was measured, which points are worth a look, and what was picked and why."""
    show_fitted(title_of(tuned), *points_table(tuned, rate), console, REMEDY)
    if tuned.whole:
        console.print()
        show_fitted(
            "With preprocessing: the leader, others that leave it other cores (samples/s)",
            *whole_table(tuned, rate),
            console,
            REMEDY,
        )
    console.print()
    for line in (*refusals(tuned), *left_out(tuned), *price_said(rate, known), f"pick: {tuned.why}"):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def title_of(tuned: Tuned) -> str:
    return (
        f"The model alone: {tuned.tried} of {len(tuned.space.of_model)} settings were tried, {tuned.ended}; "
        "ms of a batch as it is given"
    )


def points_table(tuned: Tuned, rate: Rate | None) -> tuple[list[Column], list[list[str]]]:
    """The best first; what could not be measured is not in it."""
    on_gpu = tuned.space.on_gpu
    columns = [
        Column("", right=False),
        Column("back end", right=False),
        Column("precision", right=False),
        Column("batch"),
        Column("a GPU") if on_gpu else Column("streams x cores"),
        *([] if on_gpu else [Column("allocator", 3, right=False)]),
        Column("samples/s"),
        Column("p50 ms", 4),
        Column("p95 ms"),
        Column("p99 ms", 2),
        *([Column("$ a million", 1)] if rate else []),
    ]
    return columns, [_cells(row, tuned, rate) for row in tuned.rows if row.refused is None]


def _cells(row: Row, tuned: Tuned, rate: Rate | None) -> list[str]:
    setting = row.setting
    assert row.samples_per_s is not None
    where = [f"{setting.streams} x {setting.cores}", setting.allocator]
    return [
        mark_of(row, tuned),
        setting.backend,
        setting.precision,
        str(setting.batch_size),
        *([str(setting.tasks_per_gpu)] if tuned.space.on_gpu else where),
        number(row.samples_per_s, least=1),
        *(milliseconds(each) for each in (row.p50_s, row.p95_s, row.p99_s)),
        *([usd(rate.per_million(row.samples_per_s))] if rate else []),
    ]


def mark_of(row: Row, tuned: Tuned) -> str:
    """`pick`, `front` for what no other point beats in both samples a second and p95, or nothing."""
    if row.setting == tuned.picked_row.setting:
        return "pick"
    return "front" if row.setting in tuned.front else ""


def whole_table(tuned: Tuned, rate: Rate | None) -> tuple[list[Column], list[list[str]]]:
    """The three figures of each leader: its model alone, preprocessing alone, and both together."""
    columns = [
        Column("setting", right=False),
        Column("block", 1),
        Column("model alone"),
        Column("preprocessing alone"),
        Column("together"),
        *([Column("$ a million", 2)] if rate else []),
    ]
    rows = [
        [
            said(point.setting, tuned.space.on_gpu),
            str(point.setting.block_rows),
            _rate(point.model_samples_per_s),
            _rate(point.prepare_samples_per_s),
            _rate(point.samples_per_s) if point.refused is None else "not possible",
            *([usd(rate.per_million(point.samples_per_s)) if point.samples_per_s else "-"] if rate else []),
        ]
        for point in tuned.whole
    ]
    return columns, rows


def refusals(tuned: Tuned) -> list[str]:
    """A line a reason."""
    found: dict[str, list[str]] = {}
    for row in tuned.rows:
        if row.refused is not None:
            found.setdefault(row.refused, []).append(said(row.setting, tuned.space.on_gpu))
    for point in tuned.whole:
        if point.refused is not None:
            found.setdefault(point.refused, []).append(f"{said(point.setting, tuned.space.on_gpu)}, on the whole path")
    return [f"not possible: {'; '.join(settings)}: {reason}" for reason, settings in found.items()]


def left_out(tuned: Tuned) -> list[str]:
    """Combinations that were not in the grid, and why."""
    return [f"left out, {count} combinations: {why}" for why, count in Counter(tuned.space.left_out).most_common()]


def price_said(rate: Rate | None, known: Catalog) -> list[str]:
    if rate is None:
        return []
    return [*price_lines([rate.price], known), *([rate.note] if rate.note else [])]


def milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else number(seconds * 1e3, least=1)


def _rate(value: float | None) -> str:
    return "-" if value is None else number(value, least=1)


def tree_of(tuned: Tuned, rate: Rate | None) -> dict[str, Any]:
    """For a program to read."""
    rows = [
        {
            **asdict(row),
            "front": row.setting in tuned.front,
            "usd_per_million": rate.per_million(row.samples_per_s) if rate and row.samples_per_s else None,
        }
        for row in tuned.rows
    ]
    return {
        "pick": keys_of(tuned.pick, tuned.space.on_gpu),
        "why": tuned.why,
        "objective": tuned.goal.objective,
        "settings": len(tuned.space.of_model),
        "tried": tuned.tried,
        "ended": tuned.ended,
        "points": rows,
        "whole": [point.model_dump(mode="json", exclude={"subject"}) for point in tuned.whole],
        "left_out": tuned.space.left_out,
        "instance": None if rate is None else {"type": rate.instance, "usd_per_hour": rate.usd_per_hour},
    }


def tuned_here(
    job: PredictionJob, known: Catalog, instance: str | None, region: str | None, console: Console
) -> tuple[Tuned, Rate | None, Path]:
    """Tune a job on this host, with a live display; what it is priced at, and the run's folder.

    Raises:
        RaytrainError: what went wrong.
    """
    from raytrain.infer.predict import folder_of
    from raytrain.infer.tune.on_host import OnHost

    rate = rate_here(job, known, instance, region, console)
    folder = folder_of(job)
    with held(folder), OnHost(job) as host:
        space, goal = space_of(job.tune, job.inference, host.machine), goal_of(job.tune, job.inference)
        points = Points(folder / FILE, host.subject)
        points.read()
        for line in points.said():
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        most = Limits.of(len(space.of_model), job.tune.budget_s).tried
        with Display(console, most, space.on_gpu) as display:
            found = tune(
                space,
                goal,
                Measures(host.model, host.whole),
                points,
                budget_s=job.tune.budget_s,
                seed=job.tune.seed,
                watch=display.update,
            )
    return found, rate, folder


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """A run's folder, taken from any other process.

    Raises:
        ConfigError: another process is using it, or it cannot be made.
    """
    with take(folder):
        yield


def rate_here(
    job: PredictionJob, known: Catalog, instance: str | None, region: str | None, console: Console
) -> Rate | None:
    """As asked for; of what the job's groups say only where that is of use, with a line where it is not.

    Raises:
        ConfigError: the instance that was asked for has no price for this machine.
    """
    cpus, gpus = hardware.usable_cpus(), len(hardware.gpu_names())
    if instance is not None:
        return rate_of(known, instance, region, cpus, gpus)
    types = {group.instance_type for group in job.cluster.groups if group.instance_type}
    if len(types) != 1:
        return None
    try:
        return rate_of(known, types.pop(), region, cpus, gpus)
    except ConfigError as error:
        console.print(f"no prices: {error}", markup=False, highlight=False, soft_wrap=True)
        return None
