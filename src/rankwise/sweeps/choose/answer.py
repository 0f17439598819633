"""The verdict of a sweep: which configuration is the smallest that does the job, and how sure that is.

1. For each configuration the learning rate with the best mean validation metric: `choose_learning_rates`.
2. The reference is the baseline, else the best configuration, on validation: `reference_of`. The adaptive plan takes
   the largest instead of the best, since it needs the reference beforehand.
3. First gate: did fine-tuning gain anything over the base, or over predicting one constant? If no gain is shown, the
   verdict is "no_gain".
4. For each smaller configuration the probability that it lies within the tolerance of the reference: `judge_within`.
5. The smallest with a probability of at least `confidence` is the answer ("shown"); if all smaller ones are shown to
   lie outside, it is the reference ("nothing_smaller"); else nothing is decided ("undecided"), the reference stays.
6. Test data is read once, afterwards; nothing here sees it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rankwise.errors import DataError
from rankwise.results.kinds import Floor, ToleranceState, Verdict
from rankwise.sweeps.choose.closeness import (
    Paired,
    Within,
    difference_bound,
    judge_within,
    rows_needed,
    seeds_to_decide,
)
from rankwise.sweeps.choose.configurations import Configuration, signed
from rankwise.sweeps.choose.rule import Rule

CANDIDATES = frozenset({"lora", "head"})
"""Methods that can be the answer, other than the reference and the base."""

BASE_ANSWER = "base"
"""The name of the answer where no gain of fine-tuning is shown."""

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


@dataclass(frozen=True)
class Answer:
    """The verdict, and the configuration to use.

    Args:
        verdict: What is shown.
        name: The configuration to use: the smallest shown, else the reference; "base" without a gain.
        r: Its rank; None unless its method is "lora".
        trainable_parameters: Its trainable parameters.
        reference: Name of the reference.
        tolerance: How much worse than the reference is good enough, in the metric's unit.
        binary: Whether the metric is 0 or 1 for every row.
        relative_parameters: Trainable parameters over the reference's; None where the reference trains none.
        confidence: The probability at which something counts as shown.
        leaning: The smallest configuration that is more likely than not within, where the verdict is "undecided".
        gain: The reference over its floor: mean and lower bound; None where no floor is known.
        floor: "base" or "constant": the floor of the gain.
        rows: Distinct validation rows.
        rows_needed: Distinct validation rows that a metric of 0 and 1 needs for this tolerance; 0 for others.
        rotated: Whether every seed had validation rows of its own.
        detectable_difference: Distance from the mean difference down to its lower bound, median over comparisons:
            the difference that these rows and seeds can show.
        more_seeds_needed: Seeds to add until the leaning is decided; 0 where the verdict is not "undecided", None
            where seeds can't decide or it can't be determined.
        smaller: Names of the configurations that could have been shown, smallest first.
        comparisons: Every configuration that could be compared, by name.
    """

    verdict: Verdict
    name: str
    r: int | None
    trainable_parameters: int
    reference: str
    tolerance: float
    binary: bool
    relative_parameters: float | None
    confidence: float
    leaning: str | None
    gain: tuple[float, float] | None
    floor: Floor | None
    rows: int
    rows_needed: int
    rotated: bool
    detectable_difference: float | None
    more_seeds_needed: int | None
    smaller: tuple[str, ...]
    comparisons: Mapping[str, Comparison]


def reference_of(configurations: Sequence[Configuration], higher_is_better: bool) -> Configuration:
    """Return the reference: full fine-tuning if there is one, else the best configuration, on validation.

    Args:
        configurations: With their learning rates chosen. The untrained base can't be the reference.
        higher_is_better: True for accuracies, False for losses.

    Returns:
        Of several full fine-tunings, or of all where there is none, the one with the best validation metric; of equal
        ones the one with fewer trainable parameters.

    Raises:
        DataError: No configuration has a run that counts.
    """
    trained = [(c, mean) for c in configurations if (mean := c.validation_mean) is not None and c.method != "base"]
    if not trained:
        raise DataError(
            "No configuration has a finished run with a finite validation metric, so there is no answer. Lower the "
            "learning rates, or train longer."
        )
    baselines = [(c, mean) for c, mean in trained if c.method == "full"]

    def order(one: tuple[Configuration, float]) -> tuple[float, int, str]:
        configuration, mean = one
        return -signed(mean, higher_is_better), configuration.trainable_parameters, configuration.name

    return min(baselines or trained, key=order)[0]


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
    short = not paired.rotated and paired.distinct_rows < _rows_needed(paired, rule)
    if short and found.probability is not None and found.probability >= 0.5:
        return None
    return seeds_to_decide(paired, rule.tolerance, rule.confidence)


def _state(found: Within, paired: Paired, rule: Rule) -> ToleranceState:
    if found.probability is None:
        return "open"
    if found.probability >= rule.confidence:
        # With too few rows, agreement on all of them proves nothing.
        return "open" if paired.distinct_rows < _rows_needed(paired, rule) else "shown"
    return "not" if found.probability <= 1 - rule.confidence else "open"


def _rows_needed(paired: Paired, rule: Rule) -> int:
    return rows_needed(_tolerance_value(paired, rule), rule.confidence) if paired.binary else 0


def _tolerance_value(paired: Paired, rule: Rule) -> float:
    reference = float(np.mean([b.mean() for b in paired.theirs]))
    floor = None if paired.floor is None else float(np.mean([f.mean() for f in paired.floor]))
    return rule.tolerance.value(reference, floor)


def decide(
    configurations: Sequence[Configuration],
    reference: Configuration,
    rule: Rule,
    floors: Floors | None = None,
    path: Sequence[str] | None = None,
) -> Answer:
    """Return the verdict.

    Only LoRA and head-only configurations with fewer trainable parameters than the reference can be shown. Of equally
    small ones the likelier is taken.

    Args:
        configurations: With their learning rates chosen, in any order.
        reference: As `reference_of` gives it.
        rule: Tolerance, confidence and order of testing.
        floors: What fine-tuning must beat.
        path: The configurations that an adaptive plan decided on its way: only these can be shown, so that a size that
            completes the curve has no chance of its own. None for all.

    Returns:
        The verdict, with every comparison it rests on.

    Raises:
        ConfigError: The tolerance is a share of the gain, and no floor is known.
        DataError: A configuration was measured on other validation rows than the reference.
    """
    floors = floors or Floors()
    higher = rule.higher_is_better
    itself = pair(reference, reference, floors, higher)
    if itself is None:
        raise DataError(f"{reference.name} has no finished run, so nothing can be compared with it.")
    tolerance = _tolerance_value(itself, rule)
    compared = {
        c.name: comparison
        for c in configurations
        if c is not reference and (comparison := compare_with_reference(c, reference, rule, floors)) is not None
    }
    smaller = _smaller([c for c in configurations if path is None or c.name in path], reference, compared)
    gain = _gain(itself, rule)
    better = floors.better([run.rows for run in reference.runs], higher)
    chosen, verdict = _verdict(smaller, compared, gain, len(itself.ours), rule)
    leaning = None
    if verdict == "undecided":
        leaning = next((c for c in smaller if (compared[c.name].p_within or 0.0) >= 0.5), None)
    distances = [
        c.mean - c.lower_bound for c in compared.values() if c.lower_bound is not None and c.name != BASE_ANSWER
    ]
    if verdict == "no_gain":
        name, r, parameters = BASE_ANSWER, None, 0
    else:
        target = chosen or reference
        name, r, parameters = target.name, target.r, target.trainable_parameters
    total = reference.trainable_parameters
    return Answer(
        verdict=verdict,
        name=name,
        r=r,
        trainable_parameters=parameters,
        reference=reference.name,
        tolerance=tolerance,
        binary=itself.binary,
        relative_parameters=parameters / total if total else None,
        confidence=rule.confidence,
        leaning=None if leaning is None else leaning.name,
        gain=gain,
        floor=None if better is None else better[0],
        rows=itself.distinct_rows,
        rows_needed=_rows_needed(itself, rule),
        rotated=itself.rotated,
        detectable_difference=float(np.median(distances)) if distances else None,
        more_seeds_needed=_more(leaning, smaller, compared) if verdict == "undecided" else 0,
        smaller=tuple(c.name for c in smaller),
        comparisons=compared,
    )


def _smaller(
    configurations: Sequence[Configuration], reference: Configuration, compared: Mapping[str, Comparison]
) -> list[Configuration]:
    """Those that could be shown, smallest first, of equally small ones the likelier first."""
    able = [
        c
        for c in configurations
        if c.name in compared and c.method in CANDIDATES and c.trainable_parameters < reference.trainable_parameters
    ]
    return sorted(
        able,
        key=lambda c: (c.trainable_parameters, -(compared[c.name].p_within or 0.0), -compared[c.name].mean, c.name),
    )


def _gain(itself: Paired, rule: Rule) -> tuple[float, float] | None:
    """The reference over the floor: mean and lower bound."""
    if itself.floor is None:
        return None
    mean = float(np.mean([r.mean() - f.mean() for r, f in zip(itself.theirs, itself.floor, strict=True)]))
    return mean, difference_bound(itself.theirs, itself.floor, itself.rotated, rule.confidence)


def _verdict(
    smaller: Sequence[Configuration],
    compared: Mapping[str, Comparison],
    gain: tuple[float, float] | None,
    n_seeds: int,
    rule: Rule,
) -> tuple[Configuration | None, Verdict]:
    if n_seeds < 2:
        return None, "undecided"
    if gain is not None and gain[1] <= 0:
        return None, "no_gain"
    if rule.strict:
        shown = None
        for c in reversed(smaller):
            if compared[c.name].state != "shown":
                break
            shown = c
    else:
        shown = next((c for c in smaller if compared[c.name].state == "shown"), None)
    if shown is not None:
        return shown, "shown"
    outside = [compared[c.name].state == "not" for c in smaller]
    return None, "nothing_smaller" if outside and all(outside) else "undecided"


def _more(
    leaning: Configuration | None, smaller: Sequence[Configuration], compared: Mapping[str, Comparison]
) -> int | None:
    """Seeds until the leaning is decided, or else the largest that is open."""
    open_ = [c for c in smaller if compared[c.name].state == "open"]
    target = leaning or (open_[-1] if open_ else None)
    return None if target is None else compared[target.name].more_seeds_needed
