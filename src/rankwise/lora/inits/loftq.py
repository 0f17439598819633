r"""LoftQ: A and B start as what quantising took from the weight.

$$W - Q = U S V^T, \qquad A = \sqrt{S_r / s}\; V_r^T, \quad B = U_r \sqrt{S_r / s}$$

Q is the base's weight in few bits, W the one before. The layer starts as Q + s B A, the best approximation of W with
this Q and rank. That is one round of the paper's algorithm: further rounds quantise W - s B A anew, a base for each
rank, and a sweep has one base for all.

References:
    Li et al., LoftQ: LoRA-Fine-Tuning-Aware Quantization for Large Language Models, 2023, algorithm 1 with T = 1.
    https://arxiv.org/abs/2310.08659
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rankwise.errors import ConfigError
from rankwise.lora.inits.init import InitSite, filled_up

ERROR = "_rankwise_quantisation_error"
"""Attribute of a quantised layer: its `QuantisationError`."""


@dataclass(frozen=True)
class QuantisationError:
    """The best approximation of W - Q of some rank: U diag(S) V^T.

    Args:
        U: (d_out, rank).
        S: (rank,).
        Vh: (rank, d_in).
    """

    U: Tensor
    S: Tensor
    Vh: Tensor


def remember_error(layer: Any, weight: Tensor, rounded: Tensor, rank: int) -> None:
    """Store on a quantised layer what was taken from its weight.

    Args:
        layer: The layer.
        weight: W (d_out, d_in).
        rounded: Q, likewise.
        rank: The largest rank of an adapter that is to start with it.
    """
    U, S, Vh = torch.linalg.svd(weight.float() - rounded.float(), full_matrices=False)
    setattr(layer, ERROR, QuantisationError(U[:, :rank].clone(), S[:rank].clone(), Vh[:rank].clone()))


def loftq(site: InitSite) -> tuple[Tensor, Tensor]:
    """A and B whose product, times s, is the best approximation of W - Q of rank r."""
    if reason := loftq_obstacle(site.layer, site.r):
        raise ConfigError(f'init "loftq" can\'t start here: {reason}')
    error: QuantisationError = getattr(site.layer, ERROR)
    root = (error.S[: site.r] / site.scale).sqrt()
    return filled_up(root.unsqueeze(1) * error.Vh[: site.r], error.U[:, : site.r] * root, site)


def loftq_obstacle(layer: Any, r: int) -> str:
    """Why A and B can't start from what quantising took from this layer's weight."""
    error: QuantisationError | None = getattr(layer, ERROR, None)
    if error is None:
        return (
            "LoftQ needs a weight in few bits and what quantising took from it; quantise the model first "
            '(--quantize nf4, or rankwise.quantize(model, "nf4", error_rank=r)), or use another init'
        )
    if len(error.S) < min(r, *error.U.shape[:1], *error.Vh.shape[1:]):
        return f"its quantisation error was stored up to rank {len(error.S)}, and r is {r}; raise error_rank"
    return ""
