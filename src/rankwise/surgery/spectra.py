r"""Singular values of $\Delta = B A$ and its best approximation of a rank, from the thin factors.

Two thin QR decompositions, $B = Q_B R_B$ and $A^T = Q_A R_A$, and the SVD of the small core $R_B R_A^T = U S V^T$
(r x r) give $\Delta = (Q_B U) S (Q_A V)^T$. $\Delta$ itself is never formed: this costs
$O((d_{in} + d_{out}) r^2)$. Everything is computed in float64; leading dimensions are stacks of matrices.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rankwise.streams import stream

Thin = tuple[Float[Tensor, "*n d_out k"], Float[Tensor, "*n k"], Float[Tensor, "*n k d_in"]]
"""U, S and V^T, the largest singular value first; k is the smallest of d_out, r and d_in."""


def thin_svd(A: Float[Tensor, "*n r d_in"], B: Float[Tensor, "*n d_out r"]) -> Thin:
    """Return the SVD of B A without forming it.

    Args:
        A: Down-projection.
        B: Up-projection.

    Examples:
        >>> U, S, Vt = thin_svd(torch.tensor([[0.0, 2.0]]), torch.tensor([[3.0], [0.0]]))
        >>> S
        tensor([6.], dtype=torch.float64)
    """
    if A.shape[-1] < B.shape[-2]:  # tied layers have one matrix and its transpose, and one result to the last bit
        turned = thin_svd(B.mT, A.mT)
        return turned[2].mT, turned[1], turned[0].mT
    Q_B, R_B = torch.linalg.qr(B.double())
    Q_A, R_A = torch.linalg.qr(A.double().mT)
    U, S, Vt = torch.linalg.svd(R_B @ R_A.mT, full_matrices=False)
    # An input that A doesn't read, or an output that B doesn't write, stays at zero exactly.
    reads, writes = (A != 0).any(-2, keepdim=True), (B != 0).any(-1, keepdim=True)
    return Q_B @ U * writes, S, Vt @ Q_A.mT * reads


def leading_svd(
    W: Float[Tensor, "d_out d_in"], r: int | None, *, dense_up_to: int = 768
) -> tuple[Float[Tensor, "d_out k"], Float[Tensor, " k"], Float[Tensor, "k d_in"]]:
    """Return the SVD of a matrix, or of a large one its leading part by subspace iteration.

    Args:
        W: The matrix, float64.
        r: How many singular values are needed; None for all.
        dense_up_to: Smaller side up to which the whole SVD is computed.

    References:
        Halko, Martinsson and Tropp, Finding structure with randomness, 2011, algorithm 4.4, with 16 more directions
        and 4 iterations. https://arxiv.org/abs/0909.4061
    """
    if r is None or min(W.shape) <= max(dense_up_to, 2 * (r + 16)):
        return torch.linalg.svd(W, full_matrices=False)
    start = torch.randn(W.shape[1], r + 16, dtype=W.dtype, generator=stream("leading_svd"))
    basis = torch.linalg.qr(W @ start).Q
    for _ in range(4):
        basis = torch.linalg.qr(W @ torch.linalg.qr(W.mT @ basis).Q).Q
    U, S, Vt = torch.linalg.svd(basis.mT @ W, full_matrices=False)
    return basis @ U, S, Vt


def balanced(
    U: Tensor, S: Tensor, Vt: Tensor, r: int
) -> tuple[Float[Tensor, "*n r d_in"], Float[Tensor, "*n d_out r"]]:
    r"""Return A and B of rank r whose product is the best approximation of $U S V^T$ (Eckart and Young, 1936).

    Each takes the root of the singular values, so that both are of one norm. Beyond the rank of the matrix they are
    filled with zeros.
    """
    root = S[..., :r].sqrt()
    A, B = root[..., None] * Vt[..., :r, :], U[..., :, :r] * root[..., None, :]
    more = r - root.shape[-1]
    return (A, B) if more <= 0 else (torch.nn.functional.pad(A, (0, 0, 0, more)), torch.nn.functional.pad(B, (0, more)))


def truncate(
    A: Float[Tensor, "*n r d_in"], B: Float[Tensor, "*n d_out r"], r: int
) -> tuple[Float[Tensor, "*n new_r d_in"], Float[Tensor, "*n d_out new_r"]]:
    """Return the A and B of a smaller rank whose product is nearest to B A in the Frobenius norm.

    Args:
        A: Down-projection.
        B: Up-projection.
        r: The new rank.

    Examples:
        >>> A, B = truncate(torch.diag(torch.tensor([3.0, 1.0])), torch.eye(2), 1)
        >>> (B @ A).round(decimals=6).tolist()
        [[3.0, 0.0], [0.0, 0.0]]
    """
    return balanced(*thin_svd(A, B), r)


def summed_norm(terms: Sequence[tuple[float, Tensor, Tensor]]) -> float:
    r"""Return the Frobenius norm of $\sum_i c_i B_i A_i$, over all matrices of a stack, from the thin factors.

    Args:
        terms: c, A (n, r, d_in) and B (n, d_out, r); ranks may differ.

    Examples:
        >>> one = torch.eye(2)[None]
        >>> round(summed_norm([(3.0, one, one), (-1.0, one, one)]), 6) == round(math.sqrt(8), 6)
        True
    """
    A = torch.cat([A.double() for _, A, _ in terms], -2)
    B = torch.cat([c * B.double() for c, _, B in terms], -1)
    R_A, R_B = torch.linalg.qr(A.mT).R, torch.linalg.qr(B).R
    return float(torch.linalg.vector_norm(R_B @ R_A.mT))


def rank_for_error(S: Float[Tensor, "*n k"], error: float) -> int:
    r"""Return the smallest rank whose truncation is within a relative error: $\sqrt{\sum_{i>r} S_i^2 / \sum_i S_i^2}$.

    Args:
        S: Singular values; of a stack the matrices get one rank.
        error: In the Frobenius norm, of that of the whole.

    Examples:
        >>> rank_for_error(torch.tensor([4.0, 3.0, 0.0]), 0.6), rank_for_error(torch.tensor([4.0, 3.0, 0.0]), 0.1)
        (1, 2)
    """
    squares = S.double().square().flatten(0, -2).sum(0) if S.ndim > 1 else S.double().square()
    left = squares.flip(0).cumsum(0).flip(0)  # what ranks 0, 1, ... leave out
    dropped = torch.cat([left[1:], left.new_zeros(1)])
    return 1 + int((dropped > error**2 * left[0]).sum())


def error_of_energy(energy: float) -> float:
    """Return the relative error that a share of the squared norm leaves.

    Examples:
        >>> round(error_of_energy(0.96), 6)
        0.2
    """
    return math.sqrt(max(0.0, 1 - energy))


def stable_rank(S: Float[Tensor, " k"]) -> float:
    r"""How many directions an update has for its largest one: $\sum_i S_i^2 / S_1^2$; 0 of an update that is 0.

    Examples:
        >>> stable_rank(torch.tensor([2.0, 2.0, 0.0])), stable_rank(torch.zeros(2))
        (2.0, 0.0)

    References:
        Rudelson and Vershynin, Sampling from large matrices, 2007. https://arxiv.org/abs/math/0503442
    """
    return float((S.double() / S.max()).square().sum()) if S.max() > 0 else 0.0


def effective_rank(S: Float[Tensor, " k"]) -> float:
    r"""The number of directions that an update uses.

    $$\exp\Big(-\sum_i p_i \log p_i\Big), \quad p_i = \sigma_i / \sum_j \sigma_j$$

    Args:
        S: Singular values, of any scale.

    Examples:
        >>> effective_rank(torch.tensor([2.0, 2.0, 0.0])), effective_rank(torch.zeros(3))
        (2.0, 0.0)

    References:
        Roy and Vetterli, The effective rank: a measure of effective dimensionality, 2007.
    """
    total = S.sum()
    if not total > 0:
        return 0.0
    return float(torch.special.entr(S.double() / total).sum().exp())
