"""A configuration beside the reference: their runs in pairs, and how likely the one lies within the tolerance."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rankwise.errors import DataError
from rankwise.results.kinds import Floor, ToleranceState
from rankwise.sweeps.choose.closeness import Paired, Within, judge_within, rows_needed, seeds_to_decide
from rankwise.sweeps.choose.configurations import Configuration, signed
from rankwise.sweeps.choose.rule import Rule

FloorValues = Callable[[np.ndarray | None], np.ndarray | None]
"""Rows of the pool (None: the shared validation rows) -> the metric of the base, or of a constant, on each of them;
None where it is not known."""


@dataclass(frozen=True, eq=False)
class Floors:
    """The floors that fine-tuning must beat.

    Args:
        base: The untrained base, per row.
        constant: The best constant prediction (for classifiers the majority class of the training data), per row.
    """

    base: FloorValues = lambda rows: None
    constant: FloorValues = lambda rows: None

    def better(
        self, rows: Sequence[np.ndarray | None], higher_is_better: bool
    ) -> tuple[Floor, list[np.ndarray]] | None:
        """The name and the values, by seed, of the better of the two; None where neither is known."""
        known: dict[Floor, list[np.ndarray]] = {}
        floors: tuple[tuple[Floor, FloorValues], ...] = (("base", self.base), ("constant", self.constant))
        for name, floor in floors:
            values = [floor(one) for one in rows]
            present = [v.astype(np.float64) for v in values if v is not None and np.isfinite(v).all()]
            if present and len(present) == len(values):
                known[name] = present
        if not known:
            return None
        name = max(known, key=lambda n: signed(float(np.mean([v.mean() for v in known[n]])), higher_is_better))
        return name, known[name]


@dataclass(frozen=True)
class Comparison:
    """A configuration minus the reference on validation data, paired by seed and example; positive is better.

    Args:
        name: The configuration.
        mean: Mean difference, in the metric's unit.
        lower_bound: Its one-sided lower bound at the required confidence; None with one seed.
        upper_bound: Its one-sided upper bound.
        p_within: Probability that it lies within the tolerance; None where it can't be estimated.
        n_seeds: Seeds both have.
        state: Whether it is shown to lie within, shown not to, or open.
        more_seeds_needed: Seeds to add until it is decided, at the present estimates; None where seeds can't.
    """

    name: str
    mean: float
    lower_bound: float | None
    upper_bound: float | None
    p_within: float | None
    n_seeds: int
    state: ToleranceState
    more_seeds_needed: int | None


def pair(
    configuration: Configuration, reference: Configuration, floors: Floors, higher_is_better: bool
) -> Paired | None:
    """Both on the seeds and validation rows they share, signed so that more is better; None without a common seed.

    Raises:
        DataError: They were measured on different validation rows.
    """
    ours, theirs = ({run.seed: run for run in c.runs} for c in (configuration, reference))
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    for seed in seeds:
        a, b = ours[seed], theirs[seed]
        if len(a.validation) != len(b.validation):
            raise DataError(
                f"{configuration.name} was measured on {len(a.validation)} validation examples, {reference.name} on "
                f"{len(b.validation)}; they can be compared on the same examples only."
            )
        if not _same_rows(a.rows, b.rows):
            raise DataError(f"{configuration.name} and {reference.name} had different validation rows in seed {seed}.")
    rows = [theirs[seed].rows for seed in seeds]
    sign = signed(1.0, higher_is_better)
    better = floors.better(rows, higher_is_better)
    own = [r for r in rows if r is not None]
    distinct = len(np.unique(np.concatenate(own))) if own else len(theirs[seeds[0]].validation)
    return Paired(
        tuple(sign * ours[seed].validation.astype(np.float64) for seed in seeds),
        tuple(sign * theirs[seed].validation.astype(np.float64) for seed in seeds),
        None if better is None else tuple(sign * values for values in better[1]),
        bool(own),
        distinct,
    )


def _same_rows(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other)


def compare_with_reference(
    configuration: Configuration, reference: Configuration, rule: Rule, floors: Floors | None = None
) -> Comparison | None:
    """Compare a configuration with the reference, on the seeds and validation rows both have.

    Args:
        configuration: With its learning rate chosen.
        reference: As `reference_of` gives it.
        rule: Tolerance and confidence.
        floors: What fine-tuning must beat; needed where the tolerance is a share of the gain alone.

    Returns:
        The comparison, or None where they have no seed in common.

    Raises:
        DataError: They were measured on different validation rows.
    """
    paired = pair(configuration, reference, floors or Floors(), rule.higher_is_better)
    if paired is None:
        return None
    found = judge_within(paired, rule.tolerance, rule.confidence)
    state = _state(found, paired, rule)
    return Comparison(
        configuration.name,
        found.difference,
        found.lower,
        found.upper,
        found.probability,
        len(paired.ours),
        state,
        _seeds_to_add(found, paired, rule) if state == "open" else 0,
    )


def _seeds_to_add(found: Within, paired: Paired, rule: Rule) -> int | None:
    """Seeds that could decide an open comparison; None where the seeds share too few validation rows to estimate
    the mean."""
    short = not paired.rotated and paired.distinct_rows < rows_to_decide(paired, rule)
    if short and found.probability is not None and found.probability >= 0.5:
        return None
    return seeds_to_decide(paired, rule.tolerance, rule.confidence)


def _state(found: Within, paired: Paired, rule: Rule) -> ToleranceState:
    if found.probability is None:
        return "open"
    if found.probability >= rule.confidence:
        # With too few rows, agreement on all of them proves nothing.
        return "open" if paired.distinct_rows < rows_to_decide(paired, rule) else "shown"
    return "not" if found.probability <= 1 - rule.confidence else "open"


def rows_to_decide(paired: Paired, rule: Rule) -> int:
    """The fewest validation rows with which anything can be shown; 0 where the metric isn't right or wrong by row."""
    return rows_needed(tolerance_value(paired, rule), rule.confidence) if paired.binary else 0


def tolerance_value(paired: Paired, rule: Rule) -> float:
    """The tolerance in the metric's unit."""
    reference = float(np.mean([b.mean() for b in paired.theirs]))
    floor = None if paired.floor is None else float(np.mean([f.mean() for f in paired.floor]))
    return rule.tolerance.value(reference, floor)


def both_ways(one: Comparison, other: Comparison) -> Comparison:
    """Return the comparison that two ways to compare the same configuration have in common: shown is what both show.

    The mean and the seeds needed are the first one's, the bounds the outer ones, and the probability is the one that
    shows less.

    Examples:
        >>> one = Comparison("r8", 0.0, -0.1, 0.1, 0.99, 3, "shown", 0)
        >>> found = both_ways(one, replace(one, lower_bound=-0.2, p_within=0.9, state="open"))
        >>> found.p_within, found.lower_bound, found.state
        (0.9, -0.2, 'open')
    """
    p = None if one.p_within is None or other.p_within is None else (one.p_within, other.p_within)
    lower = [bound for c in (one, other) if (bound := c.lower_bound) is not None]
    upper = [bound for c in (one, other) if (bound := c.upper_bound) is not None]
    return replace(
        one,
        lower_bound=min(lower, default=None),
        upper_bound=max(upper, default=None),
        p_within=None if p is None else min(p, key=lambda value: abs(value - 0.5)),
        state=one.state if one.state == other.state else "open",
    )
