"""Assign batches to adapters: a step has one batch for each seed, which several adapters may share."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Shaped
from torch import Tensor


class Groups:
    """The map from adapters to batches.

    Args:
        batch_of: For each adapter, in the order of the pack, the number of its batch.
        n_batches: How many batches a step holds (G).
        device: Where the data lies.
    """

    def __init__(self, batch_of: Sequence[int], n_batches: int, device: torch.device) -> None:
        self.batch_of = list(batch_of)
        self.n_batches = n_batches
        self._index = torch.tensor(self.batch_of, device=device)
        self._identity = self.batch_of == list(range(n_batches))

    def fan_out(self, t: Shaped[Tensor, "G *rest"]) -> Shaped[Tensor, "K *rest"]:
        """Expand the batches to one for each adapter. A single batch is expanded, not copied."""
        if self._identity:
            return t
        if self.n_batches == 1:
            return t.expand(len(self.batch_of), *t.shape[1:])
        return t.index_select(0, self._index)

    def runs(self, start: int, stop: int) -> "list[SharedBatches]":
        """Cut adapters start..stop into runs: consecutive batches, each read by equally many adapters side by side.

        Adapters of a bucket are sorted by seed; where every seed has the same configurations there is one run.
        """
        runs: list[SharedBatches] = []
        k = 0
        for batch, readers in itertools.groupby(self.batch_of[start:stop]):
            each = len(list(readers))
            k += each
            last = runs[-1] if runs else None
            if last is not None and last.each == each and last.batches.stop == batch:
                runs[-1] = SharedBatches(slice(last.batches.start, batch + 1), slice(last.adapters.start, k), each)
            else:
                runs.append(SharedBatches(slice(batch, batch + 1), slice(k - each, k), each))
        return runs


@dataclass(frozen=True)
class SharedBatches:
    """Adapters side by side that read consecutive batches, `each` of them one batch.

    Args:
        batches: The batches.
        adapters: The places of the adapters, counted from the start of their bucket.
        each: How many adapters read one batch.
    """

    batches: slice
    adapters: slice
    each: int

    def stacked(self, t: Shaped[Tensor, "K n m"]) -> Shaped[Tensor, "G eachn m"]:
        """The matrices of all adapters that read one batch, one below the other: a view."""
        own = t if self.adapters == slice(0, t.shape[0]) else t[self.adapters]
        return own.view(self.batches.stop - self.batches.start, -1, t.shape[2])

    def read(self, x: Shaped[Tensor, "G n m"]) -> Shaped[Tensor, "g n m"]:
        """The batches that they read: a view."""
        return x if self.batches == slice(0, x.shape[0]) else x[self.batches]
