"""Which layers can be adapted, one row each: a new layer type is one new row of `LAYER_TYPES`.

A layer is seen as a linear map from d_in to d_out numbers. A row says how the two are found and how
delta, the (d_out, d_in) matrix of the update, is laid out as the layer's own weight.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.parameter import is_lazy


@dataclass(frozen=True)
class LayerType:
    """One row of the table.

    Args:
        name: What reports call it.
        dims: Layer -> (d_in, d_out).
        delta_as_weight: (layer, delta of shape (d_out, d_in)) -> delta shaped as the layer's weight.
        refusal: Why layers of this class can't be adapted; empty where they can.
    """

    name: str
    dims: Callable[[nn.Module], tuple[int, int]]
    delta_as_weight: Callable[[nn.Module, Tensor], Tensor]
    refusal: str = ""


def weight_of(layer: nn.Module) -> Tensor:
    """Return the layer's weight, whether it is a parameter or computed (parametrised)."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight


def _dims_out_in(layer: nn.Module) -> tuple[int, int]:
    d_out, d_in = weight_of(layer).shape
    return d_in, d_out


def _dims_in_out(layer: nn.Module) -> tuple[int, int]:
    d_in, d_out = weight_of(layer).shape
    return d_in, d_out


def _as_is(layer: nn.Module, delta: Tensor) -> Tensor:
    return delta


def _transposed(layer: nn.Module, delta: Tensor) -> Tensor:
    return delta.mT


_LINEAR = LayerType("Linear", _dims_out_in, _as_is)

LAYER_TYPES: dict[str, LayerType] = {
    "torch.nn.modules.linear.Linear": _LINEAR,
    # By name, so that transformers need not be imported to know its layer.
    "transformers.pytorch_utils.Conv1D": LayerType("Conv1D", _dims_in_out, _transposed),
    "torch.nn.modules.linear.NonDynamicallyQuantizableLinear": LayerType(
        "NonDynamicallyQuantizableLinear",
        _dims_out_in,
        _as_is,
        refusal="the attention that owns it reads its weight and never calls it, so an adapter would do nothing",
    ),
    "torch.nn.modules.linear.LazyLinear": LayerType(
        "LazyLinear", _dims_out_in, _as_is, refusal="its shape is unknown until the first forward; run one first"
    ),
}
"""Full class name -> row. A subclass has the row of its nearest listed ancestor."""


@functools.cache
def _row_of(cls: type[nn.Module]) -> LayerType | None:
    names = (f"{ancestor.__module__}.{ancestor.__qualname__}" for ancestor in cls.__mro__)
    return next((LAYER_TYPES[name] for name in names if name in LAYER_TYPES), None)


def layer_type_of(layer: nn.Module) -> LayerType | None:
    """Return the row of a layer, or None where its class is not in the table.

    Examples:
        >>> layer_type_of(nn.Linear(2, 3)).dims(nn.Linear(2, 3))
        (2, 3)
        >>> layer_type_of(nn.ReLU()) is None
        True
    """
    return _row_of(type(layer))


def obstacle(layer: nn.Module) -> str:
    """Return why this layer can't be adapted, or an empty string where it can.

    Examples:
        >>> obstacle(nn.Linear(2, 3))
        ''
        >>> obstacle(nn.ReLU())
        'only Linear and Conv1D layers can be adapted'
    """
    row = layer_type_of(layer)
    if row is None:
        usable = list(dict.fromkeys(row.name for row in LAYER_TYPES.values() if not row.refusal))
        return f"only {' and '.join(usable)} layers can be adapted"
    if row.refusal:
        return row.refusal
    weight = weight_of(layer)
    if is_lazy(weight):
        return "its shape is unknown until the first forward; run one first"
    if not weight.is_floating_point():
        return f"its weight is of type {str(weight.dtype).removeprefix('torch.')}; a floating-point weight is needed"
    if weight.ndim != 2 or 0 in weight.shape:
        return f"its weight has shape {tuple(weight.shape)}; inputs and outputs are needed"
    return ""
