r"""DoRA: length and direction of each output's weights are trained apart.

$$W' = m \frac{W_0 + s\,B A}{\lVert W_0 + s\,B A \rVert}$$

m has one number for each output and starts as the norm over W_0's inputs, so training begins at the base model. The
norm counts as a constant in the backward pass (section 4.3). W + s B A is formed at every forward to take its norm,
so DoRA costs more than LoRA.

References:
    Liu et al., DoRA: Weight-Decomposed Low-Rank Adaptation, 2024, equation 5 and section 4.3.
    https://arxiv.org/abs/2402.09353
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rankwise.lora.layer_types import LayerType, holds_codes
from rankwise.lora.layer_types.quantised import plain_weight
from rankwise.lora.offloaded import data_of
from rankwise.lora.variants.variant import Variant, VariantTensors

MAGNITUDE = "magnitude"
"""Name of m."""


def _total(row: LayerType, layer: Any, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """W_0 + s B A, shaped as the weight."""
    weight = plain_weight(layer, row, row.parameter).detach()
    return weight.to(A.dtype) + row.delta(layer, A, B * scale)


def _norm(row: LayerType, total: Tensor) -> Tensor:
    """The norm over the inputs, for each output: (d_out,)."""
    dims = [dim for dim in range(total.ndim) if dim != row.outputs]
    return torch.linalg.vector_norm(total, dim=dims)


def _as_outputs(row: LayerType, values: Tensor, n_dims: int) -> Tensor:
    """A number for each output, shaped so that it multiplies a weight of so many dimensions."""
    return values.view([-1 if dim == row.outputs else 1 for dim in range(n_dims)])


def _init(row: LayerType, layer: Any, A: Tensor, B: Tensor, scale: float) -> dict[str, Tensor]:
    return {MAGNITUDE: _norm(row, _total(row, layer, A, B, scale))}


def _forward(
    row: LayerType,
    layer: Any,
    x: Tensor,
    y: Tensor,
    A: Tensor,
    B: Tensor,
    scale: float,
    own: VariantTensors,
    rest: tuple[Any, ...],
    named: Mapping[str, Any],
) -> Tensor:
    total = _total(row, layer, A.detach(), B.detach(), scale)
    # Places of a convolution come after its outputs; a matrix gives the outputs last.
    factor = (own[MAGNITUDE] / _norm(row, total)).view(-1, *[1] * (total.ndim - 2))
    bias: Tensor | None = getattr(layer, "bias", None)
    if bias is not None and bias.is_meta and not y.is_meta:
        bias = data_of(layer, "bias").to(y.device)
    y = y.to(A.dtype)
    if bias is not None:
        y = y - bias.to(A.dtype).view(-1, *[1] * (total.ndim - 2))
    return (factor - 1) * y + factor * row.update(layer, x, A, B * scale, *rest, **named)


def _delta(row: LayerType, layer: Any, A: Tensor, B: Tensor, scale: float, own: VariantTensors) -> Tensor:
    total = _total(row, layer, A, B, scale)
    factor = _as_outputs(row, own[MAGNITUDE] / _norm(row, total).detach(), total.ndim)
    return factor * total - plain_weight(layer, row, row.parameter).detach().to(A.dtype)


def _obstacle(row: LayerType, layer: Any) -> str:
    if row.outputs is None or row.stack(layer) > 1:
        return 'DoRA needs a weight with the outputs as one of its dimensions; use variant="lora"'
    if holds_codes(layer):
        return 'DoRA needs the weight as numbers, and it holds 8-bit codes; use variant="lora"'
    zero = int((_norm(row, plain_weight(layer, row, row.parameter).detach().float()) == 0).sum())
    return f"DoRA divides by the norm of each output's weights, and {zero} are all zero" if zero else ""


DORA = Variant(_init, _forward, _delta, (MAGNITUDE,), _obstacle, transposes=False)
