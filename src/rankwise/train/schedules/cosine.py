"""The learning rate falls to 0 along half a cosine."""

import math

from torch import Tensor

from rankwise.train.schedules.schedule import Schedule


class Cosine(Schedule):
    r"""Factor $\frac{1}{2} (1 + \cos(\pi t / T))$ at step t of at most T.

    References:
        Loshchilov & Hutter, SGDR, 2017, equation 5 without restarts. https://arxiv.org/abs/1608.03983
    """

    moves_each_step = True
    VECTORS = ("total",)

    def __init__(self, total_steps: Tensor) -> None:
        self.total = total_steps

    def factor(self, step: int) -> Tensor:
        return 0.5 * (1 + (math.pi * (step / self.total).clamp(max=1)).cos())
