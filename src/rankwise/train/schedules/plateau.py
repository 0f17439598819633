"""The learning rate falls when the validation loss stops falling."""

import torch
from torch import Tensor

from rankwise.train.schedules.schedule import Schedule


class Plateau(Schedule):
    """Times 0.1 when the loss was not at least 1e-4 (relative) below the best for more than 10 epochs.

    These are the defaults of `torch.optim.lr_scheduler.ReduceLROnPlateau`, which the digits experiment uses.
    """

    FACTOR = 0.1
    PATIENCE = 10
    THRESHOLD = 1e-4
    moves_each_step = False
    VECTORS = ("reached", "best", "bad")

    def __init__(self, total_steps: Tensor) -> None:
        self.reached = torch.ones_like(total_steps)
        self.best = torch.full_like(total_steps, torch.inf)
        self.bad = torch.zeros_like(total_steps)

    def factor(self, step: int) -> Tensor:
        return self.reached

    def observe(self, validation_loss: Tensor) -> None:
        better = validation_loss < self.best * (1 - self.THRESHOLD)
        self.best = torch.where(better, validation_loss, self.best)
        self.bad = torch.where(better, 0.0, self.bad + 1)
        reduced = self.bad > self.PATIENCE
        self.reached = torch.where(reduced, self.reached * self.FACTOR, self.reached)
        self.bad = torch.where(reduced, 0.0, self.bad)
