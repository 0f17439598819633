"""The floor of a classifier: the best constant answer."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankwise.pack.counts import CountMetric
from rankwise.tasks.text.data.labels import Labels

FLOORS = {"one": "majority class", "several": "commonest labels", "number": "median"}
"""Kind of label -> what the floor is called among the figures."""

_LEAST = 1e-6
"""The share of a label that never occurs: finite logits."""


def floor_outputs(labels: Labels, right: Tensor) -> Tensor:
    """The logits of the best constant answer to these examples, as a classifier gives them: (rows, C).

    Of one label it is the likeliest one, with each label's share as its probability; of several the commonest set of
    labels; of numbers the median, which has the smallest mean absolute error.

    Args:
        labels: What is predicted.
        right: The right answers, from `Labels.encode`.

    Examples:
        >>> outputs = floor_outputs(Labels("one", ("a", "b")), torch.tensor([1, 1, 1, 0]))
        >>> outputs.softmax(-1)[0]
        tensor([0.2500, 0.7500])
        >>> floor_outputs(Labels("several", ("a", "b")), torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]))[0] > 0
        tensor([False,  True])
    """
    n = len(right)
    if labels.kind == "number":
        return right.median(0, keepdim=True).values.expand(n, -1)
    if labels.kind == "one":
        shares = torch.bincount(right, minlength=len(labels.names)) / n
        return shares.clamp_min(_LEAST).log().expand(n, -1)
    (commonest, _), *_ = Counter(map(tuple, right.tolist())).most_common(1)
    shares = right.mean(0).clamp(_LEAST, 1 - _LEAST).logit().abs()
    return torch.where(torch.tensor(commonest) > 0, shares, -shares).expand(n, -1)


def constant_rows(labels: Labels, metric: Callable[[Any, Any], Tensor], training: Any, rows: Any) -> np.ndarray:
    """Each row's metric of the best constant answer to the training data, as in `Problem.constant`.

    Args:
        labels: What is predicted.
        metric: The metric of one adapter.
        training: Training data, with the right answers in "labels".
        rows: The rows to answer, likewise.

    Examples:
        >>> numbers = Labels("number", ("value",))
        >>> metric = lambda outputs, batch: (outputs - batch["labels"]).abs()[:, 0]
        >>> data = {"labels": torch.tensor([[1.0], [2.0], [9.0]])}
        >>> constant_rows(numbers, metric, data, {"labels": torch.tensor([[5.0]])})
        array([3.], dtype=float32)
    """
    outputs = floor_outputs(labels, training["labels"].cpu())[:1]
    right = rows["labels"].cpu()
    values = metric(outputs.expand(len(right), -1), {"labels": right})
    return (metric.rows(values) if isinstance(metric, CountMetric) else values).float().numpy()
