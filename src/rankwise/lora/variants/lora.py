r"""LoRA itself: $\Delta W = s\,B A$.

References:
    Hu et al., LoRA, 2021, section 4.1.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rankwise.lora.layer_types import LayerType
from rankwise.lora.variants.variant import Site, Variant, VariantTensor, VariantTensors

A_ = VariantTensor("A", lambda sizes: (sizes.stack * sizes.r, sizes.d_in), rank_dim=0)
B_ = VariantTensor("B", lambda sizes: (sizes.d_out, sizes.stack * sizes.r), rank_dim=1, up=True)


def _start(site: Site) -> dict[str, Tensor]:
    A, B = site.draw()
    return {"A": A, "B": B}


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
    return kind.update(layer, x, tensors["A"], tensors["B"] * scale, *rest, **named)


def _delta(kind: LayerType, layer: Any, tensors: VariantTensors, scale: float) -> Tensor:
    return kind.delta(layer, tensors["A"], tensors["B"] * scale)


LORA = Variant("LoRA", (A_, B_), _start, _forward, _delta, low_rank=True)
