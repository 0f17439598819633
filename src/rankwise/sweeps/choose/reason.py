"""The verdict in sentences: what is shown, what is shown not to be, what is open, and what would decide."""

import re
from collections.abc import Mapping, Sequence

from rankwise.sweeps.choose.answer import Answer
from rankwise.sweeps.choose.comparison import Comparison
from rankwise.sweeps.choose.wording import amount, probability


def reason(
    answer: Answer,
    labels: Mapping[str, str],
    smaller: Sequence[str],
    tolerance_words: str,
    floor: str,
    *,
    strict: bool,
    adaptive: bool = False,
) -> str:
    """Say why this is the verdict.

    Args:
        answer: The verdict.
        labels: Configurations in words, by name.
        smaller: Names of the configurations that could have been the answer, smallest first.
        tolerance_words: The tolerance in words.
        floor: What the reference's gain is over, in words.
        strict: Whether the worst case is guarded against.
        adaptive: Whether an adaptive plan chose what to compare, looking again after each seed.
    """
    compared = [answer.comparisons[name] for name in smaller if name in answer.comparisons]
    reference = labels[answer.reference]
    if answer.verdict == "no_gain":
        return _no_gain(answer, reference, floor)
    within = f"within {tolerance_words} ({amount(answer.tolerance, answer.binary)})"
    say = {
        "shown": _shown,
        "nothing_smaller": _nothing_smaller,
        "undecided": _undecided,
    }[answer.verdict]
    sentences = say(answer, compared, labels, reference, within)
    if answer.verdict == "shown" and (len(compared) > 2 or adaptive) and not strict:
        error = probability(1 - answer.confidence)
        sentences.append(
            "If all sizes lay just outside, a plan that looks again after each seed would name one in several times "
            f"{error} of sweeps; strict testing keeps that at {error}."
            if adaptive
            else f"The smallest of {len(compared)} sizes that passes lies just outside in up to 20% of the worst "
            f"cases; strict testing keeps that at {error}."
        )
    return " ".join(sentences)


def _shown(
    answer: Answer, compared: Sequence[Comparison], labels: Mapping[str, str], reference: str, within: str
) -> list[str]:
    c = answer.comparisons[answer.name]
    sentences = [
        f"{labels[c.name]} is the smallest shown to be {within}: P = {probability(c.p_within or 0.0)}, difference on "
        f"validation data {c.mean:+.4f}, lower bound {c.lower_bound:+.4f}."
    ]
    position = [one.name for one in compared].index(c.name)
    return sentences + _sorted_out(compared[:position], labels)


def _nothing_smaller(
    answer: Answer, compared: Sequence[Comparison], labels: Mapping[str, str], reference: str, within: str
) -> list[str]:
    nearest = max(compared, key=lambda c: c.mean)
    return [
        f"Every smaller configuration is shown not to be {within}; the nearest is {labels[nearest.name]}, with a "
        f"difference of {nearest.mean:+.4f} on validation data and an upper bound of {nearest.upper_bound:+.4f}."
    ]


def _no_gain(answer: Answer, reference: str, floor: str) -> str:
    mean, bound = answer.gain or (0.0, 0.0)
    return (
        f"Fine-tuning is not shown to beat {floor}: {reference} gains {mean:+.4f} on validation data, with a lower "
        f"bound of {bound:+.4f}. Use the base as it is, or train longer, with higher learning rates or more data."
    )


def _undecided(
    answer: Answer, compared: Sequence[Comparison], labels: Mapping[str, str], reference: str, within: str
) -> list[str]:
    meanwhile = f"Until then: {reference}."
    if not compared:
        return [f"Nothing smaller than {reference} was tried, so nothing could be compared."]
    if max(c.n_seeds for c in compared) < 2:
        return [
            "One seed can't tell a difference from the luck of one training run, so nothing is shown; give three or "
            f"more. {meanwhile}"
        ]
    if answer.rows < answer.rows_needed:
        few = (
            f"Nothing can be shown to be within the tolerance with {answer.rows:,} validation examples: "
            f"{amount(answer.tolerance, answer.binary)} needs at least {answer.rows_needed:,}."
        )
        more = answer.more_seeds_needed
        outside = [f"About {_seeds(more)} could show that nothing smaller is."] if more else []
        return [few, *outside, meanwhile]
    sentences = [f"Nothing smaller than {reference} is shown to be {within}."]
    sentences += _sorted_out(compared, labels)
    if answer.detectable_difference is not None:
        seeds = max(c.n_seeds for c in compared)
        sentences.append(
            f"These {answer.rows:,} validation examples can show differences of about "
            f"{amount(answer.detectable_difference, answer.binary)} with {seeds} seeds."
        )
    more = answer.more_seeds_needed
    if more:
        sentences.append(f"About {_seeds(more)} could decide.")
    elif answer.rotated:
        sentences.append("More seeds are unlikely to decide; more data or a wider tolerance could.")
    else:
        sentences.append("More seeds on the same validation examples can't decide; more validation examples could.")
    return [*sentences, meanwhile]


def _seeds(more: int) -> str:
    return f"{more} more seed{'' if more == 1 else 's'}"


def _sorted_out(compared: Sequence[Comparison], labels: Mapping[str, str]) -> list[str]:
    """Which of them are shown not to lie within, and which are open."""
    sentences: list[str] = []
    outside = [labels[c.name] for c in compared if c.state == "not"]
    if outside:
        sentences.append(f"{_listed(outside)} {'is' if len(outside) == 1 else 'are'} shown not to be.")
    open_ = [
        f"{labels[c.name]} ({probability(c.p_within)})"
        for c in compared
        if c.state == "open" and c.p_within is not None
    ]
    if open_:
        sentences.append(f"{_listed(open_)} may be.")
    return sentences


def _listed(words: Sequence[str]) -> str:
    """Words as a list: ranks share one "r = ".

    Examples:
        >>> _listed(["r = 1", "r = 2", "head alone"])
        'r = 1, 2, head alone'
    """
    ranks = [re.fullmatch(r"r = \d+", word) is not None for word in words]
    shown = [word.removeprefix("r = ") if i and ranks[i] and ranks[i - 1] else word for i, word in enumerate(words)]
    return ", ".join(shown)
