"""What a few measured settings say of all the others: Gaussian process regression, in NumPy.

The figure's logarithm is a sum over factors (back end, precision, batch size, …) and over pairs of them, each a
Gaussian process of its own, so that every setting measured tells something of all that share a value with it (an ANOVA
kernel: Durrande et al., "ANOVA kernels and RKHS of zero mean functions", 2013). How much each factor matters is not
settled by twenty points, so that no one guess of it is trusted: what is expected is the mean over some, sampled by
Metropolis' rule.

A library would be optuna. Its default sampler (TPE) begins with ten random trials and takes the factors one by one, its
Gaussian process wants SciPy, and both have to be held to a finite grid, without repetition: not less code than this.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raytrain.infer.contract import Setting

Array = NDArray[np.floating[Any]]
NAMED = ("backend", "precision", "allocator")  # whose values are alike or not; the others are numbers, by logarithm
VARIANCE, LENGTH, PAIRS, NOISE = 0.4, 1.5, 1.0, 0.005  # what `Scales` are taken to be before anything is known
PRIOR_SPREAD = 1.0  # of their logarithms
GUESSES, WALK, THINNED = 6, 0.35, 12  # sampled of the scales; a step of the walk; steps from one to the next
LEVEL = 1.0  # variance of what all figures have in common
NEVER = 0.5  # of the chance of a value that has not worked yet, kept with each failure
LEAST_SPREAD = 0.02  # of the figures' logarithms: below it they are all the same


@dataclass(frozen=True)
class Factors:
    """Settings of a grid as numbers.

    Attributes:
        named: (settings, factors) numbers of names.
        numbers: (settings, factors) logarithms to base 2.
    """

    named: Array
    numbers: Array

    @classmethod
    def of(cls, settings: Sequence[Setting]) -> Factors:
        """Of those factors that differ within the grid. All cores in use take the place of those of a stream: they are
        mostly as many, however many streams share them."""
        rows = {each.name: [getattr(setting, each.name) for setting in settings] for each in fields(Setting)}
        rows["cores"] = [setting.streams * setting.cores for setting in settings]
        differing = {name: values for name, values in rows.items() if len(set(values)) > 1}
        levels = {name: sorted(set(values)) for name, values in differing.items() if name in NAMED}
        named = [[order.index(value) for value in differing[name]] for name, order in levels.items()]
        numbers = [np.log2(values) for name, values in differing.items() if name not in NAMED]
        count = len(settings)
        return cls(*(np.array(each, float).reshape(len(each), count).T for each in (named, numbers)))

    def some(self, which: Sequence[int]) -> Factors:
        return Factors(self.named[list(which)], self.numbers[list(which)])

    def alike(self, other: Factors) -> Array:
        """(factors, these, others): 1 where named ones are the same, else 0; of numbers the squared distance."""
        same = (self.named[:, None] == other.named[None]).astype(float)
        apart = (self.numbers[:, None] - other.numbers[None]) ** 2
        return np.concatenate([same, apart], axis=2).transpose(2, 0, 1)


@dataclass(frozen=True)
class Scales:
    """How much each factor matters.

    Attributes:
        values: logarithms of each factor's variance, each number's length in doublings, the weight of pairs, and the
            variance of noise.
    """

    values: Array
    named: int
    numbers: int

    @classmethod
    def prior(cls, factors: Factors) -> Scales:
        named, numbers = factors.named.shape[1], factors.numbers.shape[1]
        values = [VARIANCE] * (named + numbers) + [LENGTH] * numbers + [PAIRS, NOISE]
        return cls(np.log(values), named, numbers)

    @property
    def noise(self) -> float:
        return math.exp(self.values[-1])

    def kernel(self, alike: Array) -> Array:
        """(these, others) covariance, of what `Factors.alike` says."""
        count = self.named + self.numbers
        variances, lengths = np.exp(self.values[:count]), np.exp(self.values[count : count + self.numbers])
        parts = alike.copy()
        parts[self.named :] = np.exp(-0.5 * alike[self.named :] / lengths[:, None, None] ** 2)
        parts *= variances[:, None, None]
        total = parts.sum(axis=0)
        pairs = 0.5 * (total**2 - (parts**2).sum(axis=0))
        covariance: Array = LEVEL + total + math.exp(self.values[-2]) * pairs
        return covariance

    def among(self, seen: Factors, noise: Array | float) -> Array:
        """Lower Cholesky factor of the covariance among measured settings."""
        return np.linalg.cholesky(self.kernel(seen.alike(seen)) + noise * np.eye(len(seen.named)))

    def of_one(self, factors: Factors) -> float:
        """Variance of any setting."""
        one = factors.some([0])
        return float(self.kernel(one.alike(one))[0, 0])


class Surrogate:
    """Figures of a grid's settings, told from those measured.

    Args:
        factors: of the whole grid.
    """

    def __init__(self, factors: Factors, seed: int):
        self.factors = factors
        self.prior = self._scales = Scales.prior(factors)
        self._rng = np.random.default_rng(seed)

    def guesses(
        self, tried: Sequence[int], figures: Sequence[float], weights: Sequence[float]
    ) -> list[tuple[Array, Array]]:
        """Mean and standard deviation of every setting's figure, without the noise of measuring: for each of some
        guesses of the scales, which are as likely as each other.

        Args:
            tried: numbers of settings.
            figures: their logarithms.
            weights: how many measurements of usual length each stands for.
        """
        seen, values = self.factors.some(tried), np.array(figures, float)
        level, spread = values.mean(), max(values.std(), LEAST_SPREAD)
        scaled, shares = (values - level) / spread, 1 / np.array(weights, float)
        to_all, found = seen.alike(self.factors), []
        for scales in self._sampled(seen, scaled, shares):
            lower = scales.among(seen, scales.noise * shares)
            across = np.linalg.solve(lower, scales.kernel(to_all))
            mean = across.T @ np.linalg.solve(lower, scaled)
            variance = np.maximum(scales.of_one(self.factors) - (across**2).sum(axis=0), 1e-12)
            found.append((level + spread * mean, spread * np.sqrt(variance)))
        return found

    def _sampled(self, seen: Factors, scaled: Array, shares: Array) -> list[Scales]:
        """Metropolis' walk, on from where it was with a point less."""
        among = seen.alike(seen)

        def likely(scales: Scales) -> float:
            """Logarithm, with the scales' own under their prior."""
            lower = np.linalg.cholesky(scales.kernel(among) + np.diag(scales.noise * shares))
            white = np.linalg.solve(lower, scaled)
            away = (scales.values - self.prior.values) / PRIOR_SPREAD
            return -0.5 * float(white @ white + away @ away) - float(np.log(np.diag(lower)).sum())

        here, found = likely(self._scales), []
        for number in range(GUESSES * THINNED):
            step = WALK * self._rng.normal(size=len(self._scales.values))
            moved = Scales(self._scales.values + step, self._scales.named, self._scales.numbers)
            if math.log(1 - self._rng.random()) < (there := likely(moved)) - here:
                self._scales, here = moved, there
            if number % THINNED == THINNED - 1:
                found.append(self._scales)
        return found


def least_known(factors: Factors, count: int, seed: int) -> list[int]:
    """Settings to begin with, as far from each other as can be: each is the one of which those before it say least (by
    the prior's variance: maximin in the kernel's own metric), the first by chance."""
    rng, scales = np.random.default_rng(seed), Scales.prior(factors)
    order = rng.permutation(len(factors.named))  # of equals the first in it
    chosen = [int(order[0])]
    while len(chosen) < min(count, len(order)):
        seen = factors.some(chosen)
        known = (np.linalg.solve(scales.among(seen, scales.noise), scales.kernel(seen.alike(factors))) ** 2).sum(axis=0)
        known[chosen] = np.inf
        chosen.append(int(order[np.argmin(np.round(known[order], 9))]))
    return chosen


def expected_gain(mean: Array, spread: Array, best: float) -> Array:
    """Expected improvement over `best` (Jones et al., "Efficient global optimization", 1998), in the figures' unit."""
    ratio = (mean - best) / spread
    return (mean - best) * normal(ratio) + spread * np.exp(-0.5 * ratio**2) / math.sqrt(2 * math.pi)


def normal(values: Array) -> Array:
    """The normal distribution function."""
    return np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in values])


def likely_to_work(factors: Factors, tried: Sequence[int], works: Sequence[bool]) -> Array:
    """Chance of every setting: that of its worst value, or worst pair of names. One that has worked has Laplace's
    share; one that never has loses half with each failure. As long as nothing works all values are suspects, and what
    has the fewest in common with the failures is likeliest.

    (A Gaussian process of failures is too lenient: each would be a little of every factor's, and mostly it is one's.)
    """
    columns = [*factors.named.T, *factors.numbers.T]
    columns += [a * len(factors.named) + b for a, b in combinations(factors.named.T, 2)]
    worked, chances = np.array(works, float), [np.ones(len(factors.named))]
    for column in columns:
        same = (column[:, None] == column[list(tried)][None]).astype(float)
        well, all_of = same @ worked, same.sum(axis=1)
        chances.append(np.where(well > 0, (1 + well) / (1 + all_of), NEVER**all_of))
    found: Array = np.min(chances, axis=0) if worked.any() else np.prod(chances, axis=0)
    return found
