"""What difference validation data can show, said before anything is trained."""

import math

from rankwise.sweeps.choose.closeness import rows_needed
from rankwise.sweeps.choose.rule import Rule
from rankwise.sweeps.choose.statistics import t_quantile
from rankwise.sweeps.choose.wording import amount

DISAGREEMENT = 0.03
"""Share of examples on which two good configurations disagree; measured on digits and BANKING77 it is 2 to 5%."""

SHARED = 0.5
"""How far the disagreements of several seeds fall on the same examples, where they share them."""


def detectable(rows: int, seeds: int, rotated: bool, confidence: float = 0.95) -> float:
    """The difference of a 0/1 metric that so many rows and seeds can be expected to show.

    Args:
        rows: Validation rows of a seed.
        seeds: How many; with one nothing can be shown.
        rotated: Whether each seed has its own rows.
        confidence: Of the verdict.

    Examples:
        >>> f"{detectable(506, 5, False):.3f} {detectable(506, 8, True):.3f}"
        '0.010 0.005'
    """
    if seeds < 2:
        return math.inf
    share = 1 / seeds if rotated else SHARED + (1 - SHARED) / seeds
    return t_quantile(confidence, seeds - 1 if rotated else rows - 1) * math.sqrt(DISAGREEMENT * share / rows)


def power_words(rows: int, seeds: int, rotated: bool, rule: Rule, reference: float) -> str:
    """What validation data can show, in a sentence or two.

    Args:
        rows: Validation rows of a seed.
        seeds: The most seeds.
        rotated: Whether each seed has its own rows.
        rule: Tolerance and confidence.
        reference: About what the reference's accuracy will be; 1 where nothing is known.
    """
    tolerance, distinct = rule.tolerance.value(reference, 0.0), rows * (seeds if rotated else 1)
    if (needed := rows_needed(tolerance, rule.confidence)) > distinct:
        return (
            f"Nothing can be shown with {distinct:,} validation examples: a tolerance of {amount(tolerance, True)} "
            f"needs at least {needed:,}. Give more validation data or a wider tolerance."
        )
    if seeds < 2:
        return "With one seed nothing can be shown; give three or more."
    own = f", {rows:,} of its own for each seed," if rotated else ""
    shown = amount(detectable(rows, seeds, rotated, rule.confidence), True)
    return (
        f"{distinct:,} validation examples{own} can show differences of about {shown} with {seeds} seeds, where two "
        f"configurations disagree on {100 * DISAGREEMENT:.0f}% of examples; the tolerance is about "
        f"{amount(tolerance, True)}."
    )
