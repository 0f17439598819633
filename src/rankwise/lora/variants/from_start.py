r"""A variant whose A and B don't start at the base's function, which all the same starts there.

$$h = W_0 x + s\,(B A - B_0 A_0)\,x$$

A_0 and B_0 are A and B as they were drawn (PiSSA, OLoRA, LoRA-GA). The papers take s B_0 A_0 off the weight; this is
the same function, over a weight that many adapters share. It is also an adapter of rank 2r, half of which is frozen:
$s\,[B, -B_0]\,[A; A_0]$, which is how files have it. Dropout acts on the input of both halves, so that training with it
begins at the base too (over a weight without s B_0 A_0 it would act on B A alone).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rankwise.lora.layer_types import LayerType
from rankwise.lora.variants.lora import A_, B_
from rankwise.lora.variants.variant import Site, Variant, VariantTensors

A0_ = replace(A_, name="A0", trained=False)
B0_ = replace(B_, name="B0", trained=False)


def as_one_pair(A: Tensor, B: Tensor, A0: Tensor, B0: Tensor) -> tuple[Tensor, Tensor]:
    """A and B of rank 2r with the product B A - B0 A0.

    Examples:
        >>> one = torch.ones(1, 1)
        >>> as_one_pair(3 * one, one, one, one)
        (tensor([[3.],
                [1.]]), tensor([[ 1., -1.]]))
    """
    return torch.cat([A, A0], -2), torch.cat([B, -B0], -1)


def in_one_pair(tensors: VariantTensors) -> dict[str, Tensor]:
    """The tensors of the variant itself, with A and B of rank 2r."""
    A, B = as_one_pair(tensors["A"], tensors["B"], tensors["A0"], tensors["B0"])
    return {**{key: tensor for key, tensor in tensors.items() if key not in ("A0", "B0")}, "A": A, "B": B}


def from_start(variant: Variant) -> Variant:
    """The variant with its start taken off the base."""

    def start(site: Site) -> dict[str, Tensor]:
        A, B = site.draw()
        # What the variant derives from A and B (DoRA's magnitudes) is as at the base.
        own = variant.start(replace(site, draw=lambda: (A, torch.zeros_like(B))))
        return {**own, "A": A, "B": B, "A0": A.clone(), "B0": B.clone()}

    def forward(
        kind: LayerType,
        layer: Any,
        x: Tensor,
        y: Tensor,
        tensors: VariantTensors,
        scale: float,
        rest: tuple[Any, ...],
        named: Mapping[str, Any],
    ) -> Tensor:
        return variant.forward(kind, layer, x, y, in_one_pair(tensors), scale, rest, named)

    def delta(kind: LayerType, layer: Any, tensors: VariantTensors, scale: float) -> Tensor:
        return variant.delta(kind, layer, in_one_pair(tensors), scale)

    return replace(
        variant,
        tensors=(*variant.tensors, A0_, B0_),
        start=start,
        forward=forward,
        delta=delta,
        transposes=False,
    )
