"""The rule of an answer: how much worse than the reference is good enough, and how sure it must be."""

import math
from dataclasses import dataclass

from rankwise.errors import ConfigError, option

SHARE_OF_REFERENCE = 0.01
"""Default for accuracies, together with the share of the gain: 1% of the reference's metric."""

SHARE_OF_GAIN = 0.05
"""Default for accuracies and losses: 5% of what fine-tuning gains over the better of base and constant prediction."""


@dataclass(frozen=True)
class Tolerance:
    """A tolerance, in up to three forms; where several are given, the smallest holds.

    Args:
        of_reference: A share of the reference's metric, for metrics of which more is better.
        of_gain: A share of the reference's gain over the floor (the better of base and constant prediction).
        absolute: A difference in the metric's unit.

    Examples:
        >>> Tolerance(of_reference=0.01, of_gain=0.05).value(reference=0.96, floor=0.34)
        0.0096
        >>> Tolerance(of_gain=0.05).value(reference=2.0, floor=3.0)
        0.05
    """

    of_reference: float | None = None
    of_gain: float | None = None
    absolute: float | None = None

    def value(self, reference: float, floor: float | None) -> float:
        """The tolerance in the metric's unit.

        Args:
            reference: The reference's metric.
            floor: The metric of the better of base and constant prediction; None where neither is known.

        Raises:
            ConfigError: The tolerance is a share of the gain alone, and the floor is not known.
        """
        values = [self.absolute] if self.absolute is not None else []
        if self.of_reference is not None:
            values.append(self.of_reference * abs(reference))
        if self.of_gain is not None and floor is not None:
            values.append(self.of_gain * abs(reference - floor))
        if not values:
            raise ConfigError(
                "The tolerance is a share of the gain over the base, and the base's metric is not known. Give the "
                "tolerance in the metric's unit, such as 0.02."
            )
        return min(values)

    def words(self, label: str, metric: str, floor: str = "the base") -> str:
        """The tolerance in words.

        Args:
            label: The reference, in words.
            metric: The metric's name.
            floor: What its gain is over, in words.

        Examples:
            >>> Tolerance(of_reference=0.01).words("full fine-tuning", "accuracy")
            "1% of full fine-tuning's accuracy"
        """
        parts: list[str] = []
        if self.absolute is not None:
            parts.append(f"{self.absolute:.3g} of {label}'s {metric}")
        if self.of_reference is not None:
            parts.append(f"{100 * self.of_reference:.3g}% of {label}'s {metric}")
        if self.of_gain is not None:
            parts.append(f"{100 * self.of_gain:.3g}% of its gain over {floor}")
        return " and ".join(parts)


@dataclass(frozen=True)
class Rule:
    """The rule for an answer.

    Args:
        tolerance: How much worse than the reference is good enough.
        higher_is_better: True for accuracies, False for losses.
        confidence: The probability at which something counts as shown.
        strict: Whether sizes are tested from the largest down, stopping at the first that fails, so that the chance of
            naming one that lies outside is at most 1 - confidence however many sizes were tried.
    """

    tolerance: Tolerance
    higher_is_better: bool
    confidence: float = 0.95
    strict: bool = False

    def __post_init__(self) -> None:
        if not 0.5 < self.confidence < 1:
            what = option("confidence")
            raise ConfigError(f"{what} is {self.confidence}; give a probability between 0.5 and 1, such as 0.95.")


def default_tolerance(higher_is_better: bool) -> Tolerance:
    """The tolerance of a metric where the user gives none.

    A share of a loss itself means nothing, as its zero is out of reach; only the gain counts there.
    """
    return Tolerance(SHARE_OF_REFERENCE if higher_is_better else None, SHARE_OF_GAIN)


def parse_tolerance(given: str | float | None, higher_is_better: bool) -> Tolerance:
    """Read a tolerance as users write it.

    Args:
        given: "1%" (of the reference's metric; for losses of its gain over the base), "0.5 points" (hundredths, for
            accuracies), "0.02" or a number (in the metric's unit); None for the default.
        higher_is_better: True for accuracies, False for losses.

    Raises:
        ConfigError: It is none of these, negative, not finite, or a share of all or more.

    Examples:
        >>> parse_tolerance("1%", True), parse_tolerance("0.5 points", True).absolute
        (Tolerance(of_reference=0.01, of_gain=None, absolute=None), 0.005)
    """
    if given is None:
        return default_tolerance(higher_is_better)
    text = str(given).strip().lower()
    number, unit = text, ""
    for ending in ("%", "points", "point"):
        if text.endswith(ending):
            number, unit = text.removesuffix(ending).strip(), ending
            break
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ConfigError(
            f'The tolerance is "{given}"; give a share such as "1%", a difference such as "0.5 points", or a number of '
            "at least 0 in the metric's unit, such as 0.02."
        )
    if unit == "%":
        share = value / 100
        if share >= 1:
            raise ConfigError(
                f'The tolerance is "{given}"; anything would be within all of it. Give less, such as "5%".'
            )
        return Tolerance(of_reference=share) if higher_is_better else Tolerance(of_gain=share)
    if unit and not higher_is_better:
        raise ConfigError('A tolerance in points is for accuracies; of a loss give a share such as "5%", or a number.')
    return Tolerance(absolute=value / 100 if unit else value)


AT_MOST_ONE = ("accuracy", "F1", "exact match", "correlation")
"""Words in the names of metrics that are 1 at most."""


def accuracy_tolerance(given: str | float | None) -> Tolerance:
    """Read the tolerance of an accuracy, or of another metric that lies between 0 and 1.

    Raises:
        ConfigError: It can't be read, or everything would lie within it.
    """
    found = parse_tolerance(given, True)
    if (found.absolute or 0.0) >= 1:
        raise ConfigError(
            f'The tolerance is "{given}"; the metric lies between 0 and 1, so anything would be within it. For one '
            'point give 0.01 or "1 point".'
        )
    return found
