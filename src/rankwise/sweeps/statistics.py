r"""How sure a mean over seeds and examples is.

A metric is measured on S seeds and E examples, all crossed: `values` is (n_seeds, n_examples). With seed effects
$a_s$, example effects $b_e$ and the rest $c_{se}$,

$$y_{se} = \mu + a_s + b_e + c_{se}, \qquad
\operatorname{Var}(\bar y) = \frac{\sigma_a^2}{S} + \frac{\sigma_b^2}{E} + \frac{\sigma_c^2}{SE}$$

so both kinds of luck count: that of training and that of which examples were looked at. The variance is estimated
from the mean squares of the two-way layout and the bounds take Student's t with Satterthwaite's degrees of freedom,
because 3 to 5 seeds are far too few for a normal bound.

Measured in simulation (normal two-way effects from "no seed effect" to "seeds dominate", and correctness of two
classifiers from thresholded scores; E in {500, 1000, 5000}; 1,000 repeats a cell): the true mean lay above the
one-sided 95% bound in 92 to 99% of repeats with S = 2, in 93 to 98% with 3 and with 5. Two seeds are valid but blunt:
where seeds differ much, their bound is twice as far away as that of three. The percentiles of `resampled_means` (300
repeats, E = 500) came to 86 to 99%, 92 to 100% and 92 to 100%, and in another run to 83% for two seeds at E = 2000;
they are also up to 1.3 times as far away where seeds hardly matter, since drawing both ways counts c three times
(Owen). With one seed only examples count, and the bound held in as few as 56%: it says nothing about luck in training.

References:
    Searle, Casella, McCulloch, Variance Components, 1992, section 4.2 (two-way crossed layout).
    Satterthwaite, An Approximate Distribution of Estimates of Variance Components, 1946.
    Owen, The pigeonhole bootstrap, 2007. https://arxiv.org/abs/0712.1111
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Real

from rankwise.errors import DataError
from rankwise.streams import stream_seed

Values = Real[np.ndarray, "n_seeds n_examples"]
"""Per-example metric of every seed: 0 or 1 for accuracies, or losses, or paired differences of such."""


@dataclass(frozen=True)
class Spread:
    """The mean of crossed values and the mean squares its variance is made of.

    Args:
        mean: Over seeds and examples.
        n_seeds: S.
        n_examples: E.
        seeds: MS_a / E: estimates sigma_a^2 + sigma_c^2 / E, the variance of one seed's mean. None with one seed.
        examples: MS_b / (S E): estimates sigma_b^2 / E + sigma_c^2 / (S E).
        rest: MS_c / E: estimates sigma_c^2 / E; 0 with one seed, where it can't be told from the examples' part.
    """

    mean: float
    n_seeds: int
    n_examples: int
    seeds: float | None
    examples: float
    rest: float

    def error(self, n_seeds: int | None = None) -> tuple[float, float]:
        r"""The mean's standard error and its degrees of freedom, now or as they would be with n seeds.

        $$\hat V = \frac{\max(MS_a, MS_c)}{nE} + \frac{[MS_b - MS_c]_+}{SE}, \qquad
        \nu = \hat V^2 \Big/ \sum_i \frac{V_i^2}{\nu_i}$$

        where the V_i are the three mean squares as they enter, and no component is let fall below zero.
        """
        if self.seeds is None:
            return math.sqrt(self.examples), self.n_examples - 1.0
        n = self.n_seeds if n_seeds is None else n_seeds
        of_seeds, of_examples = n - 1, self.n_examples - 1
        here = self.rest / self.n_seeds
        variance = max(self.seeds, self.rest) / n + max(0.0, self.examples - here)
        noise = (self.seeds / n) ** 2 / of_seeds + self.examples**2 / of_examples + here**2 / (of_seeds * of_examples)
        return math.sqrt(variance), variance**2 / noise if noise > 0 else math.inf

    def bound(self, level: float, n_seeds: int | None = None) -> float:
        """The value the true mean lies above with this confidence."""
        error, freedom = self.error(n_seeds)
        return self.mean - t_quantile(level, freedom) * error


def spread(values: Values) -> Spread:
    """Estimate the mean and the parts of its variance.

    Args:
        values: Metric of every seed and example.

    Raises:
        DataError: There are fewer than two examples, no seed, or values that are not finite.

    Examples:
        >>> s = spread(np.array([[1.0, 0.0, 1.0, 1.0], [1.0, 0.0, 1.0, 0.0]]))
        >>> s.mean, s.seeds
        (0.625, 0.03125)
    """
    n_seeds, n_examples = values.shape
    if n_seeds < 1 or n_examples < 2:
        raise DataError(
            f"The metric was given for {n_seeds} seeds and {n_examples} examples; an interval needs at least one seed "
            "and two examples. Use a larger validation or test set."
        )
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise DataError(
            f"{int((~np.isfinite(values)).sum())} of {values.size} metric values are not finite; an interval needs "
            "finite ones. Leave diverged runs out."
        )
    mean = float(values.mean())
    by_seed, by_example = values.mean(axis=1) - mean, values.mean(axis=0) - mean
    of_examples = float((by_example**2).sum()) / (n_examples - 1) / n_examples
    if n_seeds == 1:
        return Spread(mean, 1, n_examples, None, of_examples, 0.0)
    residual = values - mean - by_seed[:, None] - by_example
    rest = float((residual**2).sum()) / ((n_seeds - 1) * (n_examples - 1)) / n_examples
    of_seeds = float((by_seed**2).sum()) / (n_seeds - 1)
    return Spread(mean, n_seeds, n_examples, of_seeds, of_examples, rest)


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
    found = spread(values)
    return found.bound(0.5 + level / 2), found.bound(0.5 - level / 2)


def lower_bound(values: Values, level: float = 0.95) -> float:
    """One-sided bound: the true mean lies above it with this confidence.

    Args:
        values: Metric of every seed and example; for the answer, paired differences to the reference.
        level: Confidence.

    Raises:
        DataError: There are fewer than two examples, no seed, or values that are not finite.

    Examples:
        >>> f"{lower_bound(np.array([[1.0, 1.0, 0.0, 1.0] * 50])):.3f}"
        '0.699'
    """
    return spread(values).bound(level)


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


def more_seeds_needed(differences: Values, tolerance: float, *, level: float = 0.95, most: int = 1000) -> int | None:
    """How many more seeds would lift the one-sided bound above -tolerance, if everything else stays as it is.

    The mean and the variances are taken as estimated now, so it is a plan, not a promise.

    Args:
        differences: Paired differences to the reference, positive is better.
        tolerance: How much worse is still good enough.
        level: Confidence of the bound.
        most: Largest number of seeds that is worth naming.

    Returns:
        Seeds to add: 0 when the bound lies above already; None when the mean itself fails, when the error of sampling
        examples forbids it whatever the number of seeds, when more than `most` would be needed, or when there is one
        seed only, which tells nothing about how seeds differ.

    Examples:
        >>> seeds = np.array([[-0.01], [0.004], [0.0]]) + np.zeros((1, 1000))
        >>> more_seeds_needed(seeds, tolerance=0.01)
        2
        >>> more_seeds_needed(seeds, tolerance=0.001) is None
        True
    """
    found = spread(differences)
    if found.bound(level) > -tolerance:
        return 0
    if found.seeds is None or found.mean <= -tolerance:
        return None
    more = range(1, most - found.n_seeds + 1)
    return next((m for m in more if found.bound(level, found.n_seeds + m) > -tolerance), None)


def resampled_means(values: Values, *, n_resamples: int = 4000, key: object = 0) -> Float[np.ndarray, " n_resamples"]:
    r"""Means of data sets drawn anew from seeds and examples together.

    $$\bar y^* = w^\top y\, v, \qquad S w \sim \text{Multinomial}(S), \quad E v \sim \text{Multinomial}(E)$$

    The plain bootstrap understates the spread of S seeds by (S - 1) / S, a half for two; the seeds' weights are
    stretched around 1 / S by sqrt(S / (S - 1)) to make up for it. With one seed only examples are drawn.

    Args:
        values: Metric of every seed and example.
        n_resamples: How many means.
        key: Names the stream of random numbers; the same key gives the same means.

    Returns:
        The means.

    Examples:
        >>> means = resampled_means(np.array([[1.0, 1.0, 0.0, 1.0] * 50]), n_resamples=1000)
        >>> bool((means == resampled_means(np.array([[1.0, 1.0, 0.0, 1.0] * 50]), n_resamples=1000)).all())
        True

    References:
        Owen, The pigeonhole bootstrap, 2007. https://arxiv.org/abs/0712.1111
        Hesterberg, What Teachers Should Know about the Bootstrap, 2015, section 3.2 ("narrowness bias").
    """
    n_seeds, n_examples = values.shape
    draws = np.random.default_rng(stream_seed("bootstrap", key))
    # A block of weights takes at most 32 MB, whatever the number of examples.
    block = max(1, 4_000_000 // n_examples)
    means: list[np.ndarray] = []
    for start in range(0, n_resamples, block):
        n = min(block, n_resamples - start)
        w = draws.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size=n) / n_seeds
        if n_seeds > 1:
            w = 1 / n_seeds + (w - 1 / n_seeds) * math.sqrt(n_seeds / (n_seeds - 1))
        v = draws.multinomial(n_examples, np.full(n_examples, 1 / n_examples), size=n) / n_examples
        means.append(np.einsum("ns,ns->n", w, v @ values.T))
    return np.concatenate(means)


def t_quantile(level: float, freedom: float) -> float:
    """Quantile of Student's t; scipy is loaded when the first is asked for.

    Examples:
        >>> f"{t_quantile(0.95, 4):.3f}"
        '2.132'
    """
    from scipy.special import stdtrit

    return float(stdtrit(freedom, level))
