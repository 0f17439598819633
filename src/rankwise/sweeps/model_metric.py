"""Metrics that need the model itself and not the outputs of one forward pass: figures of the texts it writes."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rankwise.errors import DataError, PackError
from rankwise.lora.base.modes import in_eval
from rankwise.pack.batches import selected
from rankwise.pack.counts import CountMetric
from rankwise.train.data.tensors import Data, count_rows


@dataclass(frozen=True)
class ModelMetric:
    """A metric that is read off the model of a run that has ended, on whole data sets.

    It is too dear to be read after every epoch: epochs are chosen by the loss, and so are learning rates where a search
    looks for them beforehand. It decides between configurations.

    Args:
        measure: measure(model, rows) -> (rows,), one value a row; or with `of_sums` (rows, C), what each row adds to
            the sums. The model is in eval mode, with the weights of one run; nothing is recorded for gradients. The
            rows are some of the validation or test data, in the form in which they were given.
        of_sums: Sums (..., C) -> the metric (...), any leading dimensions, as of a `CountMetric`; None where the metric
            is the mean of the rows' values.
        representatives: rows -> (m,), the places of those that are measured, rising; None for all. Rows that share an
            input are one observation: measure one of them.

    Examples:
        The share of a model's own numbers that a threshold divides rightly:

        >>> def right(model, rows):
        ...     return (model(rows[0]).squeeze(-1) > 0) == rows[1]
        >>> model, rows = nn.Linear(1, 1), (torch.tensor([[1.0], [-1.0]]), torch.tensor([True, True]))
        >>> _ = nn.init.ones_(model.weight), nn.init.zeros_(model.bias)
        >>> ModelMetric(right).rows(model, rows)
        array([1., 0.], dtype=float32)
    """

    measure: Callable[[nn.Module, Data], Tensor]
    of_sums: Callable[[Tensor], Tensor] | None = None
    representatives: Callable[[Data], Tensor] | None = None

    def places(self, rows: Data) -> Tensor:
        """The rows that are measured: (m,), rising."""
        n = count_rows(rows, "evaluation")
        return torch.arange(n) if self.representatives is None else self.representatives(rows).cpu()

    @torch.no_grad()
    def rows(self, model: nn.Module, rows: Data) -> np.ndarray:
        """What each measured row adds to the metric of a model: (m,); the mean is the metric.

        Args:
            model: With the weights that are measured.
            rows: A whole data set: `of_sums` makes a row's value depend on the others.

        Raises:
            DataError: Fewer than two rows are left to measure.
            PackError: `measure` returns values of another shape.
        """
        places = self.places(rows)
        if len(places) < 2:
            raise DataError(
                f"{len(places)} of {count_rows(rows, 'evaluation'):,} rows can be measured, the others having the same "
                "input or none; give two or more, as there is no interval of one."
            )
        picked = selected(rows, places)
        with in_eval(model):
            values = self.measure(model, picked)
        shape = tuple(values.shape)
        if len(shape) != (1 if self.of_sums is None else 2) or shape[0] != len(places):
            needed = f"({len(places)},)" if self.of_sums is None else f"({len(places)}, C)"
            raise PackError(
                f"The metric returned shape {shape} for {len(places)} rows; a ModelMetric "
                f"{'without' if self.of_sums is None else 'with'} of_sums returns {needed}."
            )
        if self.of_sums is not None:
            values = CountMetric(lambda outputs, batch: outputs, self.of_sums).rows(values)
        return values.float().cpu().numpy()
