"""Format numbers and names for the table, the figures, the words and the page."""

import re
from collections.abc import Sequence

from rankwise.results import ConfigurationResult

MISSING = "–"  # noqa: RUF001  (an en dash, as tables have it)


def count(n: int | None) -> str:
    """Write a count with separators.

    Examples:
        >>> count(54725)
        '54,725'
    """
    return MISSING if n is None else f"{n:,}"


def metric(value: float | None) -> str:
    """Write a metric: three decimals, as accuracies of a few thousand examples carry; fewer where it is large, three
    digits where it is small.

    Examples:
        >>> metric(0.98412), metric(23.456), metric(12345.6), metric(3.977e-7), metric(0.0)
        ('0.984', '23.46', '12,346', '3.98e-07', '0.000')
    """
    if value is None:
        return MISSING
    if 0 < abs(value) < 0.01:
        return f"{value:.3g}"
    decimals = 3 if abs(value) < 10 else 2 if abs(value) < 1000 else 0
    return f"{value:,.{decimals}f}"


def percent(fraction: float | None, sign: str = "%") -> str:
    """Write a fraction in percent, with one decimal (two below 1%).

    Examples:
        >>> percent(0.0764), percent(0.0019), percent(1.222)
        ('7.6%', '0.19%', '122.2%')
    """
    if fraction is None:
        return MISSING
    return f"{100 * fraction:,.{2 if 0 < abs(fraction) < 0.01 else 1}f}{sign}"


def interval_text(ends: Sequence[float] | None) -> str:
    """Write an interval of a metric.

    Examples:
        >>> interval_text([0.961, 0.967])
        '0.961 to 0.967'
    """
    return MISSING if ends is None else f"{metric(ends[0])} to {metric(ends[1])}"


def learning_rate(lr: float | None) -> str:
    """Write a learning rate.

    Examples:
        >>> learning_rate(0.0003), learning_rate(2e-5)
        ('0.0003', '2e-05')
    """
    return MISSING if lr is None else f"{lr:g}"


def duration_text(seconds: float | None) -> str:
    """Write a time in the two greatest units.

    Examples:
        >>> duration_text(9.84), duration_text(754.2), duration_text(7321)
        ('9.8 s', '12 min 34 s', '2 h 2 min')
    """
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def mebibytes(n: int) -> str:
    """Write an amount of memory in MiB.

    Examples:
        >>> mebibytes(3_500_000), mebibytes(5_000)
        ('3.3', '0.0')
    """
    return f"{n / 2**20:,.1f}"


def words(name: str) -> str:
    """Write a key as words.

    Examples:
        >>> words("accuracy_on_0_4")
        'accuracy on 0-4'
    """
    return re.sub(r"(?<=\d)_(?=\d)", "-", name).replace("_", " ")


def shortened_middle(text: str, most: int) -> str:
    """A text of so many letters at most, its middle left out.

    Examples:
        >>> shortened_middle("full fine-tuning", 9)
        'full…ning'
    """
    if len(text) <= most:
        return text
    half = (most - 1) // 2
    return f"{text[: most - 1 - half]}…{text[len(text) - half :]}"


def configuration_words(configuration: ConfigurationResult) -> str:
    """Name a configuration in full: a baseline's label may give only the kind of full fine-tuning."""
    label = configuration.label
    return f"full fine-tuning, {label}" if configuration.method == "full" and "full" not in label.lower() else label
