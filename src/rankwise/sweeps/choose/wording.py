"""How differences and probabilities are written."""


def amount(value: float, binary: bool) -> str:
    """A difference of the metric, in points where the metric is a share of right answers.

    Examples:
        >>> amount(0.0096, binary=True), amount(0.0312, binary=False)
        ('0.96 points', '0.0312')
    """
    return f"{100 * value:.2g} points" if binary else f"{value:.3g}"


def probability(p: float) -> str:
    """A probability in percent; never 0 or 100, which no data can show.

    Examples:
        >>> probability(0.734), probability(0.99987), probability(0.0), probability(0.9925)
        ('73%', 'over 99.9%', 'under 0.1%', '99.2%')
    """
    if p > 0.999:
        return "over 99.9%"
    if p < 0.001:
        return "under 0.1%"
    return f"{100 * p:.1f}%" if p > 0.985 or p < 0.015 else f"{100 * p:.0f}%"


def floor_words(floor: str | None, metric: str, *, higher_is_better: bool) -> str:
    """What fine-tuning must beat, in words: the base, or the best constant answer by the metric.

    Examples:
        >>> floor_words("constant", "accuracy", higher_is_better=True)
        'always predicting the most frequent class'
        >>> floor_words("constant", "mean absolute error", higher_is_better=False)
        'always predicting the median'
    """
    if floor != "constant":
        return "the base"
    what = CONSTANTS.get(metric, "the most frequent class" if higher_is_better else "the median")
    return f"always predicting {what}"


CONSTANTS = {"log-loss": "the frequencies of the classes", "mean squared error": "the mean"}
"""The best constant prediction by a loss, in words."""
