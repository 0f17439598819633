"""What fine-tuning must beat, measured on validation rows: the base as it is, and the best constant prediction."""

import numpy as np
import torch
from torch import Tensor, nn

from rankwise.sweeps.answer import Floors
from rankwise.sweeps.measure import base_rows
from rankwise.sweeps.problem import Problem


def measured_floors(model: nn.Module, problem: Problem, which: str) -> Floors:
    """Measure base and constant prediction on the validation rows of one of the problem's splits.

    Args:
        model: The base.
        problem: Data and metric.
        which: The name of the splits.
    """
    splits = problem.splits[which]
    base = base_rows(model, problem, splits.validation)
    constant = None if problem.constant is None else problem.constant(splits.train, splits.validation)
    return Floors(lambda rows: _taken(base, rows), lambda rows: None if constant is None else _taken(constant, rows))


def _taken(values: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
    return values if rows is None else values[rows]


def majority_class(training: Tensor, labels: Tensor) -> np.ndarray:
    """1 for each label that is the most frequent one of the training data, else 0.

    Args:
        training: Class numbers of the training data, below 0 where there is none.
        labels: Those of the rows to predict.

    Examples:
        >>> majority_class(torch.tensor([0, 1, 1]), torch.tensor([1, 0]))
        array([1., 0.])
    """
    known = training[training >= 0]
    if not len(known):
        return np.zeros(len(labels))
    return (labels == torch.bincount(known).argmax()).double().cpu().numpy()
