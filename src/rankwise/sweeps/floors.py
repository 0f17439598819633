"""The floors of fine-tuning, measured on validation rows: the untrained base, and the best constant prediction."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from rankwise.pack.batches import selected
from rankwise.sweeps.choose.comparison import Floors
from rankwise.sweeps.measure import base_rows
from rankwise.sweeps.problem import Problem
from rankwise.train.data.tensors import Data


def measured_floors(model: nn.Module, problem: Problem, which: str, *, with_base: bool = True) -> Floors:
    """Base and constant prediction on the validation rows of one of the problem's splits, each measured when it is
    first asked for.

    Args:
        model: The base.
        problem: Data and metric.
        which: The name of the splits.
        with_base: Whether the base can do the task.
    """
    splits, rotation = problem.splits[which], problem.rotation_of(which)
    known: dict[tuple[str, bytes], np.ndarray] = {}

    def measured(name: str, rows: np.ndarray | None, take: Callable[[Data], np.ndarray]) -> np.ndarray:
        key = name, b"" if rows is None else rows.tobytes()
        if key not in known:
            data = splits.validation
            if rows is not None and rotation is not None:
                index = torch.from_numpy(rows)
                data = selected(rotation.pool, index)
            known[key] = take(data)
        return known[key]

    def constant(rows: np.ndarray | None) -> np.ndarray | None:
        predict = problem.constant
        return None if predict is None else measured("constant", rows, lambda data: predict(splits.train, data))

    def base(rows: np.ndarray | None) -> np.ndarray | None:
        return measured("base", rows, lambda data: base_rows(model, problem, data)) if with_base else None

    return Floors(base, constant)


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


LEAST_SHARE = 1e-6
"""Of a class that the training data don't have: a finite loss."""


def class_shares(training: Tensor, labels: Tensor) -> np.ndarray:
    """The log-loss of each label under the class frequencies of the training data, the best constant prediction by it.

    Args:
        training: Class numbers of the training data, below 0 where there is none.
        labels: Those of the rows to predict.

    Examples:
        >>> class_shares(torch.tensor([0, 1, 1, 1]), torch.tensor([1])).round(4)
        array([0.2877], dtype=float32)
    """
    known = training[training >= 0]
    counts = torch.bincount(known, minlength=int(labels.max()) + 1).float()
    shares = (counts / max(1, len(known))).clamp_min(LEAST_SHARE)
    return -shares.log()[labels].cpu().numpy()
