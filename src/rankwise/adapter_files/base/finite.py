"""Look for numbers that are not finite in many tensors at once."""

from collections.abc import Iterable

import torch
from torch import Tensor

_SMALL, _AT_ONCE = 1 << 16, 1 << 22
"""Numbers of a tensor that is looked at together with others, at most; and of all that are looked at together."""


@torch.no_grad()
def first_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return the name of the first tensor with NaN or infinity; None where there is none.

    Small ones are looked at side by side: an operation on a small tensor takes as long as on a hundred of them.

    Examples:
        >>> first_not_finite([("a", torch.ones(2)), ("b", torch.tensor([1.0, torch.inf])), ("c", torch.ones(1))])
        'b'
    """
    named = list(tensors)
    small: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    finite, count = True, 0
    for _, tensor in named:
        # 8-bit floats have no such function; integers are finite.
        if tensor.numel() > _SMALL or tensor.itemsize == 1:
            finite = finite and _is_finite(tensor)
            continue
        small.setdefault((tensor.dtype, tensor.device), []).append(tensor.reshape(-1))
        count += tensor.numel()
        if count >= _AT_ONCE:
            finite = finite and all(_is_finite(torch.cat(beside)) for beside in small.values())
            small.clear()
            count = 0
    if finite and all(_is_finite(torch.cat(beside)) for beside in small.values()):
        return None
    return next((name for name, tensor in named if not _is_finite(tensor)), None)


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor.float() if tensor.itemsize == 1 else tensor).all())
