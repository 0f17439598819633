"""The learning rate falls to 0 along a straight line."""

from torch import Tensor

from rankwise.train.schedules.schedule import Schedule


class Linear(Schedule):
    r"""Factor $1 - t / T$ at step t of at most T."""

    moves_each_step = True
    VECTORS = ("total",)

    def __init__(self, total_steps: Tensor) -> None:
        self.total = total_steps

    def factor(self, step: int) -> Tensor:
        return 1 - (step / self.total).clamp(max=1)
