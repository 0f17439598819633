"""A mode that sees every operation of torch, without torch's compiler."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class UncompiledMode(TorchDispatchMode):
    """A mode whose own code `torch.compile` leaves alone.

    torch sees to that for each mode by importing its compiler, which takes a second of the processor. Here that is done
    only where something is compiled, and so has imported it.
    """

    def __init__(self) -> None:
        super().__init__()
        mode = type(self)
        if "torch._dynamo" in sys.modules and "_torchdynamo_disable" not in vars(mode.__torch_dispatch__):
            # The class's: one of the instance's own would refer to it, and keep alive what it has seen.
            disabled: Any = torch.compiler.disable(mode.__torch_dispatch__)
            mode.__torch_dispatch__ = disabled

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


def tensors_among(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among an operation's arguments or results, those in lists too.

    Examples:
        >>> [t.item() for t in tensors_among((torch.tensor(1), [torch.tensor(2), None], 3))]
        [1, 2]
    """
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_among(value)
