r"""EVA: A starts as the directions in which the layer's inputs vary most; B is zero.

$$C = \frac{1}{n} \sum_i (x_i - \bar x)(x_i - \bar x)^T = V \Lambda V^T, \qquad A = V_{:, 1 \dots r}^T, \quad B = 0$$

x are the inputs that the layer has for batches of the training data. A x then holds as much of their variance as r
directions can. The paper also moves rank from layer to layer by the explained variance; here every layer has the rank
that it is given, as with `rho = 1` in PEFT's settings.

References:
    Paischer et al., One Initialization to Rule them All: Fine-tuning via Explained Variance Adaptation, 2024,
    section 3 and algorithm 1. https://arxiv.org/abs/2410.07170
"""

import torch
from torch import Tensor

from rankwise.lora.inits.init import InitSite, data_of_site, filled_up


def eva(site: InitSite) -> tuple[Tensor, Tensor]:
    """A with the r first principal axes of the layer's inputs as rows, the largest entry of each positive."""
    axes = data_of_site(site, "eva").svd(site.r)[2]
    A = axes * torch.sign(axes.gather(1, axes.abs().argmax(1, keepdim=True)))
    return filled_up(A, A.new_zeros(site.d_out, A.shape[0]), site)
