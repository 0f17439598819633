"""Trained adapters cut to smaller ranks: their part of `results.json`."""

from rankwise.results.kinds import Count, Interval, ToleranceState
from rankwise.results.outcomes import AnswerResult, BoundedDifference, MeanInterval
from rankwise.results.record import Record


class CompressedRun(Record, kw_only=True):
    """One trained adapter, cut to a smaller rank.

    Args:
        name: For example r64-to-r8-lr0.001-s0; also its key in predictions.npz.
        trained: Name of the run that trained it.
        validation_metric: The metric on validation data, with the weights that would be shipped.
        metric: The metric on test data.
        adapter: Folder of the adapter, relative to the run directory; of the one to ship alone.
    """

    name: str
    trained: str
    validation_metric: float | None
    metric: float | None
    adapter: str | None


class CompressedConfiguration(Record, kw_only=True):
    """A trained configuration whose adapters are cut to a smaller rank, by the singular values of each update.

    Args:
        name: For example r64-to-r8.
        label: In words: r = 64 cut to r = 8.
        trained: Name of the configuration that was trained.
        same_size: Name of the configuration of the smaller rank, whether or not it was trained.
        r: The smaller rank.
        n_seeds: Adapters cut.
        parameters: Numbers of the smaller adapter, with what it has in full.
        validation_mean: Mean over seeds of the metric on validation data.
        mean: Mean over seeds of the metric on test data.
        interval: 95% interval of the mean on test data.
        difference_to_trained: Its test metric minus that of the configuration trained at the smaller rank, paired by
            seed; positive is better. Null where that was not trained.
        validation_difference_to_reference: Less what choosing the epoch added to the larger adapter; the bounds hold
            with and without that.
        p_within: Probability that it lies within the tolerance of the reference, from validation data.
        state: Shown to lie within the tolerance, shown not to, or open.
        is_answer: Whether it is the one to ship.
        repaired: Test metric after a short further training; null where there was none.
        trained_longer: That of the configuration trained at the smaller rank, after as many further steps.
        runs: The adapters.
    """

    name: str
    label: str
    trained: str
    same_size: str
    r: Count
    n_seeds: Count
    parameters: Count
    validation_mean: float | None
    mean: float | None
    interval: Interval | None
    difference_to_trained: MeanInterval | None
    validation_difference_to_reference: BoundedDifference | None
    p_within: float | None
    state: ToleranceState | None
    is_answer: bool
    repaired: MeanInterval | None
    trained_longer: MeanInterval | None
    runs: list[CompressedRun]


class Compressed(Record, kw_only=True):
    """What cutting trained adapters to smaller ranks gives.

    Args:
        steps: Further training steps of a repaired adapter; null where none is repaired.
        configurations: From the largest rank trained to every smaller one of the sweep.
        ship: The smallest adapter to ship, compressed ones included, by the rule of the answer; `answer` says what to
            train.
    """

    steps: Count | None
    configurations: list[CompressedConfiguration]
    ship: AnswerResult | None
