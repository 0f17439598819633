"""The learning rate falls when the validation loss stops falling."""

import torch
from torch import Tensor


class Plateau:
    """Times 0.1 when the loss was not at least 1e-4 (relative) below the best for more than 10 epochs.

    These are the defaults of `torch.optim.lr_scheduler.ReduceLROnPlateau`, which the digits experiment uses.
    """

    FACTOR = 0.1
    PATIENCE = 10
    THRESHOLD = 1e-4
    moves_each_step = False

    def __init__(self, total_steps: Tensor) -> None:
        self._factor = torch.ones_like(total_steps)
        self._best = torch.full_like(total_steps, torch.inf)
        self._bad = torch.zeros_like(total_steps)

    def factor(self, step: int) -> Tensor:
        return self._factor

    def observe(self, validation_loss: Tensor) -> None:
        better = validation_loss < self._best * (1 - self.THRESHOLD)
        self._best = torch.where(better, validation_loss, self._best)
        self._bad = torch.where(better, 0.0, self._bad + 1)
        reduced = self._bad > self.PATIENCE
        self._factor = torch.where(reduced, self._factor * self.FACTOR, self._factor)
        self._bad = torch.where(reduced, 0.0, self._bad)

    def keep(self, mask: Tensor) -> None:
        self._factor, self._best, self._bad = self._factor[mask], self._best[mask], self._bad[mask]
