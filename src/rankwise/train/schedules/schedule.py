"""The protocol of schedules: factors on the learning rates of n adapters, with a few vectors as state."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor


class Schedule(ABC):
    """The factors on the learning rates of n adapters.

    Args:
        total_steps: How many steps each adapter takes at most, (n,).
    """

    moves_each_step: ClassVar[bool]
    """Whether the factors change from step to step, and not only when a loss is observed."""

    VECTORS: ClassVar[tuple[str, ...]]
    """Attributes with an entry for each adapter: all that is cut, saved and restored."""

    @abstractmethod
    def __init__(self, total_steps: Tensor) -> None: ...

    @abstractmethod
    def factor(self, step: int) -> Tensor:
        """The factors (n,) for a step, counted from 0."""

    def observe(self, validation_loss: Tensor) -> None:
        """Take in the validation losses (n,) after an epoch."""
        return

    def keep(self, mask: Tensor) -> None:
        """Leave only the adapters where mask is true."""
        for name in self.VECTORS:
            setattr(self, name, getattr(self, name)[mask])
