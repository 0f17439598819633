"""Layers that are a matrix: torch's Linear, and transformers' Conv1D, which stores it transposed."""

from jaxtyping import Float
from torch import Tensor, nn

from rankwise.lora import maths
from rankwise.lora.layer_types.layer_type import LayerType, weight_of


def _dims(layer: nn.Module) -> tuple[int, int]:
    d_out, d_in = weight_of(layer).shape
    return d_in, d_out


def _dims_transposed(layer: nn.Module) -> tuple[int, int]:
    d_in, d_out = weight_of(layer).shape
    return d_in, d_out


def linear_update(
    layer: nn.Module, x: Float[Tensor, "*batch d_in"], A: Float[Tensor, "r d_in"], B: Float[Tensor, "d_out r"]
) -> Float[Tensor, "*batch d_out"]:
    """B A x."""
    return maths.lora_update(x, A, B)


def _delta(layer: nn.Module, A: Tensor, B: Tensor) -> Tensor:
    return maths.lora_delta(A, B)


def delta_transposed(layer: nn.Module, A: Tensor, B: Tensor) -> Tensor:
    """Delta for a weight stored as (d_in, d_out)."""
    return maths.lora_delta(A, B).mT


LINEAR = LayerType("Linear", _dims, linear_update, _delta, matrix=True, linear=True, outputs=0)
CONV1D = LayerType(
    "Conv1D", _dims_transposed, linear_update, delta_transposed, matrix=True, linear=True, transposed=True, outputs=1
)
