"""Metrics of one adapter: of single rows, or of all predictions of a data set at once.

Functions of rows have the shape f(outputs, batch) and are averaged over rows. F1, MCC and correlation are no means over
rows: they are functions of all predictions and labels, with any leading dimensions (adapters, bootstrap samples).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rankwise.tasks.text.encode.tokens import IGNORED
from rankwise.tasks.text.score.losses import targets_of, token_sums

Batch = Mapping[str, Tensor]


def token_accuracy(outputs: Float[Tensor, "rows T V"], batch: Batch) -> Float[Tensor, " rows"]:
    """Share of each row's tokens with loss that are the likeliest, given the right ones before."""
    targets = targets_of(batch)
    counted = targets != IGNORED
    hits = (outputs.argmax(-1) == targets) & counted
    return hits.sum(-1) / counted.sum(-1).clamp_min(1)


def answer_match(outputs: Float[Tensor, "rows T V"], batch: Batch) -> Float[Tensor, " rows"]:
    """1 where every token with loss is the likeliest: greedy generation would give the answer word for word."""
    targets = targets_of(batch)
    return ((outputs.argmax(-1) == targets) | (targets == IGNORED)).all(-1).float()


def perplexity(outputs: Float[Tensor, "rows T V"], batch: Batch) -> Float[Tensor, ""]:
    """exp of the mean cross-entropy over the tokens with loss of a whole data set in one batch.

    Perplexities of several batches can't be averaged: add up `token_sums` and take exp(sum / count).
    """
    sums, counts = token_sums(outputs, batch)
    return (sums.sum() / counts.sum().clamp_min(1)).exp()


def perplexity_of(loss: float) -> float:
    """exp of a loss a token, at the most exp(700): JSON knows no infinity.

    Examples:
        >>> perplexity_of(0.0)
        1.0
    """
    return math.exp(min(loss, 700.0))


def predict(outputs: Tensor, kind: str) -> Tensor:
    """What a classifier says: the likeliest label, 1 for each label likelier than not, or the number.

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
    return (predict(outputs, "one") == batch["labels"]).float()


def several_accuracy(outputs: Float[Tensor, "rows C"], batch: Batch) -> Float[Tensor, " rows"]:
    """1 where exactly the right labels are predicted."""
    return (predict(outputs, "several") == batch["labels"]).all(-1).float()


def absolute_error(outputs: Float[Tensor, "rows 1"], batch: Batch) -> Float[Tensor, " rows"]:
    """Distance of each row's number to the right one."""
    labels = batch["labels"]
    return (outputs.to(labels) - labels).abs().mean(-1)


def confusion(
    predictions: Int[Tensor, "*lead rows"], labels: Int[Tensor, "*#lead rows"], n: int
) -> Float[Tensor, "*lead n n"]:
    """How often label i (row) was predicted as j (column); confusions of parts of a data set add up.

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


def macro_f1(predictions: Tensor, labels: Tensor, n: int) -> Tensor:
    r"""F1 of each label, averaged over the labels that occur or were predicted.

    $$F_1 = \frac{2\,TP}{2\,TP + FP + FN}$$

    Args:
        predictions: (*lead, rows) numbers of labels, or (*lead, rows, n) of 0 and 1.
        labels: The right ones, alike; leading dimensions broadcast.
        n: How many labels there are.

    Returns:
        (*lead).
    """
    if predictions.is_floating_point():
        hits = (predictions * labels).sum(-2)
        total = predictions.sum(-2) + labels.sum(-2)
    else:
        counts = confusion(predictions, labels, n)
        hits = counts.diagonal(dim1=-2, dim2=-1)
        total = counts.sum(-1) + counts.sum(-2)
    present = total > 0
    return torch.where(present, 2 * hits / total.clamp_min(1), 0).sum(-1) / present.sum(-1).clamp_min(1)


def matthews(predictions: Tensor, labels: Tensor, n: int) -> Tensor:
    r"""Matthews' correlation coefficient, for any number of labels; 0 where all predictions or all labels are one.

    $$\frac{c s - \sum_k p_k t_k}{\sqrt{(s^2 - \sum_k p_k^2)(s^2 - \sum_k t_k^2)}}$$

    with s rows, c of them right, and label k predicted p_k and true t_k times. For several labels a row, each
    (row, label) is one prediction of two classes.

    References:
        Gorodkin, Comparing two K-category assignments by a K-category correlation coefficient, 2004.
    """
    if predictions.is_floating_point():
        predictions, labels, n = predictions.long().flatten(-2), labels.long().flatten(-2), 2
    # Counts are squared: in float32 they would be rounded from 4,096 rows on.
    counts = confusion(predictions, labels, n).double()
    true, said = counts.sum(-1), counts.sum(-2)
    s, c = counts.sum((-2, -1)), counts.diagonal(dim1=-2, dim2=-1).sum(-1)
    product = (s.square() - said.square().sum(-1)) * (s.square() - true.square().sum(-1))
    value = (c * s - (said * true).sum(-1)) / product.clamp_min(1).sqrt()
    return torch.where(product > 0, value, 0).float()


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
        by_row: f(outputs, batch) of one adapter.
    """

    name: str
    higher_is_better: bool
    by_row: Callable[[Tensor, Batch], Tensor]


CLASSIFY_METRICS = {
    "one": Metric("accuracy", True, accuracy),
    "several": Metric("exact match of labels", True, several_accuracy),
    "number": Metric("mean absolute error", False, absolute_error),
}
"""What a classifier is judged by, for each kind of label; the rest is said beside it."""


def classify_figures(outputs: Float[Tensor, "*lead rows C"], labels: Tensor, kind: str) -> dict[str, Tensor]:
    """All figures of a classifier from its outputs on a whole data set: name -> (*lead).

    Examples:
        >>> outputs, labels = torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 1])
        >>> {name: float(value) for name, value in classify_figures(outputs, labels, "one").items()}
        {'accuracy': 1.0, 'f1': 1.0, 'mcc': 1.0}
    """
    return _FIGURES[kind](predict(outputs, kind), labels, outputs.shape[-1])


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
