r"""The probability that a configuration lies within the tolerance of the reference.

With the metric signed so that more is better, and paired by seed and example, a contrast includes the tolerance's
error: for a share t of the reference and for a share g of its gain over a floor,

$$c = y - (1 - t)\, y_{ref}, \qquad c = (y - y_{ref}) + g\, (y_{ref} - y_{floor})$$

The configuration lies within the tolerance where the mean of c is above 0, and
$P = F_\nu(\bar c / se(\bar c))$ with Student's distribution function: the one-sided bound turned round, one half of
two one-sided tests. The variance comes from the two-way layout of seeds and examples (`statistics`), or, where every
seed has validation rows of its own, from the spread of the seeds' means.

Metrics of 0 and 1 have a floor under the examples' part of the variance: a difference of L needs at least a share |L|
of examples that differ, so that part is at least $k |L| (1 - |L|) / n$. Without it a few examples that all
agree would give a probability of 1.

References:
    Schuirmann, A comparison of the two one-sided tests procedure, 1987.
    Tango, Equivalence test and confidence interval for the difference in proportions, 1998 (score bounds).
    Satterthwaite, An Approximate Distribution of Estimates of Variance Components, 1946.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rankwise.sweeps.choose.rule import Tolerance
from rankwise.sweeps.choose.statistics import Spread, spread_of, t_quantile

POINTS = 160
"""Points between the tolerance and the largest possible difference at which the score bound is evaluated."""


@dataclass(frozen=True, eq=False)
class Paired:
    """A configuration and the reference on the same seeds and validation rows; more is better.

    Args:
        ours: Metric of each row, by seed.
        theirs: The reference's.
        floor: Of the better of base and constant prediction on these rows; None where neither is known.
        rotated: Whether every seed has validation rows of its own, so that columns don't line up.
        distinct_rows: Distinct validation rows, over all seeds.
    """

    ours: tuple[np.ndarray, ...]
    theirs: tuple[np.ndarray, ...]
    floor: tuple[np.ndarray, ...] | None
    rotated: bool
    distinct_rows: int

    @property
    def differences(self) -> list[np.ndarray]:
        """Of each row, by seed; positive is better."""
        return [a.astype(np.float64) - b for a, b in zip(self.ours, self.theirs, strict=True)]

    @property
    def binary(self) -> bool:
        """Whether all values are 0 or 1."""
        return all(np.isin(np.abs(values), (0, 1)).all() for values in (*self.ours, *self.theirs))

    def contrasts(self, tolerance: Tolerance) -> list[list[np.ndarray]]:
        """One contrast for each form of the tolerance: rows by seed."""
        pairs = list(zip(self.ours, self.theirs, strict=True))
        found: list[list[np.ndarray]] = []
        if tolerance.absolute is not None:
            found.append([d + tolerance.absolute for d in self.differences])
        if tolerance.of_reference is not None:
            t = tolerance.of_reference
            # A share of a negative reference still counts upward.
            sign = -1.0 if sum(float(b.sum()) for b in self.theirs) < 0 else 1.0
            found.append([a.astype(np.float64) - b + sign * t * b for a, b in pairs])
        if tolerance.of_gain is not None and self.floor is not None:
            g = tolerance.of_gain
            found.append([d + g * (b - f) for d, b, f in zip(self.differences, self.theirs, self.floor, strict=True)])
        return found


@dataclass(frozen=True)
class Within:
    """The comparison of a configuration with the reference.

    Args:
        difference: Mean difference; positive is better.
        probability: That it lies within the tolerance; None with one seed, or without any spread.
        lower: One-sided lower bound of the difference at the confidence asked for; None with one seed.
        upper: One-sided upper bound.
    """

    difference: float
    probability: float | None
    lower: float | None
    upper: float | None


def judge_within(paired: Paired, tolerance: Tolerance, confidence: float = 0.95) -> Within:
    """Compare a configuration with the reference.

    Args:
        paired: Both, on the same rows.
        tolerance: How much worse is good enough; of several forms the smallest probability counts.
        confidence: Of the two bounds.

    Raises:
        DataError: A value is not finite.
    """
    differences = paired.differences
    mean = float(np.mean([d.mean() for d in differences]))
    if len(differences) < 2:
        return Within(mean, None, None, None)
    spread = spread_of(differences, paired.rotated)
    binary = paired.binary
    equal = all((d == 0).all() for d in differences)
    probabilities = [
        _probability(spread_of(rows, paired.rotated), spread, mean, binary, equal)
        for rows in paired.contrasts(tolerance)
    ]
    known = [p for p in probabilities if p is not None]
    probability = min(known) if known and len(known) == len(probabilities) else None
    reach = _reach(spread, confidence, binary)
    return Within(mean, probability, mean - reach, mean + reach)


def _probability(contrast: Spread, spread: Spread, difference: float, binary: bool, equal: bool) -> float | None:
    """P(mean of the contrast > 0).

    For 0/1 metrics it is the largest level whose score bound lies inside the tolerance: the bound passes where no
    difference outside is left standing, so it is the smallest probability over all differences outside.
    """
    from scipy.special import stdtr

    if not binary:
        error, freedom = contrast.error()
        if error <= 1e-10 * max(abs(contrast.mean), abs(difference)):
            # Rows that all agree say nothing about others, unless there is no difference at all.
            return 1.0 if equal and contrast.mean > 0 else None
        return float(stdtr(freedom, contrast.mean / error))
    tolerance = max(contrast.mean - difference, 0.0)
    outside = np.geomspace(max(tolerance, 1e-6), 1.0, POINTS)
    error, freedom = contrast.errors(spread.least_examples(outside))
    steps = contrast.mean - max(tolerance, 1e-6) + outside
    safe = np.where(error > 0, error, 1.0)
    levels = np.where(error > 0, stdtr(freedom, steps / safe), np.where(steps > 0, 1.0, 0.0))
    return float(levels.min())


def _reach(spread: Spread, confidence: float, binary: bool) -> float:
    """How far the lower bound of the difference lies below its mean."""

    def at(bound: float) -> float:
        error, freedom = spread.error(float(spread.least_examples(np.array([bound]))[0]) if binary else 0.0)
        return t_quantile(confidence, freedom) * error

    bound = -1.0
    for _ in range(200):
        nearer = spread.mean - at(bound)
        if not binary or abs(nearer - bound) < 1e-7:
            return spread.mean - nearer
        bound = nearer
    return spread.mean - bound


def seeds_to_decide(paired: Paired, tolerance: Tolerance, confidence: float, most: int = 64) -> int | None:
    """Seeds to add until the configuration is shown to lie within or outside, if means and variances stay as they are.

    This is an estimate, not a guarantee.

    Returns:
        0 where it is decided already; None with one seed, where no number up to `most` would do, and where the
        validation rows that all seeds share are too few.
    """
    from scipy.special import stdtr

    if len(paired.ours) < 2:
        return None
    contrasts = [spread_of(rows, paired.rotated) for rows in paired.contrasts(tolerance)]
    spread = spread_of(paired.differences, paired.rotated)
    binary = paired.binary
    s = spread.n_seeds
    for seeds in range(s, most + 1):
        levels: list[float] = []
        for contrast in contrasts:
            gap = max(contrast.mean - spread.mean, 0.0)
            least = float(spread.least_examples(np.array([gap]))[0]) if binary else 0.0
            if paired.rotated:
                least = least * s / seeds
                examples, noise_of_seeds, freedom = contrast.examples * s / seeds, 0.0, seeds - 1.0
            else:
                examples, noise_of_seeds, freedom = contrast.examples, contrast.noise, contrast.examples_freedom
            of_seeds = contrast.seeds * s / seeds
            part = max(examples, least)
            variance = of_seeds + part
            # The seeds' mean square has more degrees of freedom with more seeds.
            noise = noise_of_seeds * (s / seeds) ** 2 * (s - 1) / max(seeds - 1, 1) + part**2 / freedom
            if variance == 0:
                return None
            levels.append(float(stdtr(variance**2 / noise if noise > 0 else 1e9, contrast.mean / math.sqrt(variance))))
        if min(levels) >= confidence or min(levels) <= 1 - confidence:
            return seeds - s
    return None


def difference_bound(
    ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], rotated: bool, confidence: float = 0.95
) -> float:
    """One-sided lower bound of a mean difference, of the reference over its floor, say; with one seed it holds the
    error of sampling examples only."""
    spread = spread_of([a.astype(np.float64) - b for a, b in zip(ours, theirs, strict=True)], rotated, least_seeds=1)
    return spread.bound(confidence)


def rows_needed(tolerance: float, confidence: float = 0.95) -> int:
    """Distinct validation rows below which nothing can be shown for a 0/1 metric.

    With fewer, even a configuration that is worse by the whole tolerance gets every row right that the reference does
    with a probability of more than 1 - confidence.

    Examples:
        >>> rows_needed(0.0096), rows_needed(0.0289)
        (311, 103)
    """
    if not 0 < tolerance < 1:
        return 0 if tolerance >= 1 else 10**9
    return math.ceil(math.log(1 - confidence) / math.log(1 - tolerance))
