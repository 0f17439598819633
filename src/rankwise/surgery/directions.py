r"""The directions of an update: how far those of two updates agree, and how much an update amplifies the base's own.

References:
    Hu et al., LoRA, 2021, sections 7.2 and 7.3. https://arxiv.org/abs/2106.09685
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


def similarity(one: Float[Tensor, "i d"], other: Float[Tensor, "j d"]) -> Float[Tensor, "i j"]:
    r"""Return how far the leading directions of two updates span the same subspace.

    $$\phi(i, j) = \frac{\lVert V_{1:i} V'^T_{1:j} \rVert_F^2}{\min(i, j)} \in [0, 1]$$

    1 where the one subspace holds the other, 0 where they are orthogonal; of random ones the mean is max(i, j) / d.

    Args:
        one: Orthonormal rows, the most important first.
        other: Likewise.

    Examples:
        >>> similarity(torch.eye(3)[:1], torch.eye(3)[[1, 0]])
        tensor([[0., 1.]])
    """
    overlaps = (one @ other.mT).square().cumsum(0).cumsum(1)
    i, j = (torch.arange(1, n + 1) for n in overlaps.shape)
    return overlaps / torch.minimum(i[:, None], j[None, :])


def random_similarity(i: int, j: int, d: int) -> float:
    """Return the mean similarity of random subspaces of i and j dimensions in d.

    Examples:
        >>> random_similarity(4, 8, 64)
        0.125
    """
    return max(i, j) / d


@dataclass(frozen=True)
class Amplification:
    r"""How much an update amplifies directions that the base's weight has.

    Args:
        update: $\lVert \Delta W \rVert_F$.
        base: $\lVert U^T W V \rVert_F$, the weight's part in the update's directions.
        leading: The same in as many leading directions of the weight itself: the largest it could be.
    """

    update: float
    base: float
    leading: float

    @property
    def factor(self) -> float:
        r"""$\lVert \Delta W \rVert_F / \lVert U^T W V \rVert_F$."""
        return self.update / self.base if self.base > 0 else float("inf")


def amplification(
    U: Float[Tensor, "d_out r"], S: Float[Tensor, " r"], Vt: Float[Tensor, "r d_in"], W: Float[Tensor, "d_out d_in"]
) -> Amplification:
    """Compare an update, given by its singular value decomposition, with the base's weight.

    Examples:
        >>> U, S, W = torch.eye(2)[:, :1], torch.tensor([6.0]), torch.diag(torch.tensor([2.0, 5.0]))
        >>> found = amplification(U, S, U.mT, W)
        >>> found.factor, found.leading
        (3.0, 5.0)
    """
    weight = W.to(U.dtype)
    singular = torch.linalg.svdvals(weight)[: len(S)]
    return Amplification(float(S.norm()), float((U.mT @ weight @ Vt.mT).norm()), float(singular.norm()))
