"""Initialisations of A and B, in one table: a new one is one new file and one line here.

Most draw A from uniform numbers, row by row from one stream for (seed, module): A of rank r is the first r rows
whatever r is, up to a factor of the initialisation's own, and B is zero, so that training begins at the base model.
Others start from the layer's weight, from what quantising took from it, or from training data.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rankwise.lora.inits import loftq as _loftq
from rankwise.lora.inits import lora_ga as _lora_ga
from rankwise.lora.inits import orthogonal as _orthogonal
from rankwise.lora.inits.decompositions import Decompositions
from rankwise.lora.inits.eva import eva
from rankwise.lora.inits.gaussian import gaussian
from rankwise.lora.inits.init import Init, InitSite, from_uniform
from rankwise.lora.inits.kaiming import kaiming
from rankwise.lora.inits.notebook import notebook
from rankwise.lora.inits.olora import olora
from rankwise.lora.inits.pissa import pissa
from rankwise.streams import stream

__all__ = ["INITS", "Decompositions", "Init", "InitSite", "from_uniform", "init_conflict", "initial_adapter"]

INITS: dict[str, Init] = {
    "kaiming": from_uniform(kaiming),
    "gaussian": from_uniform(gaussian),
    "notebook": from_uniform(notebook),
    "pissa": Init(pissa, moves=True),
    "olora": Init(olora, moves=True),
    "orthogonal": Init(_orthogonal.orthogonal, conflict=_orthogonal.conflict),
    "eva": Init(eva, data="inputs"),
    "loftq": Init(_loftq.loftq, obstacle=_loftq.loftq_obstacle),
    "lora-ga": Init(_lora_ga.lora_ga, moves=True, data="gradients", obstacle=_lora_ga.lora_ga_obstacle),
}

_PLAIN: Any = {"device": "cpu", "dtype": torch.float32}
"""Whatever device and type a program has made the default."""


def init_conflict(config: Any) -> str:
    """Return what in an adapter's settings its initialisation can't do; an empty string where there is nothing.

    Args:
        config: A `LoRAConfig`.
    """
    init = INITS[config.init]
    if config.variant == "vera" and init.on_matrices:
        return 'starts A and B, and variant "vera" has a random A and B for all layers; leave out one of the two.'
    if config.slices and init.on_matrices:
        return "starts whole layers, and slices are set; leave out one of the two."
    alphas = (config.alpha, *config.alpha_pattern.values())
    if (init.moves or config.init == "loftq") and min(alphas) <= 0:
        return f"divides by the scale, and alpha is {min(alphas):g}; give a positive one."
    return init.conflict(config)


def initial_adapter(
    init: str,
    *,
    seed: int,
    module: str,
    r: int,
    d_in: int,
    d_out: int,
    scale: float = 1.0,
    weight: Decompositions | None = None,
    layer: Any = None,
    data: Decompositions | None = None,
) -> tuple[Float[Tensor, "r d_in"], Float[Tensor, "d_out r"]]:
    """Draw A and B of one module before training.

    Args:
        init: A name in `INITS`.
        seed: The adapter's seed.
        module: The module's path in the model; layers differ by it.
        r: Rank.
        d_in: Inputs of the layer.
        d_out: Outputs of the layer.
        scale: s in h = W x + s B A x.
        weight: The layer's weight.
        layer: The layer.
        data: As `InitSite` has it.

    Returns:
        A (r, d_in) and B (d_out, r); in float32 on the CPU where they don't follow from a weight or data.

    Raises:
        ConfigError: The initialisation needs something that isn't there.

    Examples:
        >>> A4, B4 = initial_adapter("kaiming", seed=0, module="fc", r=4, d_in=9, d_out=2)
        >>> A2, _ = initial_adapter("kaiming", seed=0, module="fc", r=2, d_in=9, d_out=2)
        >>> bool((A4[:2] == A2).all()), float(B4.abs().max())
        (True, 0.0)
    """
    uniform: Callable[[int, int], Tensor] = functools.partial(_uniform, stream("init", seed, module))
    A, B = INITS[init].draw(InitSite(r, d_in, d_out, scale, uniform, weight or Decompositions(), layer, data))
    return A.contiguous(), B.contiguous()


def _uniform(generator: torch.Generator, rows: int, columns: int) -> Tensor:
    return torch.rand(rows, columns, generator=generator, **_PLAIN)
