"""One pack in several processes: each computes the gradients of its part of every batch, and all take their sum."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from rankwise.errors import PackError


@dataclass(frozen=True)
class Processes:
    """The processes of torch's default group.

    Args:
        rank: This process's number.
        size: How many there are.
    """

    rank: int
    size: int

    def part(self, rows: int) -> range:
        """The rows of a batch that are this process's: parts differ by one row at most.

        Examples:
            >>> [list(Processes(rank, 2).part(5)) for rank in (0, 1)]
            [[0, 1], [2, 3, 4]]
        """
        return range(self.rank * rows // self.size, (self.rank + 1) * rows // self.size)

    @torch.no_grad()
    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, in one flat reduction.

        Raises:
            PackError: Another process has ended.
        """
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        self._together(lambda: dist.all_reduce(flat))
        for tensor, summed in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(summed.view_as(tensor))

    @torch.no_grad()
    def take_first(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by the first process's, so that all decide alike.

        Raises:
            PackError: Another process has ended.
        """
        for tensor in tensors:
            self._together(lambda tensor=tensor: dist.broadcast(tensor, 0))

    def _together(self, run: Callable[[], object]) -> None:
        try:
            run()
        except RuntimeError as error:
            raise PackError(
                f"Process {self.rank} of {self.size} can't reach the others: one of them has ended. Its own message "
                "says why; what has been trained is kept up to the last checkpoint."
            ) from error
