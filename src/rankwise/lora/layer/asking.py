"""Only tensors of active adapters require gradients.

DistributedDataParallel waits for the gradient of every parameter that requires one, so an inactive adapter must
require none. But a graph built while it was active still leads to it: torch would drop that gradient silently.
"""

from collections.abc import Mapping
from typing import Any
from weakref import ref

from torch import Tensor


class _TakeLate:
    """The hook of a parameter that requires no gradient: it still accumulates a gradient that arrives.

    Args:
        parameter: The parameter.
    """

    def __init__(self, parameter: Tensor) -> None:
        self.parameter = ref(parameter)

    def __call__(self, gradient: Tensor) -> None:
        """Before a gradient is accumulated: let torch accumulate it."""
        parameter = self.parameter()
        if parameter is not None and not parameter.requires_grad:
            parameter.requires_grad_(True)


def stop_asking(parameter: Tensor) -> None:
    """Stop a parameter from requiring gradients; gradients of existing graphs are still accumulated.

    Examples:
        >>> import torch
        >>> parameter = torch.ones(2, requires_grad=True)
        >>> loss = (2 * parameter).sum()
        >>> stop_asking(parameter)
        >>> loss.backward()
        >>> parameter.grad
        tensor([2., 2.])
    """
    if parameter.requires_grad and parameter.is_leaf:
        hooks: Mapping[int, Any] = parameter._backward_hooks or {}
        if not any(isinstance(hook, _TakeLate) for hook in hooks.values()):
            parameter.register_hook(_TakeLate(parameter))
    parameter.requires_grad_(False)
