"""The learning rate stays as it is."""

import torch
from torch import Tensor

from rankwise.train.schedules.schedule import Schedule


class Constant(Schedule):
    """Factor 1 at every step."""

    moves_each_step = False
    VECTORS = ("ones",)

    def __init__(self, total_steps: Tensor) -> None:
        self.ones = torch.ones_like(total_steps)

    def factor(self, step: int) -> Tensor:
        return self.ones
