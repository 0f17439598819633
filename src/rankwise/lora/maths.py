r"""The paper's equations as pure functions: no module, no state.

$$h = W_0 x + \Delta W x = W_0 x + s\,B A x, \qquad s = \frac{\alpha}{r}$$

Every function also takes stacks: leading dimensions of A and B (one for each adapter of a pack)
broadcast against those of x, as in `torch.matmul`.

References:
    Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021, section 4.1.
    https://arxiv.org/abs/2106.09685
    Kalajdzievski, A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA, 2023, section 3.
    https://arxiv.org/abs/2312.03732
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

SCALINGS: dict[str, Callable[[float, int], float]] = {
    "alpha/r": lambda alpha, r: alpha / r,
    "alpha/sqrt(r)": lambda alpha, r: alpha / math.sqrt(r),
}
"""The scale by the name `LoRAConfig.scaling` gives it: the paper's, and the rank-stabilised one."""


def lora_update(
    x: Float[Tensor, "*batch d_in"],
    A: Float[Tensor, "*stack r d_in"],
    B: Float[Tensor, "*stack d_out r"],
    scale: float | Tensor,
) -> Float[Tensor, "*out d_out"]:
    r"""What an adapter adds to a layer's output.

    $$\Delta h = s\,B A x$$

    The product $BA$ is never formed: $x$ goes through $A$, then $B$, which costs
    $r (d_{in} + d_{out})$ multiplications a row instead of $d_{in} d_{out}$.

    Args:
        x: Inputs of the layer; for a stack (K, rows, d_in).
        A: Down-projection; for a stack (K, r, d_in).
        B: Up-projection; for a stack (K, d_out, r).
        scale: s, no unit; for a stack a number or (K, 1, 1).

    Returns:
        The update, shaped as the layer's output.

    Examples:
        >>> lora_update(torch.ones(2, 3), torch.ones(1, 3), torch.ones(4, 1), scale=2.0)[0]
        tensor([6., 6., 6., 6.])

    References:
        Hu et al., LoRA, 2021, section 4.1, equation 3.
    """
    return (x @ A.mT * scale) @ B.mT


def lora_delta(
    A: Float[Tensor, "*stack r d_in"],
    B: Float[Tensor, "*stack d_out r"],
    scale: float | Tensor,
) -> Float[Tensor, "*stack d_out d_in"]:
    r"""The update as a matrix, to add to the frozen weight: $\Delta W = s\,B A$.

    Args:
        A: Down-projection.
        B: Up-projection.
        scale: s, no unit; for a stack a number or (K, 1, 1).

    Returns:
        Delta, shaped as the weight of `torch.nn.Linear`.

    Examples:
        >>> lora_delta(torch.ones(1, 3), torch.ones(2, 1), scale=0.5)
        tensor([[0.5000, 0.5000, 0.5000],
                [0.5000, 0.5000, 0.5000]])

    References:
        Hu et al., LoRA, 2021, section 4.1 ("No Additional Inference Latency").
    """
    return scale * (B @ A)


def lora_linear(
    x: Float[Tensor, "*batch d_in"],
    W: Float[Tensor, "d_out d_in"],
    A: Float[Tensor, "r d_in"],
    B: Float[Tensor, "d_out r"],
    alpha: float,
) -> Float[Tensor, "*batch d_out"]:
    r"""Frozen linear map plus its low-rank update: the paper's equation 3, whole.

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
    return torch.nn.functional.linear(x, W) + lora_update(x, A, B, alpha / A.shape[-2])


def parameter_count(r: int, d_in: int, d_out: int) -> int:
    """Trainable numbers of one adapted layer: r (d_in + d_out).

    Examples:
        >>> sum(parameter_count(4, i, o) for i, o in [(784, 64), (64, 64), (64, 5)])
        4180
    """
    return r * (d_in + d_out)
