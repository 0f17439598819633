r"""LoRA itself: $\Delta W = s\,B A$.

References:
    Hu et al., LoRA, 2021, section 4.1. https://arxiv.org/abs/2106.09685
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rankwise.lora.layer_types import LayerType
from rankwise.lora.variants.variant import Variant, VariantTensors


def _init(row: LayerType, layer: Any, A: Tensor, B: Tensor, scale: float) -> dict[str, Tensor]:
    return {}


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
    return row.update(layer, x, A, B * scale, *rest, **named)


def _delta(row: LayerType, layer: Any, A: Tensor, B: Tensor, scale: float, own: VariantTensors) -> Tensor:
    return row.delta(layer, A, B * scale)


LORA = Variant(_init, _forward, _delta)
