"""An initialisation: what it sees of a layer, and what it makes of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rankwise.errors import ConfigError
from rankwise.lora.inits.decompositions import Decompositions

Pair = tuple[Tensor, Tensor]
"""A (r, d_in) and B (d_out, r)."""


@dataclass(frozen=True)
class InitSite:
    """A layer in which an adapter starts, as an initialisation sees it.

    Args:
        r: Rank.
        d_in: Inputs.
        d_out: Outputs.
        scale: s in h = W x + s B A x.
        uniform: (rows, columns) -> uniform numbers in [0, 1), in float32 on the CPU; each call goes on in one stream
            for (seed, module).
        weight: Its frozen weight, decomposed on demand.
        layer: The layer itself; None where only sizes are known.
        data: What the initialisation takes from the training data, where it takes something: the covariance of the
            layer's inputs, or the gradient of its weight.
    """

    r: int
    d_in: int
    d_out: int
    scale: float
    uniform: Callable[[int, int], Tensor]
    weight: Decompositions
    layer: Any = None
    data: Decompositions | None = None


def data_of_site(site: InitSite, init: str) -> Decompositions:
    """What an initialisation takes from the training data.

    Raises:
        ConfigError: There are none.
    """
    if site.data is None:
        raise ConfigError(
            f'init "{init}" starts from training data, and there are none; give inject(init_data=batches), train it in '
            "a sweep, or use another init."
        )
    return site.data


def _no_conflict(config: Any) -> str:
    """No objection to the settings."""
    return ""


def _no_obstacle(layer: Any, r: int) -> str:
    """No obstacle in this layer."""
    return ""


@dataclass(frozen=True)
class Init:
    """A way of starting A and B.

    Args:
        draw: Layer -> A and B.
        moves: Whether s B A is not 0 at the start, and the base's output is to stay all the same: the layer then
            computes W x + s (B A - B0 A0) x, with B0 and A0 as they were at the start.
        on_matrices: Whether it starts linear layers with one weight matrix only.
        data: What it takes from the training data: "" for nothing, "inputs" of the layers, or "gradients" of their
            weights.
        conflict: `LoRAConfig` -> what it asks for that this can't do; an empty string where there is nothing.
        obstacle: (layer, r) -> why it can't start this layer; an empty string where it can.
    """

    draw: Callable[[InitSite], Pair]
    moves: bool = False
    on_matrices: bool = True
    data: str = ""
    conflict: Callable[[Any], str] = _no_conflict
    obstacle: Callable[[Any, int], str] = _no_obstacle


def from_uniform(fill: Callable[[Tensor, int], Pair]) -> Init:
    """An initialisation that fills A from uniform numbers (r, d_in) and needs to know nothing else of a layer.

    Args:
        fill: (u of shape (r, d_in), d_out) -> A and B.
    """
    return Init(lambda site: fill(site.uniform(site.r, site.d_in), site.d_out), on_matrices=False)


def filled_up(A: Tensor, B: Tensor, site: InitSite) -> Pair:
    """Bring A and B of a rank below r, as a thin weight gives them, to rank r: further rows of A are uniform in
    +-1/sqrt(d_in), further columns of B zero, so the product stays.

    Examples:
        >>> site = InitSite(3, 2, 4, 1.0, lambda rows, columns: torch.zeros(rows, columns), Decompositions())
        >>> A, B = filled_up(torch.ones(2, 2), torch.ones(4, 2), site)
        >>> A.shape, B.shape, bool((B @ A == 2).all())
        (torch.Size([3, 2]), torch.Size([4, 3]), True)
    """
    missing = site.r - A.shape[0]
    if missing <= 0:
        return A, B
    more = ((2 * site.uniform(missing, site.d_in) - 1) / site.d_in**0.5).to(A)
    return torch.cat([A, more]), torch.cat([B, B.new_zeros(B.shape[0], missing)], 1)
