"""Which batch each adapter reads: a step holds one batch for each seed, several adapters share it."""

from collections.abc import Sequence

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
        """Give every adapter its batch. A single batch is expanded, not copied."""
        if self._identity:
            return t
        if self.n_batches == 1:
            return t.expand(len(self.batch_of), *t.shape[1:])
        return t.index_select(0, self._index)

    def runs(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """Cut adapters start..stop into runs that read one batch: (batch, first, last + 1), counted from start.

        Adapters of a bucket are sorted by seed, so there are at most as many runs as batches.
        """
        runs: list[tuple[int, int, int]] = []
        for k in range(start, stop):
            first = k - start
            if runs and runs[-1][0] == self.batch_of[k]:
                first = runs.pop()[1]
            runs.append((self.batch_of[k], first, k - start + 1))
        return runs
