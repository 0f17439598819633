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
from rankwise.lora.layer_types.convolution import Convolution
from rankwise.lora.layer_types.quantised import plain_weight
from rankwise.lora.offloaded import data_of
from rankwise.lora.variants.lora import A_, B_
from rankwise.lora.variants.peft_form import PeftForm
from rankwise.lora.variants.variant import Site, Sizes, Variant, VariantTensor, VariantTensors

MAGNITUDE = "magnitude"
"""Name of m."""


def _magnitude_shape(sizes: Sizes) -> tuple[int, ...]:
    """m has a number for each output of the layer, also where A and B are on slices of them."""
    return (sizes.outputs or sizes.d_out,)


def _as_filed(layer: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (1, *shape, *(1,) * len(layer.kernel_size)) if isinstance(layer, Convolution) else shape


def _total(kind: LayerType, layer: Any, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """W_0 + s B A, shaped as the weight."""
    weight = plain_weight(layer, kind, kind.parameter).detach()
    return weight.to(A.dtype) + kind.delta(layer, A, B * scale)


def _norm(kind: LayerType, total: Tensor) -> Tensor:
    """The norm over the inputs, for each output: (d_out,)."""
    dims = [dim for dim in range(total.ndim) if dim != kind.outputs]
    return torch.linalg.vector_norm(total, dim=dims)


def _as_outputs(kind: LayerType, values: Tensor, n_dims: int) -> Tensor:
    """A number for each output, shaped so that it multiplies a weight of so many dimensions."""
    return values.view([-1 if dim == kind.outputs else 1 for dim in range(n_dims)])


def _start(site: Site) -> dict[str, Tensor]:
    A, B = site.draw()
    device = plain_weight(site.layer, site.kind, site.kind.parameter).device
    norm = _norm(site.kind, _total(site.kind, site.layer, A.to(device), B.to(device), site.scale))
    return {"A": A, "B": B, MAGNITUDE: norm}


def _forward(
    kind: LayerType,
    layer: Any,
    x: Tensor,
    y: Tensor,
    tensors: VariantTensors,
    scale: float,
    rest: tuple[Any, ...],
    named: Mapping[str, Any],
) -> Tensor:
    A, B = tensors["A"], tensors["B"]
    total = _total(kind, layer, A.detach(), B.detach(), scale)
    # Places of a convolution come after its outputs; a matrix gives the outputs last.
    factor = (tensors[MAGNITUDE] / _norm(kind, total)).view(-1, *[1] * (total.ndim - 2))
    bias: Tensor | None = getattr(layer, "bias", None)
    if bias is not None and bias.is_meta and not y.is_meta:
        bias = data_of(layer, "bias").to(y.device)
    y = y.to(A.dtype)
    if bias is not None:
        y = y - bias.to(A.dtype).view(-1, *[1] * (total.ndim - 2))
    return (factor - 1) * y + factor * kind.update(layer, x, A, B * scale, *rest, **named)


def _delta(kind: LayerType, layer: Any, tensors: VariantTensors, scale: float) -> Tensor:
    total = _total(kind, layer, tensors["A"], tensors["B"], scale)
    factor = _as_outputs(kind, tensors[MAGNITUDE] / _norm(kind, total).detach(), total.ndim)
    return factor * total - plain_weight(layer, kind, kind.parameter).detach().to(total.dtype)


def _obstacle(kind: LayerType, layer: Any) -> str:
    if kind.outputs is None or kind.stack(layer) > 1:
        return 'DoRA needs a weight with the outputs as one of its dimensions; use variant="lora"'
    if holds_codes(layer):
        return 'DoRA needs the weight as numbers, and it holds 8-bit codes; use variant="lora"'
    zero = int((_norm(kind, plain_weight(layer, kind, kind.parameter).detach().float()) == 0).sum())
    return f"DoRA divides by the norm of each output's weights, and {zero} are all zero" if zero else ""


DORA = Variant(
    "DoRA",
    (A_, B_, VariantTensor(MAGNITUDE, _magnitude_shape, key="lora_magnitude_vector", filed=_as_filed)),
    _start,
    _forward,
    _delta,
    obstacle=_obstacle,
    transposes=False,
    peft=PeftForm(switch="use_dora"),
)
