"""The entries of `LAYER_TYPES`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


def weight_of(layer: nn.Module) -> Tensor:
    """Return the layer's weight, whether it is a parameter or computed (parametrised)."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight


def unobstructed(layer: nn.Module) -> str:
    """No obstacle to adapting this layer."""
    return ""


def one(layer: nn.Module) -> int:
    """The weight is one matrix."""
    return 1


@dataclass(frozen=True)
class Quantised:
    """Reading a weight that is stored in few bits, and its layer with a plain weight.

    Args:
        dequantise: Layer -> its weight as plain numbers, shaped as `LayerType.delta` shapes delta.
        plain: The class of the same layer with a plain weight; None where the layer's class says nothing of the weight.
        attributes: Attributes of the quantised layer that a plain one doesn't have.
    """

    dequantise: Callable[[Any], Tensor]
    plain: type[nn.Module] | None = None
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LayerType:
    """How one class of layers is adapted: an entry of `LAYER_TYPES`.

    A layer is seen as a matrix from d_in to d_out numbers (for a convolution: from the numbers under its
    kernel to the output channels), and A (r, d_in), B (d_out, r) are matrices whatever the layer.

    Args:
        name: What reports call it.
        dims: Layer -> (d_in, d_out).
        update: (layer, x, A, B, the call's other arguments) -> B A x, the unscaled update of the layer's output
            for the adapter's input x. A pure function of x, A and B, through which `torch.vmap` can go: the hook
            calls it for one adapter, a pack for many.
        delta: (layer, A, B) -> the unscaled update shaped as the layer's weight: adding it to the weight gives
            the same function as adding `update` to the output.
        obstacle: Layer -> why this one can't be adapted; an empty string where it can.
        matrix: Whether the weight is a matrix and the layer multiplies by it, or picks columns of it.
        linear: Whether "all-linear" takes it. Others are adapted by name.
        transposed: Whether the weight is stored as (d_in, d_out).
        stack: Layer -> how many matrices its weight is a stack of; each has A and B of its own.
        reads_indices: Whether its inputs are indices: they are neither cast nor dropped, and A, not B, is
            zero at the start, so that an index that training never sees keeps the base's output.
        outputs: Which dimension of the weight runs over the outputs; None where none does.
        parameter: Name of the weight.
        slices: The outputs that are adapted, where it is not all: first and last (not included) of each slice.
        tokens: The rows of the weight that are trained, where it is single ones.
        quantised: How the weight is read, where it is no tensor of plain numbers.
    """

    name: str
    dims: Callable[[Any], tuple[int, int]]
    update: Callable[..., Tensor]
    delta: Callable[[Any, Tensor, Tensor], Tensor]
    obstacle: Callable[[Any], str] = unobstructed
    matrix: bool = False
    linear: bool = False
    transposed: bool = False
    stack: Callable[[Any], int] = one
    reads_indices: bool = False
    outputs: int | None = None
    parameter: str = "weight"
    slices: tuple[tuple[int, int], ...] = ()
    tokens: tuple[int, ...] = ()
    quantised: Quantised | None = None

    @property
    def partial(self) -> bool:
        """Whether one adapter sees a part of the layer through it; it is then not the layer's own type."""
        return bool(self.slices or self.tokens)

    @property
    def is_linear_map(self) -> bool:
        """Whether the layer multiplies its whole input by one matrix, in whatever form that is stored."""
        stored = self.matrix or self.quantised is not None
        return self.linear and stored and not self.reads_indices and not self.partial
