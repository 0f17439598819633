"""Data in memory: tensors with the rows first, and the order in which a seed goes through them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rankwise.errors import DataError
from rankwise.pack.batches import mapped
from rankwise.streams import stream

Data = Any
"""A tensor, or a tuple or mapping of tensors of one length."""


def tensors_of(data: Data) -> list[Tensor]:
    """The tensors of a data set."""
    if isinstance(data, Tensor):
        return [data]
    return list(data.values() if isinstance(data, Mapping) else data)


def count_rows(data: Data, what: str) -> int:
    """The number of rows of a data set.

    Raises:
        DataError: It has none, or its tensors differ in length.
    """
    lengths = {len(t) for t in tensors_of(data)}
    if len(lengths) != 1 or lengths == {0}:
        raise DataError(
            f"The tensors of the {what} data have {sorted(lengths)} rows; all must have the same number, at least 1."
        )
    return lengths.pop()


def take(data: Data, rows: Tensor) -> Data:
    """The rows of each batch: every tensor becomes (G, B, ...) for `rows` of shape (G, B)."""
    flat = rows.flatten()
    # index_select copies whole rows; indexing by a matrix of row numbers takes four times as long.
    return mapped(data, lambda t: t.index_select(0, flat).view(*rows.shape, *t.shape[1:]))


def shuffled(n: int, seed: int, epoch: int) -> Tensor:
    """An order of n rows that depends on (seed, epoch) and nothing else: (n,)."""
    return torch.randperm(n, generator=stream("order", seed, epoch))
