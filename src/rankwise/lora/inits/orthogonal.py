r"""Orthogonal: neither A nor B is zero, and yet B A is, as they meet in orthogonal subspaces of the rank's dimensions.

$$A = \tfrac{1}{10}\,(N_A Q_1)^T, \qquad B = \tfrac{1}{10}\,N_B Q_2, \qquad B A = \tfrac{1}{100}\,N_B Q_2 Q_1^T N_A^T$$

Q is a random orthogonal matrix (r, r), Q_1 its rows 0, 2, ..., Q_2 its rows 1, 3, ...; N_A (d_in, r/2) and
N_B (d_out, r/2) are standard normal. B A is 0 up to rounding, so that the output at the start is the base's up to
rounding.

References:
    Datta, Rethinking LoRA initialisation, 2024. https://datta0.github.io/posts/rethink-lora-init/
    As in PEFT's `init_lora_weights="orthogonal"`.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rankwise.lora.inits.gaussian import as_normal
from rankwise.lora.inits.init import InitSite

SIZE = 0.1
"""Of the normal numbers' standard deviation (PEFT's)."""


def orthogonal(site: InitSite) -> tuple[Tensor, Tensor]:
    """A and B with a product of 0, drawn from the seed."""
    # In float64: B A is 0 as exactly as Q is orthogonal.
    half = site.r // 2
    X, left, right = (
        as_normal(site.uniform(*shape)).double() for shape in ((site.r, site.r), (site.d_in, half), (half, site.d_out))
    )
    return orthogonal_pair(X, left, right)


def orthogonal_pair(
    X: Float[Tensor, "r r"], left: Float[Tensor, "d_in half"], right: Float[Tensor, "half d_out"]
) -> tuple[Tensor, Tensor]:
    """A and B from normal numbers."""
    Q, _ = torch.linalg.qr(X)
    return SIZE * (left @ Q[0::2]).T, SIZE * right.T @ Q[1::2]


def conflict(config: Any) -> str:
    """Odd ranks can't be halved."""
    odd = [r for r in (config.r, *config.rank_pattern.values()) if r % 2]
    return f"needs an even rank, and r is {odd[0]}; give even ranks." if odd else ""
