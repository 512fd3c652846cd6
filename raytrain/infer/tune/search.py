"""Which setting of a grid is the best, trying few of them. Pure but for the function that measures.

First settings far from each other; then, one at a time, the one that a surrogate of all figures expects to gain most;
then the leaders again and for longer, in turn, since whatever led after one short measurement was lucky as well.
Deterministic given the measurements, the seed, and that the budget is not what ends it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from raytrain.config.inference import Objective
from raytrain.infer.contract import Setting, Timed
from raytrain.infer.tune.surrogate import Array, Factors, Surrogate, expected_gain, least_known, likely_to_work, normal

FIRST, MOST_FIRST = 0.4, 24  # of the settings to try, those far from each other, and at most
LEADERS = 3
ROUNDS = 2  # in which leaders are measured again
LONGER = 3.0  # than at first
EXPLORING = 0.7  # of the budget, at most; the rest is for the leaders
LEAST_TRIED = 16  # where a tenth of the grid is fewer
SHARES = 5.0  # of the time for each of those still to try, that one may take while there are others
WORTH_A_TRY = 0.2  # chance that one of the first works, from those that did not
ENOUGH = 0.0001  # expected gain of the figure's logarithm, of whatever might be tried next


@dataclass(frozen=True)
class Refused:
    """A setting that cannot be: it does not load, memory does not suffice, …"""

    reason: str
    wall_s: float = 0.0


Measured = Timed | Refused
Measure = Callable[[Setting, float], Measured]
"""A setting and the seconds that it is to be measured for, starting not included."""


@dataclass(frozen=True)
class Goal:
    """What is best.

    Attributes:
        objective: `throughput` is samples a second of all streams; `latency` the seconds that 95 % of the batches take
            at most, from the moment a stream is given one as large as `batch_size` to its outputs, the others busy.
        most_p95_s: what that may be at most with `throughput`.
    """

    objective: Objective = "throughput"
    most_p95_s: float | None = None

    def gain(self, timed: Timed) -> float:
        """Logarithm of what is to be large."""
        return math.log(timed.samples_per_s) if self.objective == "throughput" else -math.log(timed.percentile(0.95))

    def excess(self, timed: Timed) -> float:
        """Logarithm of how many times too long batches take; at most 0 where that is allowed."""
        return -math.inf if self.most_p95_s is None else math.log(timed.percentile(0.95) / self.most_p95_s)


@dataclass(frozen=True)
class Limits:
    """Attributes: `tried`: settings measured at all, at most; `effort_s`: of a first measurement."""

    tried: int
    budget_s: float
    effort_s: float

    @classmethod
    def of(cls, settings: int, budget_s: float) -> Limits:
        """A tenth of the settings, and about a quarter of the budget for measuring itself: the rest is starting."""
        tried = max(settings // 10, min(LEAST_TRIED, settings))
        measurements = tried + LEADERS * ROUNDS * LONGER
        return cls(tried, budget_s, min(max(budget_s / 4 / measurements, 0.2), 5.0))


@dataclass(frozen=True)
class Trial:
    """One measurement."""

    setting: Setting
    effort_s: float
    measured: Measured


@dataclass(frozen=True)
class Found:
    """Attributes: `trials`: in the order in which they were made; `leaders`: the best first, none where nothing could
    be measured; `allowed`: they keep the limit of the goal, if there is one; `ended`: why it tried no more."""

    trials: list[Trial] = field(repr=False)
    leaders: list[Setting]
    allowed: bool
    ended: str

    @property
    def tried(self) -> int:
        return len({trial.setting for trial in self.trials})


class _Search:
    def __init__(self, settings: Sequence[Setting], measure: Measure, goal: Goal, limits: Limits, seed: int) -> None:
        self.settings, self.goal, self.limits = list(settings), goal, limits
        self.measure = measure
        self.factors = Factors.of(self.settings)
        self.gains, self.excesses = (Surrogate(self.factors, seed) for _ in range(2))
        self.first = least_known(self.factors, min(math.ceil(limits.tried * FIRST), MOST_FIRST), seed)
        self.no_doubt: Array = np.ones(len(self.settings))
        self.trials: list[tuple[int, Trial]] = []

    def try_(self, which: int, effort_s: float) -> Trial:
        setting = self.settings[which]
        trial = Trial(setting, effort_s, self.measure(setting, effort_s))
        self.trials.append((which, trial))
        return trial

    @property
    def tried(self) -> list[int]:
        return list(dict.fromkeys(which for which, _ in self.trials))

    def timed(self) -> dict[int, list[tuple[Timed, float]]]:
        """By setting that works, its measurements and how many of usual length each stands for."""
        found: dict[int, list[tuple[Timed, float]]] = {}
        for which, trial in self.trials:
            if isinstance(trial.measured, Timed):
                found.setdefault(which, []).append((trial.measured, trial.effort_s / self.limits.effort_s))
        refused = {which for which, trial in self.trials if isinstance(trial.measured, Refused)}
        return {which: each for which, each in found.items() if which not in refused}

    def figures(self, of: Callable[[Timed], float]) -> tuple[list[int], list[float], list[float]]:
        """Settings that work, their mean figures, and the weights of these."""
        timed = self.timed()
        means, weights = [], []
        for measurements in timed.values():
            each = [weight for _, weight in measurements]
            means.append(float(np.average([of(timed) for timed, _ in measurements], weights=each)))
            weights.append(sum(each))
        return list(timed), means, weights

    def next(self, shares: Callable[[int], float]) -> int | str:
        """What to try: one of the first, then what gains most in the surrogate's eyes; or why there is nothing.

        Args:
            shares: that it takes of the time for each of those still to try; infinite if it does not fit at all.
        """
        tried = self.tried
        takes = {which: shares(which) for which in range(len(self.settings)) if which not in tried}
        least = min(takes.values())
        if least == math.inf:
            return "the budget was spent"
        out = [*tried, *(which for which, share in takes.items() if share == math.inf)]
        dear = [which for which, share in takes.items() if share > max(SHARES, least)]
        works, gains, weights = self.figures(self.goal.gain)
        chance: Array = (
            likely_to_work(self.factors, tried, [which in works for which in tried]) if tried else self.no_doubt
        )
        for which in self.first:
            if which not in out and which not in dear and chance[which] >= WORTH_A_TRY:
                return which
        if not works:  # wherever that is likeliest
            chance[out + dear] = -1
            return int(np.argmax(chance))
        guesses = self.gains.guesses(works, gains, weights)
        allowed = works
        if self.goal.most_p95_s is not None:
            of, over, their = self.figures(self.goal.excess)
            allowed = [which for which, excess in zip(of, over, strict=True) if excess <= 0]
            chance = chance * _mean([normal(-mean / spread) for mean, spread in self.excesses.guesses(of, over, their)])
        if allowed:
            gain: Array = chance * _mean([expected_gain(mean, spread, mean[allowed].max()) for mean, spread in guesses])
        else:
            gain = chance.copy()  # one that is allowed first
        gain[out] = -np.inf
        enough = ENOUGH if allowed else 0.0
        for left in (
            np.where(np.isin(np.arange(len(gain)), dear), -np.inf, gain),
            gain,
        ):  # those that are not dear first
            if left.max() > enough:
                return int(np.argmax(left))
        return "no other one promised more"

    def leading(self) -> tuple[list[int], bool]:
        """Settings that work, the best first, and whether they are allowed: those that are, or else the quickest."""
        works, gains, weights = self.figures(self.goal.gain)
        if not works:
            return [], True
        excesses = self.figures(self.goal.excess)[1]
        allowed = [number for number in range(len(works)) if excesses[number] <= 0]
        if not allowed:
            return [works[number] for number in np.argsort(excesses, kind="stable")], False
        return [works[number] for number in sorted(allowed, key=lambda number: -gains[number])], True


def _mean(values: Sequence[Array]) -> Array:
    found: Array = np.mean(values, axis=0)
    return found


def search(
    settings: Sequence[Setting],
    measure: Measure,
    goal: Goal,
    limits: Limits,
    *,
    seed: int = 0,
    clock: Callable[[], float] = time.monotonic,
    watch: Callable[[Trial], None] = lambda trial: None,
) -> Found:
    """The best of a grid.

    Args:
        watch: told each measurement when it has been made.
    """
    state, begun = _Search(settings, measure, goal, limits, seed), clock()
    starts: dict[str, float] = {}  # seconds of a back end's last measurement beyond its effort

    def expected_s(which: int, effort_s: float) -> float:
        """As its back end's last one took; one of which nothing is known, as the quickest: it may be found out."""
        return starts.get(settings[which].backend, min(starts.values(), default=0.0)) + effort_s

    def shares(which: int) -> float:
        left_s, takes_s = limits.budget_s * EXPLORING - (clock() - begun), expected_s(which, limits.effort_s)
        if takes_s > left_s and state.trials:
            return math.inf
        return takes_s * (limits.tried - len(state.tried)) / max(left_s, 1e-9)

    def measured(which: int, effort_s: float) -> None:
        trial = state.try_(which, effort_s)
        starts[settings[which].backend] = max(trial.measured.wall_s - effort_s, 0.0)
        watch(trial)

    ended = "as many as were to be"
    while len(state.tried) < min(limits.tried, len(settings)):
        which = state.next(shares)
        if isinstance(which, str):
            ended = which
            break
        measured(which, limits.effort_s)
    if len(state.tried) == len(settings):
        ended = "there were no others"
    again: set[int] = set()
    for _ in range(ROUNDS):
        for which in state.leading()[0][:LEADERS]:
            if clock() - begun + expected_s(which, LONGER * limits.effort_s) <= limits.budget_s:
                again.add(which)
                measured(which, LONGER * limits.effort_s)
    leading, allowed = state.leading()
    sure = [which for which in leading if which in again] or leading
    return Found([trial for _, trial in state.trials], [settings[which] for which in sure[:LEADERS]], allowed, ended)
