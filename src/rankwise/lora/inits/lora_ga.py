r"""LoRA-GA: A and B start such that the first step of gradient descent follows the gradient of the weight.

$$G = \nabla_W \mathcal L = U S V^T, \qquad
A_0 = \frac{\sqrt[4]{d_{out}}}{\sqrt\gamma}\, V_{:, 1 \dots r}^T, \quad
B_0 = \frac{\sqrt[4]{d_{out}}}{\sqrt\gamma}\, U_{:, r+1 \dots 2r}$$

The first step changes s B A by a multiple of $G A_0^T A_0 + B_0 B_0^T G$, which is then the best approximation of G of
rank 2r. The base gives up s B_0 A_0, so the output at the start is the base's. G is the gradient over batches of the
training data. (PEFT multiplies B_0 by the singular values too; here it is as in the paper.)

References:
    Wang et al., LoRA-GA: Low-Rank Adaptation with Gradient Approximation, 2024, theorem 3.1 and algorithm 1.
    https://arxiv.org/abs/2407.05000
"""

from typing import Any

from torch import Tensor

from rankwise.lora.inits.init import InitSite, data_of_site, filled_up

GAMMA = 16.0
r"""$\gamma$, for outputs whose size doesn't depend on the width (Wang et al., section 4.1; PEFT's `stable_gamma`)."""


def lora_ga(site: InitSite) -> tuple[Tensor, Tensor]:
    """A and B from the gradient's singular vectors: A has the first r, B the next r."""
    U, _, Vh = data_of_site(site, "lora-ga").svd(2 * site.r)
    factor = site.d_out**0.25 / GAMMA**0.5
    # A thin gradient has fewer than 2r: A and B then have half of them each.
    r = min(site.r, Vh.shape[0] // 2)
    return filled_up(factor * Vh[:r], factor * U[:, r : 2 * r], site)


def lora_ga_obstacle(layer: Any, r: int) -> str:
    """Why there is no gradient of this layer's weight."""
    weight = getattr(layer, "weight", None)
    plain = not isinstance(weight, Tensor) or (weight.is_floating_point() and weight.itemsize > 1)
    return "" if plain else "LoRA-GA needs a weight to differentiate by, and this one is in few bits; use another init"
