"""Which configuration is the answer: the rule as pure functions.

1. For each configuration the learning rate with the best mean validation metric:
   `rankwise.sweeps.configurations.choose_learning_rates`.
2. The reference is the baseline, else the best configuration, on validation: `reference_of`.
3. How much worse than it is still good enough: `tolerance_of`.
4. The answer is the fewest trainable parameters that are good enough: `decide`.
5. Test data is read once, afterwards; nothing here sees it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rankwise.errors import ConfigError, DataError, suggest
from rankwise.sweeps.configurations import Configuration, turned
from rankwise.sweeps.statistics import lower_bound, more_seeds_needed

CANDIDATES = frozenset({"lora", "head"})
"""Methods that can be the answer; the reference can be it too, when nothing smaller is good enough."""


@dataclass(frozen=True)
class Comparison:
    """A configuration beside the reference on validation data, paired by seed and example; positive is better.

    Args:
        name: The configuration.
        mean: Mean difference, in the metric's unit, turned so that positive is better.
        lower_bound: One-sided 95% bound of it.
        n_seeds: Seeds both have.
        more_seeds_needed: Seeds to add until the bound passes, as `statistics.more_seeds_needed` tells.
    """

    name: str
    mean: float
    lower_bound: float
    n_seeds: int
    more_seeds_needed: int | None


@dataclass(frozen=True)
class Answer:
    """The configuration with the fewest trainable parameters that is good enough.

    Args:
        name: The configuration.
        r: Its rank; None unless its method is "lora".
        trainable_parameters: Its trainable parameters.
        reference: What it was held against.
        tolerance: How much worse than the reference was still good enough.
        relative_parameters: Trainable parameters over the reference's; None where the reference trains none.
        separable: Whether the bound passes, and not the mean alone.
        more_seeds_needed: Seeds to add to make it separable; 0 when it is, None when seeds can't or one can't tell.
        reason: Why this one, in a sentence or two.
        comparisons: Every configuration that could be compared, by name.
    """

    name: str
    r: int | None
    trainable_parameters: int
    reference: str
    tolerance: float
    relative_parameters: float | None
    separable: bool
    more_seeds_needed: int | None
    reason: str
    comparisons: Mapping[str, Comparison]


def reference_of(configurations: Sequence[Configuration], higher_is_better: bool) -> Configuration:
    """What the answer is held against: full fine-tuning where there is one, else the best, on validation.

    Args:
        configurations: With their learning rates chosen. The base as it is can't be the reference.
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
        return -turned(mean, higher_is_better), configuration.trainable_parameters, configuration.name

    return min(baselines or trained, key=order)[0]


def _one_percent(reference: float, base: float | None) -> float:
    return 0.01 * abs(reference)


def _share_of_gain(reference: float, base: float | None) -> float:
    if base is None:
        raise ConfigError(
            "The tolerance of a loss is 2% of the gain from the base to the reference, and the base's metric is not "
            "known. Give the tolerance itself."
        )
    return 0.02 * max(0.0, base - reference)


TOLERANCES: dict[str, Callable[[float, float | None], float]] = {"accuracy": _one_percent, "loss": _share_of_gain}
"""Kind of metric -> default tolerance from the reference's and the base's metric."""


def tolerance_of(reference: float, base: float | None, kind: str, own: float | None = None) -> float:
    """How much worse than the reference is still good enough, in the metric's unit.

    Args:
        reference: The reference's validation metric.
        base: The base's, before fine-tuning; needed for losses.
        kind: "accuracy" (1% of the reference) or "loss", perplexities included (2% of the gain from base to
            reference: a share of a loss itself means nothing, as its zero is out of reach).
        own: The user's own value, which overrides.

    Raises:
        ConfigError: `own` is negative or not finite, the kind is not known, or the base's loss is missing.

    Examples:
        >>> tolerance_of(0.98, None, "accuracy")
        0.0098
        >>> tolerance_of(2.0, 3.0, "loss"), tolerance_of(2.0, 3.0, "loss", own=0.1)
        (0.02, 0.1)
    """
    if own is not None:
        if not (math.isfinite(own) and own >= 0):
            raise ConfigError(f"tolerance is {own!r}; it must be a finite number of at least 0, in the metric's unit.")
        return own
    if kind not in TOLERANCES:
        known = ", ".join(f'"{name}"' for name in TOLERANCES)
        raise ConfigError(f'kind "{kind}" is not known; there are {known}.{suggest(kind, TOLERANCES)}')
    return TOLERANCES[kind](reference, base)


def compare(
    configuration: Configuration, reference: Configuration, tolerance: float, higher_is_better: bool
) -> Comparison | None:
    """Hold a configuration against the reference, on the seeds and validation examples both have.

    Args:
        configuration: With its learning rate chosen.
        reference: As `reference_of` gives it.
        tolerance: How much worse is still good enough; `more_seeds_needed` depends on it.
        higher_is_better: True for accuracies, False for losses.

    Returns:
        The comparison, or None where they have no seed in common.

    Raises:
        DataError: They were measured on different numbers of validation examples.
    """
    seeds = sorted({*configuration.seeds} & {*reference.seeds})
    if not seeds:
        return None
    ours, theirs = configuration.validation(seeds), reference.validation(seeds)
    if ours.shape != theirs.shape:
        raise DataError(
            f"{configuration.name} was measured on {ours.shape[1]} validation examples, {reference.name} on "
            f"{theirs.shape[1]}; they can be compared on the same examples only."
        )
    differences = turned(1.0, higher_is_better) * (ours - theirs)
    return Comparison(
        configuration.name,
        float(differences.mean()),
        lower_bound(differences),
        len(seeds),
        more_seeds_needed(differences, tolerance),
    )


def decide(
    configurations: Sequence[Configuration], reference: Configuration, tolerance: float, higher_is_better: bool
) -> Answer:
    """Find the fewest trainable parameters that are good enough.

    Good enough: the one-sided 95% bound of the paired validation difference to the reference lies above minus the
    tolerance. Only LoRA and head-only configurations with fewer trainable parameters than the reference can be the
    answer; when none is good enough by its bound, the smallest that is by its mean (`separable` is then False), and
    when none is by its mean either, the reference itself. Of equally small ones the better on validation is taken.

    Args:
        configurations: With their learning rates chosen, in any order.
        reference: As `reference_of` gives it.
        tolerance: As `tolerance_of` gives it.
        higher_is_better: True for accuracies, False for losses.

    Returns:
        The answer, with every comparison it rests on.

    Raises:
        DataError: A configuration was measured on other validation examples than the reference.
    """
    compared = {
        configuration.name: comparison
        for configuration in configurations
        if (comparison := compare(configuration, reference, tolerance, higher_is_better)) is not None
    }
    candidates = sorted(
        (
            c
            for c in configurations
            if c.name in compared and c.method in CANDIDATES and c.trainable_parameters < reference.trainable_parameters
        ),
        key=lambda c: (c.trainable_parameters, -compared[c.name].mean, c.name),
    )
    by_bound = next((c for c in candidates if compared[c.name].lower_bound > -tolerance), None)
    by_mean = next((c for c in candidates if compared[c.name].mean > -tolerance), None)
    chosen = by_bound or by_mean or reference
    separable = by_bound is not None or chosen is reference
    smaller = by_mean if by_mean is not chosen else None
    return Answer(
        name=chosen.name,
        r=chosen.r,
        trainable_parameters=chosen.trainable_parameters,
        reference=reference.name,
        tolerance=tolerance,
        relative_parameters=(
            chosen.trainable_parameters / reference.trainable_parameters if reference.trainable_parameters else None
        ),
        separable=separable,
        more_seeds_needed=0 if separable else compared[chosen.name].more_seeds_needed,
        reason=_reason(chosen, reference, compared.get(chosen.name), separable, tolerance)
        + ("" if smaller is None else " " + _undecided(smaller, compared[smaller.name])),
        comparisons=compared,
    )


def _reason(
    chosen: Configuration, reference: Configuration, comparison: Comparison | None, separable: bool, tolerance: float
) -> str:
    """Why this is the answer, in one sentence."""
    if chosen is reference or comparison is None:
        return f"No LoRA or head-only configuration smaller than {reference.name} comes within {tolerance:.3g} of it."
    start = f"{chosen.name} has the fewest trainable parameters of those"
    if separable:
        return (
            f"{start} whose 95% bound on validation data lies within {tolerance:.3g} of {reference.name}: "
            f"difference {comparison.mean:+.4f}, bound {comparison.lower_bound:+.4f}."
        )
    return (
        f"{start} whose mean on validation data lies within {tolerance:.3g} of {reference.name}: difference "
        f"{comparison.mean:+.4f}, but its 95% bound {comparison.lower_bound:+.4f} does not"
        f"{_help(comparison)}."
    )


def _undecided(smaller: Configuration, comparison: Comparison) -> str:
    """What is to be said of a smaller configuration that passes by its mean alone."""
    return (
        f"{smaller.name} is smaller and comes within by its mean ({comparison.mean:+.4f}), but not by its bound "
        f"({comparison.lower_bound:+.4f}){_help(comparison)}."
    )


def _help(comparison: Comparison) -> str:
    more = comparison.more_seeds_needed
    if more is None:
        return "; only more validation examples could decide" if comparison.n_seeds > 1 else "; one seed can't decide"
    return f"; about {more} more seed{'' if more == 1 else 's'} could decide"
