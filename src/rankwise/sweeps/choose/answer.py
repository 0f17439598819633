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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from rankwise.errors import DataError
from rankwise.results.kinds import Floor, Verdict
from rankwise.sweeps.choose.closeness import (
    Paired,
    difference_bound,
)
from rankwise.sweeps.choose.comparison import (
    Comparison,
    Floors,
    compare_with_reference,
    pair,
    rows_to_decide,
    tolerance_value,
)
from rankwise.sweeps.choose.configurations import Configuration, signed
from rankwise.sweeps.choose.rule import Rule

CANDIDATES = frozenset({"lora", "head"})
"""Methods that can be the answer, other than the reference and the base."""

BASE_ANSWER = "base"
"""The name of the answer where no gain of fine-tuning is shown."""


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


def decide(
    configurations: Sequence[Configuration],
    reference: Configuration,
    rule: Rule,
    floors: Floors | None = None,
    path: Sequence[str] | None = None,
    further: Sequence[tuple[Configuration, Comparison]] = (),
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
        further: Configurations that were not trained as such, with their comparisons: adapters cut to smaller ranks.

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
    tolerance = tolerance_value(itself, rule)
    compared = {
        c.name: comparison
        for c in configurations
        if c is not reference and (comparison := compare_with_reference(c, reference, rule, floors)) is not None
    }
    on_path = [c for c in configurations if path is None or c.name in path]
    compared |= {c.name: comparison for c, comparison in further}
    chains = [_smaller(group, reference, compared) for group in (on_path, [c for c, _ in further])]
    smaller = _smaller([c for chain in chains for c in chain], reference, compared)
    gain = _gain(itself, rule)
    better = floors.better([run.rows for run in reference.runs], higher)
    chosen, verdict = _verdict(smaller, chains, compared, gain, len(itself.ours), rule)
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
        rows_needed=rows_to_decide(itself, rule),
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
    chains: Sequence[Sequence[Configuration]],
    compared: Mapping[str, Comparison],
    gain: tuple[float, float] | None,
    n_seeds: int,
    rule: Rule,
) -> tuple[Configuration | None, Verdict]:
    if n_seeds < 2:
        return None, "undecided"
    if gain is not None and gain[1] <= 0:
        return None, "no_gain"
    passing = [c for c in smaller if compared[c.name].state == "shown"]
    if rule.strict:
        # One sequence for those that were trained, one for those that were cut.
        reached = [
            c for chain in chains for c in takewhile(lambda c: compared[c.name].state == "shown", reversed(chain))
        ]
        passing = [c for c in passing if c in reached]
    shown = passing[0] if passing else None
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
