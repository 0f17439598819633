"""Training and validation texts as one pool, which each seed can split differently."""

from collections.abc import Hashable, Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from rankwise.sweeps.problem import Splits
from rankwise.train.data.cuts import pooled

Tensors = Mapping[str, Tensor]

MOST_LEFT_OUT = 0.1
"""The largest share of the rows that a seed may leave out so that equal inputs stay together."""


def pooled_splits(train: Tensors, validation: Tensors, test: Tensors, inputs: Sequence[Hashable]) -> Splits:
    """Splits whose training and validation rows are one pool; rows with the same input stay together in every cut.

    Args:
        train: Training rows.
        validation: Validation rows, as wide as those of training.
        test: Test rows.
        inputs: The input of each training row, then of each validation row.

    Returns:
        The splits; without a rotation where one input has so many rows that cuts would leave out too many.
    """
    groups = number(inputs)
    left_out = int(groups.bincount().max()) - 1
    if left_out > min(MOST_LEFT_OUT * len(inputs), len(next(iter(train.values()))) - 1):
        return Splits(train, validation, test)
    own, cut, rotation = pooled(train, validation, groups)
    return Splits(own, cut, test, rotation)


def number(inputs: Sequence[Hashable]) -> Int[Tensor, " n"]:
    """Number equal inputs alike, in the order in which they come.

    Examples:
        >>> number(["a", "b", "a", "c"])
        tensor([0, 1, 0, 2])
    """
    numbers: dict[Hashable, int] = {}
    return torch.tensor([numbers.setdefault(each, len(numbers)) for each in inputs])


def widened(parts: Sequence[Tensors], fillers: Mapping[str, int]) -> list[dict[str, Tensor]]:
    """Data sets filled up on the right to one width.

    Args:
        parts: The data sets; each tensor of tokens (n, T).
        fillers: Tensor of tokens -> what fills it up; others stay as they are.

    Examples:
        >>> [one["ids"].tolist() for one in widened([{"ids": torch.ones(1, 1)}, {"ids": torch.ones(1, 2)}], {"ids": 0})]
        [[[1.0, 0.0]], [[1.0, 1.0]]]
    """
    width = {key: max(part[key].shape[1] for part in parts) for key in fillers if key in parts[0]}
    return [
        {
            key: F.pad(t, (0, width[key] - t.shape[1]), value=fillers[key]) if key in width else t
            for key, t in part.items()
        }
        for part in parts
    ]
