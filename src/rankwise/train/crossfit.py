"""Cross-fit: validation values that decide, each taken at an epoch that the other half of the rows has chosen.

A run's best epoch is the best partly by luck on the very rows that chose it, so its metric on them flatters. Each
seed's validation rows are halved; the rows of one half are read at the epoch with the lowest mean loss on the other.
The weights that are saved are those of the best epoch on all rows.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class CrossFit:
    """The cross-fitted metric of every adapter of a pack, as far as training has come.

    Args:
        half: For each adapter, in the order of the pack, the rows of the first half.
        device: Where the values lie.
        dtype: Their type.
    """

    PROGRESS = ("best", "values")

    def __init__(self, half: Bool[Tensor, "K n"], device: torch.device, dtype: torch.dtype) -> None:
        self._half = half.to(device)
        self.best = torch.full((len(half), 2), torch.inf, device=device, dtype=dtype)
        """The lowest mean loss so far on the first half and on the second: (K, 2)."""
        self.values = torch.full(half.shape, torch.nan, device=device, dtype=dtype)
        """Each row's metric at the best epoch by the other half: (K, n); NaN until there is one."""

    def observe(self, losses: Float[Tensor, "K n"], metrics: Float[Tensor, "K n"]) -> None:
        """Take in loss and metric of each validation row after an epoch; losses that are not finite choose nothing."""
        for i, chosen_by in enumerate((self._half, ~self._half)):
            mean = losses.where(chosen_by, 0).sum(1) / chosen_by.sum(1)
            better = mean.isfinite() & (mean < self.best[:, i])
            self.best[:, i] = torch.where(better, mean.to(self.best), self.best[:, i])
            self.values = torch.where(better.unsqueeze(1) & ~chosen_by, metrics.to(self.values), self.values)

    def keep(self, mask: Tensor) -> None:
        """Leave only the adapters where mask is true."""
        self._half, self.best, self.values = self._half[mask], self.best[mask], self.values[mask]

    def state(self) -> dict[str, Tensor]:
        """The progress: tensors with an entry for each adapter."""
        return {key: getattr(self, key) for key in self.PROGRESS}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned, entries in the present order of the adapters."""
        for key in self.PROGRESS:
            setattr(self, key, state[key].to(getattr(self, key)))
