"""A variant of the method: the tensors of an adapter in one layer, and the functions that use them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from rankwise.lora.layer_types import LayerType
from rankwise.lora.variants.peft_form import PeftForm

VariantTensors = Mapping[str, Tensor]
"""Name of a tensor of the variant -> the tensor."""


@dataclass(frozen=True)
class Sizes:
    """The sizes that determine the shapes of an adapter's tensors.

    Args:
        r: Rank.
        d_in: Inputs of the layer.
        d_out: Adapted outputs.
        stack: How many matrices the weight is a stack of; each has a rank of r.
        outputs: All outputs of the layer, of which `d_out` are adapted where it is adapted on slices; None for `d_out`.
    """

    r: int
    d_in: int
    d_out: int
    stack: int = 1
    outputs: int | None = None


def as_it_is(layer: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape unchanged."""
    return shape


@dataclass(frozen=True)
class VariantTensor:
    """One tensor that an adapter has in every layer.

    Args:
        name: Its name: "A".
        shape: Sizes of a layer -> its shape. Of a shared tensor: the largest sizes among the layers -> its shape.
        trained: Whether it is trained. A frozen one follows from the adapter's settings and its seed, so only files
            hold it.
        shared: Whether all layers of an adapter have one and the same tensor; it is frozen then.
        rank_dim: The dimension that runs over the rank: a pack pads it to the rank of its bucket.
        pad: What it is padded with. It must leave the layer's output as it is, and get a gradient of 0.
        up: Whether it takes the scale s, as B does. In a pack it is multiplied by s once a step.
        key: End of its key in PEFT's files; empty for A and B, whose keys depend on the layer.
        filed: (layer, shape) -> its shape in PEFT's files.
    """

    name: str
    shape: Callable[[Sizes], tuple[int, ...]]
    trained: bool = True
    shared: bool = False
    rank_dim: int | None = None
    pad: float = 0.0
    up: bool = False
    key: str = ""
    filed: Callable[[Any, tuple[int, ...]], tuple[int, ...]] = as_it_is

    def __post_init__(self) -> None:
        if self.shared and self.trained:
            raise ValueError(f'"{self.name}" is shared and trained; a shared tensor must be frozen.')

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape(Sizes(1, 1, 1)))


@dataclass(frozen=True)
class Site:
    """A layer in which an adapter starts.

    Args:
        kind: Its entry in `LAYER_TYPES`, as the adapter sees the layer.
        layer: The layer.
        sizes: Of the adapter there.
        scale: s.
        draw: Draws A and B as the adapter's settings say, in the type that it trains in.
    """

    kind: LayerType
    layer: Any
    sizes: Sizes
    scale: float
    draw: Callable[[], tuple[Tensor, Tensor]]


def no_obstacle(kind: LayerType, layer: Any) -> str:
    """No obstacle to adapting this layer."""
    return ""


def no_conflict(config: Any) -> str:
    """No objection to the settings."""
    return ""


def nothing_shared(sizes: Sizes, seed: int) -> dict[str, Tensor]:
    """Return no shared tensors."""
    return {}


@dataclass(frozen=True)
class Variant:
    """A way of changing a layer by a few numbers.

    `forward` and `delta` are pure functions of their tensors, through which `torch.vmap` can go: the hook calls them
    for one adapter, a pack for many.

    Args:
        label: What messages call it.
        tensors: What an adapter has in every layer.
        start: Layer -> the tensors before training, shared ones apart.
        forward: (kind, layer, x, y, tensors, scale, rest, named) -> what is added to the layer's output y for the
            adapter's input x; `rest` and `named` are the call's other arguments.
        delta: (kind, layer, tensors, scale) -> the change of the weight that gives the same function.
        share: (the largest sizes among the layers, seed) -> the shared tensors, in float32 on the CPU.
        obstacle: (kind, layer) -> why the variant can't adapt this layer; an empty string where it can.
        conflict: `LoRAConfig` -> what it asks for that the variant can't do; an empty string where there is nothing.
        transposes: Whether A and B of a weight serve its transpose too, as layers that share one may need.
        peft: How PEFT's settings speak of it.
        low_rank: Whether it adds s B A x, or s (B A - B0 A0) x, to a layer's output and does nothing else.
    """

    label: str
    tensors: tuple[VariantTensor, ...]
    start: Callable[[Site], dict[str, Tensor]]
    forward: Callable[
        [LayerType, Any, Tensor, Tensor, VariantTensors, float, tuple[Any, ...], Mapping[str, Any]], Tensor
    ]
    delta: Callable[[LayerType, Any, VariantTensors, float], Tensor]
    share: Callable[[Sizes, int], dict[str, Tensor]] = nothing_shared
    obstacle: Callable[[LayerType, Any], str] = no_obstacle
    conflict: Callable[[Any], str] = no_conflict
    transposes: bool = True
    peft: PeftForm = field(default_factory=PeftForm)
    low_rank: bool = False

    @property
    def trained(self) -> tuple[VariantTensor, ...]:
        """The tensors that are trained."""
        return tuple(tensor for tensor in self.tensors if tensor.trained)

    @property
    def shared(self) -> tuple[VariantTensor, ...]:
        """The tensors that all layers have in common."""
        return tuple(tensor for tensor in self.tensors if tensor.shared)

    @property
    def scaled(self) -> bool:
        """Whether the scale s has a part in it; without one s is 1."""
        return any(tensor.up for tensor in self.tensors)

    def shapes(self, sizes: Sizes) -> dict[str, tuple[int, ...]]:
        """Return the shapes of what is trained in one layer."""
        return {tensor.name: tensor.shape(sizes) for tensor in self.trained}
