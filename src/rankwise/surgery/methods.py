r"""Ways to make one update of several, as pure functions.

Each takes the terms of the sum $\sum_i w_i \Delta_i$ with $\Delta_i = s_i B_i A_i$, and returns A and B whose product
is the combined update. Leading dimensions are stacks of matrices.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from rankwise.surgery.spectra import balanced, thin_svd

Factors = tuple[Float[Tensor, "n r d_in"], Float[Tensor, "n d_out r"]]


@dataclass(frozen=True)
class Term:
    """One adapter's share in a combination.

    Args:
        weight: w.
        scale: s.
        A: Down-projection.
        B: Up-projection.
    """

    weight: float
    scale: float
    A: Float[Tensor, "n r d_in"]
    B: Float[Tensor, "n d_out r"]

    @property
    def share(self) -> float:
        """The factor of B A in the sum."""
        return self.weight * self.scale

    @property
    def delta(self) -> Float[Tensor, "n d_out d_in"]:
        """s B A, formed: only methods that look at single entries need it."""
        return self.scale * self.B.double() @ self.A.double()


def linear(terms: Sequence[Term]) -> Factors:
    r"""Sum the factors: $A = \sum_i \pm\sqrt{|w_i s_i|} A_i$, $B = \sum_i \sqrt{|w_i s_i|} B_i$, of equal ranks.

    This is peft's "linear". $B A$ has the products $B_i A_j$ of different adapters too, so it isn't the sum of the
    updates, and it depends on how each product is cut into its factors.
    """
    roots = [abs(term.share) ** 0.5 for term in terms]
    signs = [-1.0 if term.share < 0 else 1.0 for term in terms]
    A = sum((s * root * term.A.double() for s, root, term in zip(signs, roots, terms, strict=True)), torch.zeros(()))
    B = sum((root * term.B.double() for root, term in zip(roots, terms, strict=True)), torch.zeros(()))
    return A, B


def cat(terms: Sequence[Term]) -> Factors:
    """Put the factors side by side: the exact sum, whose rank is the sum of the ranks."""
    return (
        torch.cat([term.A.double() for term in terms], -2),
        torch.cat([term.share * term.B.double() for term in terms], -1),
    )


def svd(terms: Sequence[Term], r: int) -> Factors:
    """Truncate the exact sum to a rank; it is never formed."""
    return balanced(*thin_svd(*cat(terms)), r)


def ties(terms: Sequence[Term], r: int, density: float) -> Factors:
    r"""Trim, elect signs, merge what agrees; then truncate to a rank.

    Of each $\Delta_i$ the entries of largest magnitude stay. Each entry's sign is that of the sum of what stayed, and
    the combined entry is the mean of $w_i \Delta_i$ over those adapters whose sign it is. peft calls this "ties_svd"
    (its "ties" does the same to A and B, which are no task vectors).

    Args:
        terms: The adapters.
        r: The rank.
        density: Share of the entries that stay, in (0, 1].

    References:
        Yadav et al., TIES-Merging, 2023. https://arxiv.org/abs/2306.01708
    """
    trimmed = torch.stack([_largest(term.delta, density) for term in terms])
    weights = trimmed.new_tensor([term.weight for term in terms]).view(-1, *[1] * (trimmed.ndim - 1))
    elected = torch.where(trimmed.sum(0) >= 0, 1, -1)
    agree = trimmed.sign() == elected
    merged = (weights * trimmed * agree).sum(0) / agree.sum(0).clamp(min=1)
    return _dense(merged, r)


def dare(terms: Sequence[Term], r: int, density: float, generator: Generator) -> Factors:
    r"""Drop entries at random, rescale the rest by 1 / density, and sum; then truncate to a rank.

    The expectation before the truncation is the exact sum. peft calls this "dare_linear_svd".

    Args:
        terms: The adapters.
        r: The rank.
        density: Share of the entries that stay, in (0, 1].
        generator: Draws the entries that stay, adapter after adapter.

    References:
        Yu et al., Language models are super Mario, 2023. https://arxiv.org/abs/2311.03099
    """

    def thinned(delta: Tensor) -> Tensor:
        return delta * torch.bernoulli(torch.full_like(delta, density), generator=generator) / density

    return _dense(sum((term.weight * thinned(term.delta) for term in terms), torch.zeros(())), r)


def _largest(delta: Tensor, density: float) -> Tensor:
    flat = delta.flatten()
    places = flat.abs().topk(int(density * flat.numel())).indices
    return torch.zeros_like(flat).index_copy(0, places, flat[places]).view_as(delta)


def _dense(delta: Tensor, r: int) -> Factors:
    U, S, Vt = torch.linalg.svd(delta, full_matrices=False)
    return balanced(U, S, Vt, r)
