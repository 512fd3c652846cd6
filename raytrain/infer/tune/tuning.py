"""From a job to its best setting: the search with the model alone, then the leaders on the whole path, since what
prepares the samples shares the cores."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from raytrain.config.inference import Inference, Tune
from raytrain.errors import PredictionError
from raytrain.infer.contract import Setting
from raytrain.infer.tune.pareto import front
from raytrain.infer.tune.points import Point, Points, now, point_of
from raytrain.infer.tune.search import LEADERS, Found, Goal, Limits, Measure, Measured, Refused, Trial, search
from raytrain.infer.tune.space import Space, with_block
from raytrain.infer.tune.tuned import said

OF_MODEL = 0.7  # of the budget; the rest is for the whole path
AS_GOOD = 0.98  # of the most samples a second on the whole path: among these the order of the search stands


@dataclass(frozen=True)
class Whole:
    """Samples a second of the whole path, and of its parts each by itself; `text` says which of them limits."""

    together: float
    model: float | None
    prepare: float | None
    wall_s: float
    text: str = ""


MeasureWhole = Callable[[Setting], Whole | Refused]


@dataclass(frozen=True)
class Measures:
    """What measures. `model`: the model alone; `whole`: with preprocessing and output, on a sample of the data."""

    model: Measure
    whole: MeasureWhole


@dataclass(frozen=True)
class Row:
    """What is known of a setting: the means of its points, each with the weight of its effort.

    Attributes: `refused`: why there are no figures; `points`: how many there were.
    """

    setting: Setting
    samples_per_s: float | None
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None
    refused: str | None
    points: int


@dataclass(frozen=True)
class Tuned:
    """Attributes: `rows`: the best first by `objective`; `front`: settings that no other one beats in both samples a
    second and p95; `whole`: of the contenders; `why`: in one line."""

    goal: Goal
    space: Space
    rows: list[Row]
    front: list[Setting]
    whole: list[Point]
    pick: Setting
    why: str
    tried: int
    ended: str
    points: list[Point]

    @property
    def picked_row(self) -> Row:
        """Of the model alone."""
        return next(row for row in self.rows if with_block(row.setting, 0) == with_block(self.pick, 0))


def goal_of(tune: Tune, inference: Inference) -> Goal:
    limit_s = None if tune.latency_p95_ms is None else tune.latency_p95_ms / 1e3
    return Goal(inference.objective, limit_s if inference.objective == "throughput" else None)


def tune(
    space: Space,
    goal: Goal,
    measures: Measures,
    points: Points,
    *,
    budget_s: float,
    seed: int = 0,
    clock: Callable[[], float] = time.monotonic,
    watch: Callable[[str | Trial | Point], None] = lambda told: None,
) -> Tuned:
    """
    Args:
        points: those that it has are not measured again.
        watch: told what is being done, and each measurement.

    Raises:
        PredictionError: nothing that was tried works.
    """
    begun, used = clock(), []

    def model(setting: Setting, effort_s: float) -> Measured:
        point = points.take("model", setting)
        if point is None:
            watch(f"{said(setting, space.on_gpu)}: the model alone")
            point = point_of(setting, effort_s, measures.model(setting, effort_s), points.subject)
            points.add(point)
        used.append(point)
        return point.measured

    settings = space.of_model
    limits = Limits.of(len(settings), budget_s * OF_MODEL)
    found = search(settings, model, goal, limits, seed=seed, clock=clock, watch=watch)
    rows = rows_of(used, goal)
    if not found.leaders:
        some = "; ".join(dict.fromkeys(row.refused for row in rows if row.refused))
        raise PredictionError(f"none of the {found.tried} settings that were tried works: {some[:500]}")
    contenders = contenders_of(found, rows, goal, space.on_gpu)
    whole = _on_the_whole_path(contenders, space, measures, points, lambda: budget_s - (clock() - begun), watch)
    pick, why = _picked(found, rows, whole, goal, space)
    known = [row for row in rows if row.samples_per_s is not None and row.p95_s is not None]
    best = front([(row.samples_per_s or 0.0, row.p95_s or 0.0) for row in known])
    return Tuned(
        goal, space, rows, [known[number].setting for number in best], whole, pick, why, found.tried, found.ended, used
    )


def contenders_of(found: Found, rows: Sequence[Row], goal: Goal, on_gpu: bool) -> list[Setting]:
    """Settings for the whole path, as many as there are leaders: with throughput not only leaders, which are mostly
    neighbours, but the best that leave preprocessing other cores as well, or that share a GPU by another number, so
    that computing hides what they wait for."""
    if goal.objective == "latency" or not found.allowed:
        return found.leaders

    def kind(setting: Setting) -> int:
        return setting.tasks_per_gpu if on_gpu else setting.streams * setting.cores

    first: dict[int, Setting] = {}
    for setting in (found.leaders[0], *(row.setting for row in rows if _allowed(row, goal))):
        first.setdefault(kind(setting), setting)
    return list(dict.fromkeys([*first.values(), *found.leaders]))[:LEADERS]


def _allowed(row: Row, goal: Goal) -> bool:
    if row.p95_s is None:
        return False
    return goal.most_p95_s is None or row.p95_s <= goal.most_p95_s


def _on_the_whole_path(
    contenders: Sequence[Setting],
    space: Space,
    measures: Measures,
    points: Points,
    left_s: Callable[[], float],
    watch: Callable[[str | Trial | Point], None],
) -> list[Point]:
    """Of the contenders, and of the best of them with other blocks, as far as the budget goes: one is measured while
    there is any of it, more if they fit when they take as long as the longest so far."""
    measured: list[Point] = []

    def measure(settings: Iterable[Setting]) -> None:
        for setting in settings:
            point = points.take("whole", setting)
            if point is None:
                longest_s = max((each.wall_s for each in measured), default=0.0)
                if left_s() <= longest_s:
                    return
                watch(f"{said(setting, space.on_gpu)}: the whole path, blocks of {setting.block_rows}")
                point = _point_of_whole(setting, measures.whole(setting), points)
                points.add(point)
            measured.append(point)
            watch(point)

    measure(contenders)
    works = [point for point in measured if point.samples_per_s is not None]
    if works:
        best = max(works, key=lambda point: point.samples_per_s or 0.0)
        measure(space.blocks_of(best.setting)[1:])
    return measured


def _point_of_whole(setting: Setting, whole: Whole | Refused, points: Points) -> Point:
    figures: dict[str, Any]
    if isinstance(whole, Refused):
        figures = {"refused": whole.reason}
    else:
        figures = {"samples_per_s": whole.together, "model_samples_per_s": whole.model}
        figures |= {"prepare_samples_per_s": whole.prepare}
    about: dict[str, Any] = {"at": now(), "subject": points.subject, "wall_s": whole.wall_s}
    return Point(what="whole", setting=setting, effort_s=0.0, **about, **figures)


def rows_of(points: Iterable[Point], goal: Goal) -> list[Row]:
    """One a setting, of the model alone; those that cannot be last."""
    by_setting: dict[Setting, list[Point]] = {}
    for point in points:
        by_setting.setdefault(point.setting, []).append(point)
    rows = [_row(setting, each) for setting, each in by_setting.items()]
    return sorted(rows, key=lambda row: _order(row, goal))


def _row(setting: Setting, points: list[Point]) -> Row:
    refused = next((point.refused for point in points if point.refused), None)
    if refused is not None:
        return Row(setting, None, None, None, None, refused, len(points))

    effort_s = sum(each.effort_s for each in points)

    def mean(name: str) -> float:
        return sum(float(getattr(each, name)) * each.effort_s for each in points) / effort_s

    return Row(setting, mean("samples_per_s"), mean("p50_s"), mean("p95_s"), mean("p99_s"), None, len(points))


def _order(row: Row, goal: Goal) -> tuple[bool, float]:
    if row.samples_per_s is None or row.p95_s is None:
        return True, 0.0
    return False, -row.samples_per_s if goal.objective == "throughput" else row.p95_s


def _picked(found: Found, rows: list[Row], whole: list[Point], goal: Goal, space: Space) -> tuple[Setting, str]:
    """And why, in one line."""
    together = {point.setting: point for point in whole if point.samples_per_s is not None}
    pick = found.leaders[0]
    if together and goal.objective == "throughput":
        most = max(point.samples_per_s or 0.0 for point in together.values())
        pick = next(each for each, point in together.items() if (point.samples_per_s or 0.0) >= AS_GOOD * most)
    elif together:
        pick = next((each for each in together), pick)
    row = next(row for row in rows if with_block(row.setting, 0) == with_block(pick, 0))
    assert row.samples_per_s is not None and row.p95_s is not None, "a leader has figures"
    figures = f"the model alone {row.samples_per_s:,.4g} samples/s, p95 {row.p95_s * 1e3:,.4g} ms"
    if pick in together:
        point = together[pick]
        figures += f"; with preprocessing {point.samples_per_s:,.4g} samples/s"
    first = "the most samples a second" if goal.objective == "throughput" else "the least p95 latency"
    if goal.most_p95_s is not None:
        first += f" with p95 within {goal.most_p95_s * 1e3:g} ms"
        if not found.allowed:
            first = f"the least p95 latency, since nothing that was tried keeps within {goal.most_p95_s * 1e3:g} ms"
    tried = f"{found.tried} of {len(space.of_model)} settings tried"
    return pick, f"{said(pick, space.on_gpu)}: {first} ({figures}; {tried})"
