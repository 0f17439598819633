r"""The paper's equations as pure functions. All computations of Rankwise call them, or are tested against them.

$$h = W_0 x + \Delta W x = W_0 x + s\,B A x, \qquad s = \frac{\alpha}{r}$$

`lora_update` and `lora_delta` are called for every adapted layer, through this module. `lora_model` is one adapter on a
whole model and `lora_pack` the definition of a pack: before the first step a pack's fast products
(`rankwise.pack.layers.linear`) are compared with `lora_model`, adapter by adapter.

References:
    Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021, section 4.1.
    https://arxiv.org/abs/2106.09685
    Kalajdzievski, A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA, 2023, section 3.
    https://arxiv.org/abs/2312.03732
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import linear

SCALINGS: dict[str, Callable[[float, int], float]] = {
    "alpha/r": lambda alpha, r: alpha / r,
    "alpha/sqrt(r)": lambda alpha, r: alpha / math.sqrt(r),
}
"""`LoRAConfig.scaling` -> the scale: the paper's, and the rank-stabilised one."""

_ONE = 1.0
"""No scale at all: asked by its identity, since a comparison takes a tenth of a small layer's update."""

Product = Callable[[Tensor, Tensor], Tensor]
"""(inputs, matrix) -> the matrix applied to the inputs."""


def lora_update(
    x: Tensor,
    A: Float[Tensor, "r d_in"],
    B: Float[Tensor, "d_out columns"],
    scale: float | Tensor = _ONE,
    *,
    down: Product = linear,
    up: Product = linear,
) -> Tensor:
    r"""The update that an adapter adds to a layer's output.

    $$\Delta h = s\,B A x$$

    The product $BA$ is never formed: $x$ goes through $A$, then $B$, which costs
    $r (d_{in} + d_{out})$ multiplications a row instead of $d_{in} d_{out}$.

    Args:
        x: Inputs of the layer.
        A: Down-projection.
        B: Up-projection; r columns, except in PEFT's grouped convolutions (r / groups).
        scale: s, no unit. 1 where s is part of B already.
        down: (x, A) -> A x, as the layer reads its inputs: a convolution applies A at every place, an embedding
            looks up columns of A.
        up: (z, B) -> B z.

    Returns:
        The update, shaped as the layer's output. For a stack of adapters, map it with `torch.vmap`.

    Examples:
        >>> lora_update(torch.ones(2, 3), torch.ones(1, 3), torch.ones(4, 1), scale=2.0)[0]
        tensor([6., 6., 6., 6.])

    References:
        Hu et al., LoRA, 2021, section 4.1, equation 3.
    """
    z = down(x, A)
    return up(z if scale is _ONE else _times(z, scale), B)


def lora_delta(
    A: Float[Tensor, "*stack r d_in"],
    B: Float[Tensor, "*stack d_out r"],
    scale: float | Tensor = 1.0,
) -> Float[Tensor, "*stack d_out d_in"]:
    r"""The update as a matrix, to add to the frozen weight: $\Delta W = s\,B A$.

    Args:
        A: Down-projection; for a stack of matrices (the experts of a mixture) (n, r, d_in).
        B: Up-projection; for a stack (n, d_out, r).
        scale: s, no unit; for a stack a number or (n, 1, 1). 1 where s is part of B already.

    Returns:
        Delta, shaped as the weight of `torch.nn.Linear`.

    Examples:
        >>> lora_delta(torch.ones(1, 3), torch.ones(2, 1), scale=0.5)
        tensor([[0.5000, 0.5000, 0.5000],
                [0.5000, 0.5000, 0.5000]])

    References:
        Hu et al., LoRA, 2021, section 4.1 ("No Additional Inference Latency").
    """
    return _times(B @ A, scale)


def _times(tensor: Tensor, scale: float | Tensor) -> Tensor:
    return tensor if isinstance(scale, float) and scale == 1.0 else tensor * scale


def lora_linear(
    x: Float[Tensor, "*batch d_in"],
    W: Float[Tensor, "d_out d_in"],
    A: Float[Tensor, "r d_in"],
    B: Float[Tensor, "d_out r"],
    alpha: float,
) -> Float[Tensor, "*batch d_out"]:
    r"""Frozen linear map plus its low-rank update: the paper's equation 3.

    $$h = W_0 x + \frac{\alpha}{r} B A x$$

    Args:
        x: Inputs.
        W: Frozen weight, stored as `torch.nn.Linear` stores it.
        A: Down-projection. Only A and B receive gradients.
        B: Up-projection. Zero at the start, so training begins at the base model.
        alpha: Numerator of the scale alpha / r (no unit).

    Returns:
        h, shaped as the frozen layer's output.

    Examples:
        >>> x, W = torch.ones(2, 3), torch.zeros(4, 3)
        >>> lora_linear(x, W, torch.ones(1, 3), torch.ones(4, 1), alpha=2.0)[0]
        tensor([6., 6., 6., 6.])

    References:
        Hu et al., LoRA, 2021, section 4.1. https://arxiv.org/abs/2106.09685
    """
    return linear(x, W) + lora_update(x, A, B, alpha / A.shape[-2])


def lora_model(
    model: nn.Module,
    deltas: Mapping[str, Tensor],
    inputs: tuple[Any, ...],
    trained: Mapping[str, Tensor] = MappingProxyType({}),
) -> Any:
    r"""One adapter on a whole model, by definition: every adapted weight is $W_0 + \Delta W$ for one forward pass.

    Args:
        model: The base. Its weights are not changed.
        deltas: Names of weights -> delta, shaped as the weight.
        inputs: The model's positional arguments.
        trained: Names of parameters that the adapter trains in full -> its values.

    Returns:
        The model's outputs.

    Examples:
        >>> layer = nn.Linear(3, 2, bias=False)
        >>> x, delta = torch.ones(1, 3), lora_delta(torch.ones(1, 3), torch.ones(2, 1))
        >>> (lora_model(layer, {"weight": delta}, (x,)) - layer(x)).detach().round()
        tensor([[3., 3.]])
    """
    weights = {name: model.get_parameter(name).detach() for name in deltas}
    sums = {name: (weight + deltas[name]).to(weight.dtype) for name, weight in weights.items()}
    return functional_call(model, {**trained, **sums}, inputs)


def lora_pack(
    model: nn.Module,
    stacks: Mapping[str, tuple[Float[Tensor, "K r d_in"], Float[Tensor, "K d_out r"]]],
    scales: Mapping[str, Float[Tensor, " K"]],
    x: Tensor,
    taken: Mapping[str, tuple[Float[Tensor, "K r d_in"], Float[Tensor, "K d_out r"]]] = MappingProxyType({}),
) -> Float[Tensor, "K *outputs"]:
    r"""K adapters on one batch, by definition of a pack: `lora_model` mapped over the stacks.

    $$y_k = f(x;\; W_0 + s_k (B_k A_k - B_{0k} A_{0k})), \qquad k = 1 \dots K$$

    Slow: every adapter's weights are formed. A pack computes the same with one frozen product for all rows.

    Args:
        model: The base, of linear layers.
        stacks: Paths of layers -> A and B of all adapters.
        scales: Paths of layers -> every adapter's s.
        x: A batch that all adapters read.
        taken: Paths of layers -> A0 and B0 of all adapters, where their start is taken off the base (PiSSA); nothing
            is taken off others.

    Returns:
        The outputs of every adapter.

    Examples:
        >>> layer, x = nn.Sequential(nn.Linear(3, 2)), torch.ones(1, 3)
        >>> stacks = {"0": (torch.ones(2, 1, 3), torch.ones(2, 2, 1))}
        >>> y = lora_pack(layer, stacks, {"0": torch.tensor([1.0, 2.0])}, x)
        >>> (y - layer(x)).detach().round(decimals=4)
        tensor([[[3., 3.]],
        <BLANKLINE>
                [[6., 6.]]])
    """

    def one(
        pairs: Mapping[str, tuple[Tensor, Tensor]],
        scale: Mapping[str, Tensor],
        starts: Mapping[str, tuple[Tensor, Tensor]],
    ) -> Tensor:
        deltas = {f"{name}.weight": lora_delta(A, B, scale[name]) for name, (A, B) in pairs.items()}
        for name, (A0, B0) in starts.items():
            deltas[f"{name}.weight"] = deltas[f"{name}.weight"] - lora_delta(A0, B0, scale[name])
        return lora_model(model, deltas, (x,))

    return torch.vmap(one)(dict(stacks), dict(scales), dict(taken))


def parameter_count(r: int, d_in: int, d_out: int) -> int:
    """Trainable numbers of one adapted layer: r (d_in + d_out).

    Examples:
        >>> sum(parameter_count(4, i, o) for i, o in [(784, 64), (64, 64), (64, 5)])
        4180
    """
    return r * (d_in + d_out)
