"""Comparing two forwards. torch doesn't promise the same bits twice: the order of a sum, and so its last bits, may
depend on where tensors lie in memory (MKL's products, oneDNN's convolutions), and on how many threads are free.

Stored numbers (weights, files, orders of rows) are compared with `torch.equal`; outputs with `alike`. Where a test is
about the bits of an output, `exact` makes every sum exact, and so one, whatever its order, and
`bits_of` compares within one forward.
"""

from collections.abc import Generator, Iterable
from contextlib import contextmanager

import torch
from torch import Tensor, nn

ULPS = {torch.float64: 32, torch.float32: 32, torch.float16: 2, torch.bfloat16: 2}
"""How far rounding may go, in units in the last place of the largest value."""


def alike(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal up to the rounding of sums in another order; those of whole numbers exactly."""
    if a.dtype not in ULPS or a.dtype != b.dtype or a.shape != b.shape or a.numel() == 0:
        return torch.equal(a, b)
    largest = max(float(b.detach().abs().max()), torch.finfo(a.dtype).tiny)
    return torch.allclose(a, b, rtol=0, atol=ULPS[a.dtype] * torch.finfo(a.dtype).eps * largest)


def exact(thing: nn.Module | Tensor, step: float = 0.125) -> None:
    """Round a tensor, or a module's parameters, to multiples of a power of two: sums of their products are exact then.

    Negative zeros stay negative.
    """
    with torch.no_grad():
        for tensor in thing.parameters() if isinstance(thing, nn.Module) else (thing,):
            tensor.copy_((tensor / step).round() * step)


@contextmanager
def bits_of(model: nn.Module, layers: Iterable[str]) -> Generator[dict[str, tuple[Tensor, Tensor]]]:
    """What each layer itself gave in the last forward, and what its hooks made of it: bits of one and the same sum."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    first: dict[str, Tensor] = {}
    hooks = []
    for name in layers:
        layer = model.get_submodule(name)

        def before(_module: nn.Module, _inputs: object, out: Tensor, name: str = name) -> None:
            first[name] = out.detach().clone()

        def after(_module: nn.Module, _inputs: object, out: Tensor, name: str = name) -> None:
            found[name] = (first[name], out.detach().clone())

        hooks += [layer.register_forward_hook(before, prepend=True), layer.register_forward_hook(after)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
