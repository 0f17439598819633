"""Decompositions of a frozen weight, computed once for all adapters that start from it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from rankwise.errors import AdapterError

_KNOWN: Any = WeakIdKeyDictionary()
"""Weight -> (its version, name of a decomposition -> factors). Many adapters of many ranks and seeds start from one
weight, and a decomposition takes as long as many steps."""


def none() -> Tensor:
    """There is no weight."""
    raise AdapterError("This initialisation starts from a layer's weight, and only sizes were given.")


@dataclass(frozen=True)
class Decompositions:
    """A weight as an initialisation reads it.

    Args:
        matrix: Gives W (d_out, d_in) in float32, or float64.
        owner: The tensor that holds it, for which the largest decomposition so far is kept; None keeps nothing.
    """

    matrix: Callable[[], Tensor] = none
    owner: Tensor | None = None

    def svd(self, r: int) -> tuple[Float[Tensor, "d_out k"], Float[Tensor, " k"], Float[Tensor, "k d_in"]]:
        """The r largest singular values of W with their vectors, k = min(r, d_in, d_out) of them.

        Returns:
            U, S and V^T with W = U diag(S) V^T + the rest.
        """

        def decompose() -> tuple[Tensor, ...]:
            U, S, Vh = torch.linalg.svd(self.matrix(), full_matrices=False)
            return U[:, :r].T.contiguous(), S[:r].clone(), Vh[:r].clone()

        U_T, S, Vh = self._at_least(r, "svd", decompose)
        return U_T.T, S, Vh

    def qr(self, r: int) -> tuple[Float[Tensor, "d_out k"], Float[Tensor, "k d_in"]]:
        """The first r columns of Q and rows of R, where W = Q R."""

        def decompose() -> tuple[Tensor, ...]:
            Q, R = torch.linalg.qr(self.matrix())
            return Q[:, :r].T.contiguous(), R[:r].clone()

        Q_T, R = self._at_least(r, "qr", decompose)
        return Q_T.T, R

    def _at_least(self, r: int, what: str, decompose: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """The factors, cut to r; of a smaller rank they are computed anew."""
        # What is computed under inference_mode could not be trained, nor copied to what is.
        with torch.inference_mode(False), torch.no_grad():
            if self.owner is None or self.owner.is_inference():
                return decompose()
            version, known = _KNOWN.get(self.owner, (None, {}))
            if version != self.owner._version:  # pyright: ignore[reportPrivateUsage]
                # Only the directions can be stale, where `.data` was written to: W + s (B A - B0 A0) is W all the same.
                known = {}
                _KNOWN[self.owner] = self.owner._version, known  # pyright: ignore[reportPrivateUsage]
            rank, factors = known.get(what, (0, ()))
            if rank < r:
                factors = decompose()
                known[what] = r, factors
            return tuple(factor[:r] for factor in factors)
