r"""Metrics that are functions of sums over the rows of a data set: F1, correlation coefficients, ratios of sums.

With $c_i$ what row i counts and $g$ the metric of the sums, row i's pseudo-value is

$$u_i = n\, g\Big(\sum_j c_j\Big) - (n - 1)\, g\Big(\sum_{j \ne i} c_j\Big)$$

so that the mean of the $u_i$ estimates the metric and their spread its error, and a metric that is no mean of rows can
be compared like one. They are shifted so that their mean is the metric itself.

References:
    Tukey, Bias and confidence in not quite large samples, 1958.
    Efron, The Jackknife, the Bootstrap and Other Resampling Plans, 1982, chapter 3.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor


@dataclass(frozen=True)
class CountMetric:
    """A metric that is a function of sums over the rows of a data set.

    Args:
        counts: counts(outputs, batch) of one adapter -> (rows, C), what each row adds to the sums; a row's counts must
            not depend on other rows.
        of_sums: Sums (..., C) -> the metric (...), any leading dimensions.

    Examples:
        The F1 of label 1 of two:

        >>> def counts(outputs, batch):
        ...     said, true = outputs.argmax(-1), batch["labels"]
        ...     return torch.stack([said * true, said, true], -1)
        >>> f1 = CountMetric(counts, lambda sums: 2 * sums[..., 0] / (sums[..., 1] + sums[..., 2]))
        >>> outputs = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
        >>> f"{f1.rows(f1(outputs, {'labels': torch.tensor([1, 0, 0])})).mean():.4f}"
        '0.6667'
    """

    counts: Callable[[Any, Any], Tensor]
    of_sums: Callable[[Tensor], Tensor]

    def __call__(self, outputs: Any, batch: Any) -> Any:
        """Each row's contribution to the sums: (rows, C); the caller checks it."""
        return self.counts(outputs, batch)

    def rows(self, counts: Shaped[Tensor, "*lead n C"]) -> Float[Tensor, "*lead n"]:
        """The pseudo-value of each row; their mean is the metric. Rows of one data set, all of them."""
        counts = counts.double()
        n, total = counts.shape[-2], counts.sum(-2)
        statistic = self.of_sums(total).unsqueeze(-1)
        if n == 1:
            return statistic.float()
        # One adapter at a time: (rows, C) of all of them could be much.
        lead = counts.flatten(0, -3) if counts.dim() > 2 else counts.unsqueeze(0)
        sums = total.view(len(lead), 1, -1)
        left = torch.stack([self.of_sums(one - rows) for one, rows in zip(sums, lead, strict=True)])
        left = left.view(counts.shape[:-1])
        return (statistic + (n - 1) * (left.mean(-1, keepdim=True) - left)).float()


def ratio_rows(sums: Tensor, counts: Tensor) -> Tensor:
    r"""Each row's contribution to a ratio of sums, such as a loss per token: (..., n).

    $$u_i = R + \frac{s_i - R\, n_i}{\bar n}, \qquad R = \frac{\sum s_i}{\sum n_i}$$

    The mean over rows is R, and the spread is that of R itself: long and short rows differ in n as well as in s, which
    s_i alone would count as error of R.

    References:
        Cochran, Sampling Techniques, 3rd edition, 1977, section 6.3 (ratio estimates).

    Examples:
        >>> ratio_rows(torch.tensor([2.0, 6.0]), torch.tensor([1.0, 3.0]))
        tensor([2., 2.])
    """
    mean = counts.mean(-1, keepdim=True)
    ratio = sums.mean(-1, keepdim=True) / mean
    return ratio + (sums - ratio * counts) / mean
