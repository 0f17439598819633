"""What a variant of the method is: three functions, and the tensors that it trains beside A and B."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rankwise.lora.layer_types import LayerType

VariantTensors = Mapping[str, Tensor]
"""Name of a tensor that a variant trains beside A and B -> the tensor."""


def no_obstacle(row: LayerType, layer: Any) -> str:
    """Say that nothing is in the way of adapting this layer."""
    return ""


@dataclass(frozen=True)
class Variant:
    """One way of turning A and B into a change of a layer.

    `forward` and `delta` are pure functions of their tensors, through which `torch.vmap` can go: the hook calls them
    for one adapter, a pack for many.

    Args:
        init: (row, layer, A, B, scale) -> the tensors trained beside A and B, before training.
        forward: (row, layer, x, y, A, B, scale, own, rest, named) -> what is added to the layer's output y for the
            adapter's input x; `rest` and `named` are the call's other arguments.
        delta: (row, layer, A, B, scale, own) -> the change of the weight that gives the same function.
        tensors: Names of the tensors in `own`.
        obstacle: (row, layer) -> why the variant can't adapt this layer; an empty string where it can.
        transposes: Whether A and B of a weight serve its transpose too, as layers that share one may need.
    """

    init: Callable[[LayerType, Any, Tensor, Tensor, float], dict[str, Tensor]]
    forward: Callable[
        [LayerType, Any, Tensor, Tensor, Tensor, Tensor, float, VariantTensors, tuple[Any, ...], Mapping[str, Any]],
        Tensor,
    ]
    delta: Callable[[LayerType, Any, Tensor, Tensor, float, VariantTensors], Tensor]
    tensors: tuple[str, ...] = ()
    obstacle: Callable[[LayerType, Any], str] = no_obstacle
    transposes: bool = True
