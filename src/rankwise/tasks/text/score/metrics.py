"""Metrics of one adapter: of single rows, or of all predictions of a data set at once.

Functions of rows have the shape f(outputs, batch) and are averaged over rows. F1 and MCC are no means over rows: they
are functions of counts that are summed over the rows, so that they can decide a sweep as `CountMetric`s. All functions
of a whole data set take any leading dimensions (adapters, bootstrap samples).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rankwise.errors import ConfigError
from rankwise.pack.counts import CountMetric

Batch = Mapping[str, Tensor]


def perplexity_of(loss: float) -> float:
    """exp of a loss a token, at most exp(700): JSON knows no infinity.

    Examples:
        >>> perplexity_of(0.0)
        1.0
    """
    return math.exp(min(loss, 700.0))


def predict_labels(outputs: Tensor, kind: str) -> Tensor:
    """A classifier's predictions: the likeliest label, 1 for each label likelier than not, or the number.

    Args:
        outputs: (*lead, rows, C).
        kind: "one", "several" or "number".
    """
    return _PREDICT[kind](outputs)


_PREDICT: dict[str, Callable[[Tensor], Tensor]] = {
    "one": lambda outputs: outputs.argmax(-1),
    "several": lambda outputs: (outputs > 0).float(),
    "number": lambda outputs: outputs.squeeze(-1),
}


def accuracy(outputs: Float[Tensor, "rows C"], batch: Batch) -> Float[Tensor, " rows"]:
    """1 where the likeliest label is the right one."""
    return (predict_labels(outputs, "one") == batch["labels"]).float()


def several_accuracy(outputs: Float[Tensor, "rows C"], batch: Batch) -> Float[Tensor, " rows"]:
    """1 where exactly the right labels are predicted."""
    return (predict_labels(outputs, "several") == batch["labels"]).all(-1).float()


def absolute_error(outputs: Float[Tensor, "rows 1"], batch: Batch) -> Float[Tensor, " rows"]:
    """Distance of each row's number to the right one."""
    labels = batch["labels"]
    return (outputs.to(labels) - labels).abs().mean(-1)


def confusion(
    predictions: Int[Tensor, "*lead rows"], labels: Int[Tensor, "*#lead rows"], n: int
) -> Float[Tensor, "*lead n n"]:
    """Counts of label i (row) predicted as j (column); those of parts of a data set add up.

    Examples:
        >>> confusion(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 2)
        tensor([[1., 1.],
                [0., 1.]])
    """
    every = torch.arange(n, device=labels.device)
    # One matrix product for all adapters; `bincount` has no leading dimensions.
    truth = (labels.unsqueeze(-1) == every).float()
    said = (predictions.unsqueeze(-1) == every).float()
    return truth.transpose(-1, -2) @ said


def label_counts(predictions: Tensor, labels: Tensor, n: int) -> Float[Tensor, "*lead rows three_n"]:
    """Each row's contribution, by label, to the numbers of hits, predictions and right answers.

    Args:
        predictions: (*lead, rows) numbers of labels, or (*lead, rows, n) of 0 and 1.
        labels: The right ones, alike; leading dimensions broadcast.
        n: How many labels there are.

    Examples:
        >>> label_counts(torch.tensor([1]), torch.tensor([0]), 2)
        tensor([[0., 0., 0., 1., 1., 0.]])
    """
    if not predictions.is_floating_point():
        every = torch.arange(n, device=labels.device)
        predictions, labels = ((t.unsqueeze(-1) == every).float() for t in (predictions, labels))
    predictions, labels = torch.broadcast_tensors(predictions, labels)
    return torch.cat([predictions * labels, predictions, labels], -1)


def outcome_counts(predictions: Tensor, labels: Tensor) -> Float[Tensor, "*lead rows 6"]:
    """`label_counts` of several labels a row, each (row, label) counting as a prediction of two classes."""
    parts = [label_counts(a, b, a.shape[-1]) for a, b in ((predictions, labels), (1 - predictions, 1 - labels))]
    yes, no = (part.unflatten(-1, (3, -1)).sum(-1) for part in parts)
    return torch.stack([no, yes], -1).flatten(-2)


def f1_of_counts(sums: Float[Tensor, "*lead three_n"]) -> Float[Tensor, "*lead"]:
    r"""F1 of each label, averaged over the labels that occur or were predicted.

    $$F_1 = \frac{2\,TP}{2\,TP + FP + FN}$$

    Args:
        sums: Of `label_counts` over rows.
    """
    hits, said, true = sums.unflatten(-1, (3, -1)).unbind(-2)
    total = said + true
    present = total > 0
    return torch.where(present, 2 * hits / total.clamp_min(1), 0).sum(-1) / present.sum(-1).clamp_min(1)


def mcc_of_counts(sums: Float[Tensor, "*lead three_n"]) -> Float[Tensor, "*lead"]:
    r"""Matthews' correlation coefficient, for any number of labels; 0 where all predictions or all labels are one.

    $$\frac{c s - \sum_k p_k t_k}{\sqrt{(s^2 - \sum_k p_k^2)(s^2 - \sum_k t_k^2)}}$$

    with s rows, c of them right, and label k predicted p_k and true t_k times.

    Args:
        sums: Of `label_counts` over rows, or of `outcome_counts` where a row has several labels.

    References:
        Gorodkin, Comparing two K-category assignments by a K-category correlation coefficient, 2004.
    """
    # Counts are squared: in float32 they would be rounded from 4,096 rows on.
    hits, said, true = sums.double().unflatten(-1, (3, -1)).unbind(-2)
    s, c = true.sum(-1), hits.sum(-1)
    product = (s.square() - said.square().sum(-1)) * (s.square() - true.square().sum(-1))
    value = (c * s - (said * true).sum(-1)) / product.clamp_min(1).sqrt()
    return torch.where(product > 0, value, 0).float()


def macro_f1(predictions: Tensor, labels: Tensor, n: int) -> Tensor:
    """`f1_of_counts` of a data set: (*lead). Arguments as for `label_counts`."""
    return f1_of_counts(label_counts(predictions, labels, n).sum(-2))


def matthews(predictions: Tensor, labels: Tensor, n: int) -> Tensor:
    """`mcc_of_counts` of a data set: (*lead). Arguments as for `label_counts`."""
    several = predictions.is_floating_point()
    counts = outcome_counts(predictions, labels) if several else label_counts(predictions, labels, n)
    return mcc_of_counts(counts.double().sum(-2))


def pearson(predictions: Float[Tensor, "*lead rows"], labels: Float[Tensor, "*#lead rows"]) -> Float[Tensor, "*lead"]:
    """Linear correlation of predicted and right numbers; 0 where either does not vary."""
    a, b = (t.double() - t.double().mean(-1, keepdim=True) for t in (predictions, labels))
    norm = a.norm(dim=-1) * b.norm(dim=-1)
    return torch.where(norm > 0, (a * b).sum(-1) / norm.clamp_min(torch.finfo(norm.dtype).tiny), 0).float()


@dataclass(frozen=True)
class Metric:
    """A figure that a task can be judged by.

    Args:
        name: As in results.
        higher_is_better: Which way is better.
        function: f(outputs, batch) of one adapter: a value for each row, or a `CountMetric`.
    """

    name: str
    higher_is_better: bool
    function: Callable[[Any, Batch], Tensor]


def _counts_of_one(outputs: Tensor, batch: Batch) -> Tensor:
    return label_counts(predict_labels(outputs, "one"), batch["labels"], outputs.shape[-1])


def _counts_of_several(outputs: Tensor, batch: Batch) -> Tensor:
    return label_counts(predict_labels(outputs, "several"), batch["labels"], outputs.shape[-1])


def _outcomes_of_several(outputs: Tensor, batch: Batch) -> Tensor:
    return outcome_counts(predict_labels(outputs, "several"), batch["labels"])


CLASSIFY_METRICS: dict[str, dict[str, Metric]] = {
    "one": {
        "accuracy": Metric("accuracy", True, accuracy),
        "f1": Metric("macro F1", True, CountMetric(_counts_of_one, f1_of_counts)),
        "mcc": Metric("Matthews correlation", True, CountMetric(_counts_of_one, mcc_of_counts)),
    },
    "several": {
        "accuracy": Metric("exact match of labels", True, several_accuracy),
        "f1": Metric("macro F1", True, CountMetric(_counts_of_several, f1_of_counts)),
        "mcc": Metric("Matthews correlation", True, CountMetric(_outcomes_of_several, mcc_of_counts)),
    },
    "number": {"error": Metric("mean absolute error", False, absolute_error)},
}
"""The metrics of a classifier, for each kind of label; the first is the default, the others are reported too."""


def metric_of(kind: str, name: str | None) -> Metric:
    """The metric by the name that `--metric` gives it; None for the default.

    Raises:
        ConfigError: There is none of this name for this kind of label.
    """
    known = CLASSIFY_METRICS[kind]
    if name is None:
        return next(iter(known.values()))
    if name not in known:
        what = {"one": "one label a text", "several": "several labels a text", "number": "a number a text"}[kind]
        raise ConfigError(f'--metric is "{name}"; data with {what} can be judged by {", ".join(known)}.')
    return known[name]


def classify_figures(outputs: Float[Tensor, "*lead rows C"], labels: Tensor, kind: str) -> dict[str, Tensor]:
    """All figures of a classifier from its outputs on a whole data set: name -> (*lead).

    Examples:
        >>> outputs, labels = torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 1])
        >>> {name: float(value) for name, value in classify_figures(outputs, labels, "one").items()}
        {'accuracy': 1.0, 'f1': 1.0, 'mcc': 1.0}
    """
    return _FIGURES[kind](predict_labels(outputs, kind), labels, outputs.shape[-1])


def _figures_of_labels(said: Tensor, labels: Tensor, n: int) -> dict[str, Tensor]:
    right = said == labels
    hits = (right.all(-1) if said.is_floating_point() else right).float().mean(-1)
    return {"accuracy": hits, "f1": macro_f1(said, labels, n), "mcc": matthews(said, labels, n)}


def _figures_of_number(said: Tensor, labels: Tensor, n: int) -> dict[str, Tensor]:
    right = labels.squeeze(-1)
    error = said - right
    return {
        "mean_absolute_error": error.abs().mean(-1),
        "root_mean_squared_error": error.square().mean(-1).sqrt(),
        "pearson": pearson(said, right),
    }


_FIGURES = {"one": _figures_of_labels, "several": _figures_of_labels, "number": _figures_of_number}
