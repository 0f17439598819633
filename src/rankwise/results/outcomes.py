"""The outcome of a sweep: its runs, its configurations, the answer."""

from typing import Any

from msgspec import UNSET, UnsetType

from rankwise.results.kinds import Count, Floor, Interval, Method, Status, ToleranceState, Verdict
from rankwise.results.record import Record


class RunResult(Record, kw_only=True):
    """One training run.

    Args:
        name: For example r8-lr0.001-s0; also the adapter's folder and the run's key in curves.csv and
            predictions.npz.
        configuration: Name of the configuration the run belongs to, where method and r do not tell.
        method: How it was trained.
        r: The LoRA rank; null unless the method is lora.
        alpha: Numerator of the scale; null unless the method is lora.
        lr: Learning rate; null where nothing is trained.
        seed: Fixes initial A, the order of the data and every random draw.
        config: Every other setting of the run.
        trainable_parameters: How many numbers are trained.
        validation_metric: The metric on validation data, with the weights that are kept.
        validation_loss: The loss on validation data, with the weights that are kept.
        metric: The metric on test data; null unless the run finished and its configuration was chosen.
        other_metrics: Further metrics by name.
        best_step: The step with the best validation metric.
        steps: Steps taken.
        epochs: Passes over the training data.
        seconds: Time; runs of one pack share the pack's time.
        peak_memory_bytes: Greatest memory in use; of the whole pack.
        pack: Number of the pack the run was trained in.
        status: How the run ended.
        reason: Why, where it did not simply finish.
        adapter: Folder of the adapter, relative to the run directory.
        settings: SHA-256 of all settings of the run.
    """

    name: str
    configuration: str | None = None
    method: Method
    r: Count | None
    alpha: float | None
    lr: float | None
    seed: Count | None
    config: dict[str, Any]
    trainable_parameters: Count
    validation_metric: float | None
    validation_loss: float | None
    metric: float | None
    other_metrics: dict[str, float | None] = {}  # noqa: RUF012
    best_step: Count | None
    steps: Count | None
    epochs: float | None
    seconds: float | None
    peak_memory_bytes: Count | None
    pack: Count | None
    status: Status
    reason: str | None
    adapter: str | None
    settings: str | None = None


class MeanInterval(Record, kw_only=True):
    """A mean with its 95% interval."""

    mean: float | None
    interval: Interval | None


class BoundedDifference(Record, kw_only=True):
    """A paired difference on validation data, in the metric's units; positive is better.

    Args:
        lower_bound: One-sided lower bound at the answer's confidence; null with one seed.
        upper_bound: One-sided upper bound, likewise.
    """

    mean: float | None
    lower_bound: float | None
    upper_bound: float | None = None


class ConfigurationResult(Record, kw_only=True):
    """One method and rank, at its chosen learning rate.

    Args:
        name: For example r4 or full.
        label: In words, for the table and the figures: r = 4, full fine-tuning.
        method: How it is trained.
        r: The LoRA rank; null unless the method is lora.
        lr: The learning rate chosen on validation data.
        lr_at_edge_of_grid: Whether that is the lowest or highest tried, so a better one may lie outside.
        n_seeds: Finished runs at that learning rate.
        trainable_parameters: How many numbers are trained.
        validation_mean: Mean over seeds of the metric on validation data.
        mean: Mean over seeds of the metric on test data.
        interval: 95% interval of the mean on test data.
        validation_difference_to_reference: Null without a reference.
        difference_to_reference: Paired difference on test data, in the metric's units; positive is better.
        relative_parameters: Trainable parameters over those of relative_to, as a fraction.
        relative_metric: Test metric over that of relative_to, as a fraction.
        on_pareto_front: No other configuration has fewer parameters and a metric as good.
        is_reference: Whether this is what the answer is compared with.
        is_answer: Whether this is the answer; no configuration is while the verdict is undecided.
        p_within: Probability that it lies within the tolerance of the reference, from validation data; null where
            it can't be estimated.
        state: Shown to lie within the tolerance, shown not to, or open; null for the reference.
        more_seeds_needed: Seeds to add until it is decided, if means and variances stay as they are; null where
            seeds can't decide.
        other_metrics: Further metrics by name, for example accuracy_on_0_4.
        runs: Names of the runs at the chosen learning rate.
    """

    name: str
    label: str
    method: Method
    r: Count | None
    lr: float | None
    lr_at_edge_of_grid: bool
    n_seeds: Count
    trainable_parameters: Count
    validation_mean: float | None
    mean: float | None
    interval: Interval | None
    validation_difference_to_reference: BoundedDifference | None
    difference_to_reference: MeanInterval | None
    relative_parameters: float | None
    relative_metric: float | None
    on_pareto_front: bool
    is_reference: bool
    is_answer: bool
    p_within: float | None
    state: ToleranceState | None
    more_seeds_needed: Count | None = None
    other_metrics: dict[str, MeanInterval]
    runs: list[str]


class Leaning(Record, kw_only=True):
    """While undecided: the smallest configuration that more likely than not lies within the tolerance."""

    name: str
    p_within: float | None


class Gain(Record, kw_only=True):
    """The reference's gain on validation data over the better of base and constant prediction."""

    over: Floor | None
    mean: float | None
    lower_bound: float | None


class ByLoss(Record, kw_only=True):
    """What the same rule says by the loss of the same runs, with its default tolerance: it decides with fewer examples
    than a share of right answers. It is not the answer.

    Args:
        metric: What the loss is called.
        verdict: What is known by it.
        name: Name of the configuration it would name; base where nothing is gained.
        p_within: Probability that this configuration lies within the tolerance; null where it is reference or base.
        leaning: Null unless this verdict is undecided.
        tolerance: How much more than the reference's loss is good enough.
    """

    metric: str
    verdict: Verdict
    name: str
    p_within: float | None
    leaning: Leaning | None
    tolerance: float


class AnswerResult(Record, kw_only=True):
    """The recommendation.

    Args:
        verdict: What is known.
        name: Name of the configuration to use: the smallest shown, else the reference; base where nothing is gained.
        r: Its LoRA rank.
        adapter: Folder of the recommended adapter, relative to the run directory.
        reference: Name of the configuration it is compared with.
        tolerance: How much worse than the reference is still good enough, in the metric's units.
        tolerance_words: The tolerance in words.
        confidence: Probability at which something counts as shown.
        leaning: Null unless the verdict is undecided.
        trainable_parameters: How many numbers are trained.
        relative_parameters: Trainable parameters over the reference's, as a fraction.
        relative_metric: Test metric over the reference's, as a fraction.
        relative_metric_interval: 95% interval of that fraction.
        gain: Null where there is nothing to beat.
        validation_rows: Distinct validation examples, over all seeds.
        rows_needed: Distinct validation examples without which nothing can be shown of a metric of 0 and 1.
        rotated: Whether every seed had validation examples of its own.
        detectable_difference: The difference that these validation examples and seeds can show, in the metric's
            units.
        separable: Whether the verdict is shown.
        more_seeds_needed: Seeds to add until it is decided; 0 where it is.
        reason: Why this one, or why none.
        next: A command that adds the seeds that could decide.
        by_loss: What the loss of the same runs says; null where it is the metric, or is not known for each row.
    """

    verdict: Verdict
    name: str | None
    r: int | None
    adapter: str | None
    reference: str | None
    tolerance: float | None
    tolerance_words: str | None = None
    confidence: float
    leaning: Leaning | None
    trainable_parameters: int | None
    relative_parameters: float | None
    relative_metric: float | None
    relative_metric_interval: Interval | None
    gain: Gain | None = None
    validation_rows: int | None = None
    rows_needed: int | None = None
    rotated: bool | None = None
    detectable_difference: float | None
    separable: bool | None
    more_seeds_needed: Count | None
    reason: str | None
    next: str | UnsetType | None = UNSET
    by_loss: ByLoss | UnsetType | None = UNSET
