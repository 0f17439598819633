r"""How sure a mean over seeds and examples is.

A metric is measured on S seeds and E examples, all crossed: `values` is (n_seeds, n_examples). With seed effects
$a_s$, example effects $b_e$ and the rest $c_{se}$,

$$y_{se} = \mu + a_s + b_e + c_{se}, \qquad
\operatorname{Var}(\bar y) = \frac{\sigma_a^2}{S} + \frac{\sigma_b^2}{E} + \frac{\sigma_c^2}{SE}$$

so both kinds of luck count: that of training and that of which examples were looked at. The variance is estimated
from the mean squares of the two-way layout and the bounds take Student's t with Satterthwaite's degrees of freedom,
because 3 to 5 seeds are far too few for a normal bound.

Where every seed has examples of its own (rotated), columns don't line up: each seed's mean is one draw of all effects,
and the variance is that of the seeds' means over S, with S - 1 degrees of freedom.

Measured in simulation (normal two-way effects from "no seed effect" to "seeds dominate", and correctness of two
classifiers from thresholded scores; E in {500, 1000, 5000}; 1,000 repeats a cell): the true mean lay above the
one-sided 95% bound in 92 to 99% of repeats with S = 2, in 93 to 98% with 3 and with 5. Two seeds are valid but blunt:
where seeds differ much, their bound is twice as far away as that of three. With one seed only examples count, and the
bound held in as few as 56%: it says nothing about luck in training.

References:
    Searle, Casella, McCulloch, Variance Components, 1992, section 4.2 (two-way crossed layout).
    Satterthwaite, An Approximate Distribution of Estimates of Variance Components, 1946.
    Bouthillier et al., Accounting for Variance in Machine Learning Benchmarks, 2021. https://arxiv.org/abs/2103.03098
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Real

from rankwise.errors import DataError

Values = Real[np.ndarray, "n_seeds n_examples"]
"""Per-example metric of every seed: 0 or 1 for accuracies, or losses, or paired differences of such."""


PRIOR_EXAMPLES = 5
"""Weight of the assumption that seeds err on the same examples, in examples."""


@dataclass(frozen=True)
class Spread:
    """The mean of rows by seeds, and what its variance is made of.

    Args:
        mean: Over seeds and rows.
        n_seeds: S.
        n_rows: Rows of a seed, on average.
        seeds: Variance of the mean that comes from seeds.
        examples: Variance of the mean that comes from examples.
        noise: The sum of V_i^2 / nu_i over the mean squares but that of the examples.
        examples_freedom: Degrees of freedom of the examples' part.
        shared: How far seeds err on the same examples, 0 to 1.
    """

    mean: float
    n_seeds: int
    n_rows: float
    seeds: float
    examples: float
    noise: float
    examples_freedom: float
    shared: float

    def bound(self, level: float) -> float:
        """The value that the true mean lies above with this confidence."""
        error, freedom = self.error()
        return self.mean - (t_quantile(level, freedom) * error if error > 0 else 0.0)

    def error(self, least: float = 0.0) -> tuple[float, float]:
        """Standard error and degrees of freedom, with at least this variance from examples."""
        error, freedom = self.errors(np.array([least]))
        return float(error[0]), float(freedom[0])

    def errors(self, least: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same for several least variances."""
        examples = np.maximum(self.examples, least)
        variance = self.seeds + examples
        noise = self.noise + examples**2 / self.examples_freedom
        freedom = np.divide(variance**2, noise, out=np.full_like(variance, math.inf), where=noise > 0)
        return np.sqrt(variance), freedom

    def least_examples(self, difference: np.ndarray) -> np.ndarray:
        """The least variance from examples that goes with a difference of 0/1 metrics."""
        share = np.minimum(np.abs(difference), 0.5)
        k = self.shared + (1 - self.shared) / self.n_seeds
        return k * share * (1 - share) / self.n_rows


def crossed_spread(rows: Sequence[np.ndarray]) -> Spread:
    """The spread where all seeds share their rows: two-way variance components."""
    values = np.stack(rows).astype(np.float64)
    s, n = values.shape
    mean = float(values.mean())
    by_seed, by_row = values.mean(1) - mean, values.mean(0) - mean
    residual = values - mean - by_seed[:, None] - by_row
    ms_rest = float((residual**2).sum()) / ((s - 1) * (n - 1))
    ms_seeds = n * float((by_seed**2).sum()) / (s - 1)
    ms_rows = s * float((by_row**2).sum()) / (n - 1)
    size = s * n
    differing = int((values != 0).any(0).sum())
    of_rows = max(0.0, ms_rows - ms_rest) / s
    share = of_rows / (of_rows + ms_rest) if of_rows + ms_rest > 0 else 1.0
    return Spread(
        mean=mean,
        n_seeds=s,
        n_rows=n,
        seeds=max(0.0, ms_seeds - ms_rest) / size,
        examples=max(ms_rows, ms_rest) / size,
        noise=(ms_seeds / size) ** 2 / (s - 1) + (ms_rest / size) ** 2 / ((s - 1) * (n - 1)),
        examples_freedom=n - 1,
        shared=(differing * share + PRIOR_EXAMPLES) / (differing + PRIOR_EXAMPLES),
    )


def rotated_spread(rows: Sequence[np.ndarray]) -> Spread:
    """The spread where every seed has its own rows: each seed's mean is one draw of everything."""
    means = np.array([values.astype(np.float64).mean() for values in rows])
    s = len(means)
    variance = float(means.var(ddof=1)) / s
    return Spread(
        mean=float(means.mean()),
        n_seeds=s,
        n_rows=float(np.mean([len(values) for values in rows])),
        seeds=0.0,
        examples=variance,
        noise=0.0,
        examples_freedom=s - 1,
        shared=0.0,
    )


def spread_of(rows: Sequence[np.ndarray], rotated: bool = False, least_seeds: int = 2) -> Spread:
    """The spread of rows by seeds.

    Args:
        rows: Metric of each row, by seed; of equal length unless rotated.
        rotated: Whether every seed has its own rows.
        least_seeds: Fewer seeds are refused; with one the spread holds the error of sampling rows only.

    Raises:
        DataError: There are fewer seeds, fewer than two rows, or a value is not finite.

    Examples:
        >>> s = spread_of([np.array([1.0, 0.0, 1.0, 1.0]), np.array([1.0, 0.0, 1.0, 0.0])])
        >>> s.mean, s.n_seeds
        (0.625, 2)
    """
    n = min(map(len, rows), default=0)
    if len(rows) < least_seeds or n < 2:
        raise DataError(
            f"The metric was given for {len(rows)} seeds and {n} examples; {least_seeds} of the one and two of the "
            "other are needed. Use a larger validation or test set."
        )
    wrong = sum(int((~np.isfinite(values)).sum()) for values in rows)
    if wrong:
        raise DataError(
            f"{wrong} of {sum(map(len, rows))} metric values are not finite; an interval needs finite ones. Leave "
            "diverged runs out."
        )
    if len(rows) == 1:
        return _one_seed(rows[0].astype(np.float64))
    return rotated_spread(rows) if rotated else crossed_spread(rows)


def _one_seed(values: np.ndarray) -> Spread:
    n = len(values)
    return Spread(float(values.mean()), 1, n, 0.0, float(values.var(ddof=1)) / n, 0.0, n - 1, 1.0)


def interval(values: Values, level: float = 0.95) -> tuple[float, float]:
    """Two-sided confidence interval of the mean over seeds and examples.

    With one seed it holds the error of sampling examples only.

    Args:
        values: Metric of every seed and example.
        level: Confidence, for example 0.95.

    Returns:
        Lowest and highest value.

    Raises:
        DataError: There are fewer than two examples, no seed, or values that are not finite.

    Examples:
        >>> low, high = interval(np.array([[1.0, 1.0, 0.0, 1.0] * 50]))
        >>> f"{low:.3f} to {high:.3f}"
        '0.689 to 0.811'
    """
    found = spread_of(list(values), least_seeds=1)
    return found.bound(0.5 + level / 2), found.bound(0.5 - level / 2)


def ratio_interval(
    values: Values, reference: Real[np.ndarray, "reference_seeds reference_examples"], level: float = 0.95
) -> tuple[float, float]:
    r"""Confidence interval of mean(values) / mean(reference), paired by seed and example.

    Linearised: with R the ratio, the spread is that of $(y - R y_{ref}) / \bar y_{ref}$, which holds as long as the
    reference's own error is small against its mean.

    Args:
        values: Metric of a configuration.
        reference: Metric of the reference on the same seeds and examples.
        level: Confidence.

    Returns:
        Lowest and highest ratio.

    Raises:
        DataError: The shapes differ, the reference's mean is 0, or as for `interval`.

    Examples:
        >>> y = np.array([[1.0, 1.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
        >>> ratio_interval(y, y)
        (1.0, 1.0)

    References:
        Cochran, Sampling Techniques, 3rd edition, 1977, section 6.3.
    """
    if values.shape != reference.shape:
        raise DataError(
            f"The metric has shape {values.shape}, the reference's {reference.shape}; a ratio needs the same seeds and "
            "examples for both."
        )
    denominator = float(reference.mean())
    if denominator == 0:
        raise DataError("The reference's metric is 0 on average; a ratio to it needs another reference.")
    ratio = float(values.mean()) / denominator
    low, high = interval((values.astype(np.float64) - ratio * reference) / denominator, level)
    return ratio + low, ratio + high


def t_quantile(level: float, freedom: float) -> float:
    """Quantile of Student's t; scipy is loaded when the first is asked for.

    Examples:
        >>> f"{t_quantile(0.95, 4):.3f}"
        '2.132'
    """
    from scipy.special import stdtrit

    return float(stdtrit(freedom, level))
