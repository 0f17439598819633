"""Initialisations of A and B, in one table: a new one is one new file and one line here.

An initialisation fills A (r, d_in) from uniform numbers `u` in [0, 1) of the same shape; B is zero unless the
function says otherwise, so that training begins at the base model. The numbers come row by row from one
stream for (seed, module): A of rank r is the first r rows whatever r is, up to a factor of the
initialisation's own.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rankwise.lora.inits.gaussian import gaussian
from rankwise.lora.inits.kaiming import kaiming
from rankwise.lora.inits.notebook import notebook
from rankwise.streams import stream

Init = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""(u of shape (r, d_in), d_out) -> (A, B)."""

INITS: dict[str, Init] = {"kaiming": kaiming, "gaussian": gaussian, "notebook": notebook}

_PLAIN: Any = {"device": "cpu", "dtype": torch.float32}
"""Whatever device and type a program has made the default."""


def initial_adapter(
    init: str, *, seed: int, module: str, r: int, d_in: int, d_out: int, zero_A: bool = False
) -> tuple[Float[Tensor, "r d_in"], Float[Tensor, "d_out r"]]:
    """Draw A and B of one module before training, in float32 on the CPU.

    Args:
        init: A name in `INITS`.
        seed: The adapter's seed.
        module: The module's path in the model; layers differ by it.
        r: Rank.
        d_in: Inputs of the layer.
        d_out: Outputs of the layer.
        zero_A: Whether A takes the part of B and B that of A, as in an embedding.

    Returns:
        A (r, d_in) and B (d_out, r).

    Examples:
        >>> A4, B4 = initial_adapter("kaiming", seed=0, module="fc", r=4, d_in=9, d_out=2)
        >>> A2, _ = initial_adapter("kaiming", seed=0, module="fc", r=2, d_in=9, d_out=2)
        >>> bool((A4[:2] == A2).all()), float(B4.abs().max())
        (True, 0.0)
    """
    generator = stream("init", seed, module)
    if zero_A:
        B_T, A_T = INITS[init](torch.rand(r, d_out, generator=generator, **_PLAIN), d_in)
        return A_T.mT.contiguous(), B_T.mT.contiguous()
    return INITS[init](torch.rand(r, d_in, generator=generator, **_PLAIN), d_out)
