"""The learning rate stays as it is."""

import torch
from torch import Tensor


class Constant:
    """Factor 1 at every step."""

    moves_each_step = False

    def __init__(self, total_steps: Tensor) -> None:
        self._ones = torch.ones_like(total_steps)

    def factor(self, step: int) -> Tensor:
        return self._ones

    def observe(self, validation_loss: Tensor) -> None:
        pass

    def keep(self, mask: Tensor) -> None:
        self._ones = self._ones[mask]
