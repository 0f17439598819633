"""Cuts: which rows of a pool each seed trains on, and on which it validates.

With one validation set for all seeds, a mean over seeds still depends on which examples that set holds, and more seeds
don't help. Where every seed validates on its own rows, both kinds of luck average out together.

The cuts of seeds 0, 1, 2, ... are folds of one seeded permutation of the pool, so they are disjoint; when the folds
are used up, the next seeds take those of a further permutation. A cut depends on the pool and the seed alone, never on
how many seeds there are.

References:
    Bouthillier et al., Accounting for Variance in Machine Learning Benchmarks, 2021.
    https://arxiv.org/abs/2103.03098
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rankwise.errors import DataError
from rankwise.pack.batches import mapped
from rankwise.streams import stream
from rankwise.train.data.tensors import Data, count_rows, tensors_of


@dataclass(frozen=True, eq=False)
class Cut:
    """One seed's cut of a pool.

    Args:
        train: Rows it trains on, rising.
        validation: Rows it validates on, rising; none of them is in `train`.
    """

    train: Int[Tensor, " n_train"]
    validation: Int[Tensor, " n_validation"]


Cutting = Callable[[int], Cut]
"""Seed -> its cut."""


def cut_pool(n: int, n_validation: int, seed: int, groups: Int[Tensor, " n"] | None = None) -> Cut:
    """Cut a pool of n rows.

    Rows of one group (examples with the same input) never lie on both sides. A cut takes whole groups until it has
    `n_validation` rows; what the last group has beyond that is left out, and so are further rows until every seed
    trains on n - n_validation - (size of the largest group - 1) of them: seeds that share a pack need equally many.

    Args:
        n: Rows of the pool.
        n_validation: Rows of a cut.
        seed: Whose cut, 0 or more.
        groups: A group's number for each row, from 0 on; None where each row is a group.

    Raises:
        DataError: No row is left to train on, or a cut would be empty.

    Examples:
        >>> cuts = [cut_pool(6, 2, seed).validation for seed in (0, 1, 2)]
        >>> torch.cat(cuts).sort().values
        tensor([0, 1, 2, 3, 4, 5])
    """
    groups = torch.arange(n) if groups is None else groups
    sizes = groups.bincount()
    spare = int(sizes.max()) - 1
    n_train = n - n_validation - spare
    if n_validation < 1 or n_train < 1:
        raise DataError(
            f"{n:,} rows, of which up to {spare + 1:,} belong together, can't be cut into {n_validation:,} for "
            "validation and the rest for training; give fewer for validation, or its own validation set."
        )
    turn, fold = divmod(seed, max(1, n // (n_validation + spare)))
    order = torch.randperm(len(sizes), generator=stream("rotation", turn))
    ends = sizes[order].cumsum(0)
    rows = order.argsort()[groups].argsort(stable=True)
    start = stop = 0
    for _ in range(fold + 1):
        start, stop = stop, int(ends[torch.searchsorted(ends, stop + n_validation)])
    rest = torch.cat([rows[:start], rows[stop:]]).sort().values
    if len(rest) > n_train:
        rest = rest[torch.randperm(len(rest), generator=stream("rotation", "left out", seed))[:n_train]].sort().values
    return Cut(rest, rows[start : start + n_validation].sort().values)


def half_of(n: int, seed: int) -> Bool[Tensor, " n"]:
    """The first half of a seed's n validation rows, the same for all of its runs; the others are the second half.

    Examples:
        >>> int(half_of(5, seed=0).sum())
        2
    """
    half = torch.zeros(n, dtype=torch.bool)
    half[torch.randperm(n, generator=stream("halves", seed))[: n // 2]] = True
    return half


@dataclass(frozen=True, eq=False)
class Rotation:
    """A pool of rows that every seed splits differently.

    Args:
        pool: The training rows, then the validation rows.
        n_validation: Rows of a cut.
        groups: As `cut_pool` takes them.
    """

    pool: Data
    n_validation: int
    groups: Tensor | None = None
    _cuts: dict[int, Cut] = field(default_factory=dict[int, Cut], init=False, repr=False)

    def cut(self, seed: int) -> Cut:
        """The cut of a seed."""
        if seed not in self._cuts:
            self._cuts[seed] = cut_pool(count_rows(self.pool, "pool"), self.n_validation, seed, self.groups)
        return self._cuts[seed]

    @property
    def n_train(self) -> int:
        """Rows that each seed trains on."""
        return len(self.cut(0).train)

    def plain(self) -> dict[str, Any]:
        """The settings that repeat the cuts of the same data, as JSON."""
        groups = None if self.groups is None else int(self.groups.max()) + 1
        return {"pool": count_rows(self.pool, "pool"), "validation": self.n_validation, "groups": groups}


def pooled(train: Data, validation: Data, groups: Tensor | None = None) -> tuple[Data, Data, Rotation]:
    """Pool training and validation rows, for each seed to split with the same number for validation.

    Returns:
        The training and the validation rows, as views of the pool, and the rotation.

    Raises:
        DataError: The two have tensors of different kinds, or cuts can't be made.
    """
    n = count_rows(train, "training")
    others = iter(tensors_of(validation))
    pool = mapped(train, lambda t: torch.cat([t, next(others)]))
    rotation = Rotation(pool, count_rows(validation, "validation"), groups)
    rotation.cut(0)
    return mapped(pool, lambda t: t[:n]), mapped(pool, lambda t: t[n:]), rotation
