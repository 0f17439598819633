"""Layers whose weight is stored in few bits: bitsandbytes' 8-bit and 4-bit Linear, and weights quantised by torchao.

The adapter acts on the layer's output as on any other; its own numbers stay in floating point (QLoRA). The libraries
are imported when one of their weights is to be read as plain numbers, not before.

References:
    Dettmers et al., LLM.int8(), 2022. https://arxiv.org/abs/2208.07339
    Dettmers et al., QLoRA, 2023, section 3. https://arxiv.org/abs/2305.14314
"""

import functools
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from rankwise.errors import AdapterError
from rankwise.lora.layer_types.layer_type import LayerType, Quantised, weight_of
from rankwise.lora.layer_types.linear import LINEAR
from rankwise.lora.offloaded import data_of

_PACKS_ITSELF = "support_avx512bf16_for_cpu"
"""Attribute by which bitsandbytes' 4-bit Linear knows that it may rearrange its weight."""


def _dims(layer: Any) -> tuple[int, int]:
    return layer.in_features, layer.out_features


def _dequantise_8bit(layer: Any) -> Tensor:
    from bitsandbytes.functional import int8_vectorwise_dequant

    weight = layer.weight
    if weight.is_floating_point():  # not quantised yet, or quantised at each forward
        return weight
    # The first forward moves the scales of the rows from the weight to the layer.
    scales = weight.SCB if weight.SCB is not None else layer.state.SCB
    return int8_vectorwise_dequant(weight.data, scales)


def _dequantise_4bit(layer: Any) -> Tensor:
    from bitsandbytes.functional import dequantize_4bit

    weight = layer.weight
    if weight.is_floating_point():
        return weight
    keep_unpacked(layer)
    return dequantize_4bit(weight.data, weight.quant_state)


def _dequantise_torchao(layer: Any) -> Tensor:
    return layer.weight.dequantize()


_8BIT = Quantised(_dequantise_8bit, nn.Linear, ("state", "index"))
_4BIT = Quantised(
    _dequantise_4bit,
    nn.Linear,
    ("compute_dtype", "compute_type_is_set", "quant_state", "quant_storage", _PACKS_ITSELF),
)

BITSANDBYTES: dict[str, LayerType] = {
    "bitsandbytes.nn.modules.Linear8bitLt": replace(
        LINEAR, name="Linear8bitLt", dims=_dims, matrix=False, quantised=_8BIT
    ),
    "bitsandbytes.nn.modules.Linear4bit": replace(LINEAR, name="Linear4bit", dims=_dims, matrix=False, quantised=_4BIT),
}
"""Full class name -> layer type."""

QUANTISED_WEIGHTS: dict[str, Quantised] = {"torchao.utils.TorchAOBaseTensor": Quantised(_dequantise_torchao)}
"""Full name of a weight's class -> how it is read; torchao changes the weight and leaves the layer's class."""


@functools.cache
def with_weight_of(kind: LayerType, cls: type[Tensor]) -> LayerType:
    """Return the layer type for a weight of this class: the layer's own, quantised where the weight is."""
    if kind.quantised is not None:
        return kind
    names = (f"{ancestor.__module__}.{ancestor.__qualname__}" for ancestor in cls.__mro__)
    quantised = next((QUANTISED_WEIGHTS[name] for name in names if name in QUANTISED_WEIGHTS), None)
    return kind if quantised is None else replace(kind, quantised=quantised)


def numbers_in(parameter: Tensor) -> int:
    """Return how many numbers a parameter stands for; a 4-bit weight holds two in a byte.

    Examples:
        >>> numbers_in(torch.zeros(2, 3))
        6
    """
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else torch.Size(state.shape).numel()


def in_eight_bits(weight: Tensor) -> bool:
    """Tell whether a weight is stored in 8-bit floats or narrower ones, which no delta fits into.

    Examples:
        >>> in_eight_bits(torch.zeros(2, dtype=torch.float8_e4m3fn)), in_eight_bits(torch.zeros(2))
        (True, False)
    """
    return weight.is_floating_point() and weight.dtype.itemsize == 1


def is_opaque(weight: Tensor) -> bool:
    """Tell whether a tensor's class computes operations in its own way, or its layout leaves numbers out.

    So do the weights of libraries that quantise, known here or not; W + delta can't be written to them.

    Examples:
        >>> is_opaque(nn.Parameter(torch.eye(2))), is_opaque(torch.eye(2).to_sparse())
        (False, True)
    """
    own = cast(Any, type(weight))
    return own.__torch_dispatch__ is not cast(Any, Tensor).__torch_dispatch__ or weight.layout != torch.strided


def keep_unpacked(model: nn.Module) -> None:
    """Keep bitsandbytes' 4-bit layers from changing their weight.

    On CPUs with bfloat16 instructions the first forward in eval mode rearranges the weight and rounds its scales to
    bfloat16; no gradient passes through the layer from then on. A frozen base must not change, so that is switched off,
    and undone where it has happened.

    Args:
        model: Any module.
    """
    for module in model.modules():
        if module.__dict__.get(_PACKS_ITSELF):
            setattr(module, _PACKS_ITSELF, False)
            if getattr(getattr(module.weight, "quant_state", None), "packing_format_for_cpu", False):
                module.state_dict()  # bitsandbytes unpacks a weight that is to be saved


@dataclass(frozen=True)
class Before:
    """A layer from before its weight became a plain one.

    Args:
        cls: Its class.
        weight: Its quantised weight.
        attributes: Those that a plain layer doesn't have.
    """

    cls: type[nn.Module]
    weight: nn.Parameter
    attributes: dict[str, Any]


def make_plain(path: str, layer: nn.Module, kind: Quantised, weight: Tensor) -> Before:
    """Replace a quantised layer's weight by a plain one; the layer stays the same object, with its hooks.

    Args:
        path: Its path, for messages.
        layer: The layer.
        kind: How its weight is quantised.
        weight: The new weight.

    Raises:
        AdapterError: The layer's forward was replaced and would still read the quantised weight.
    """
    if kind.plain is not None and "forward" in layer.__dict__:
        raise AdapterError(
            f'The forward of "{path}" was replaced on the instance (by accelerate, say) and would still read a '
            "quantised weight. Load the model on one device, without hooks of others."
        )
    own = layer._parameters  # pyright: ignore[reportPrivateUsage]
    quantised = own["weight"]
    if quantised is None:
        raise AdapterError(f'"{path}" has no weight.')
    attributes = {name: layer.__dict__.pop(name) for name in kind.attributes if name in layer.__dict__}
    before = Before(type(layer), quantised, attributes)
    if kind.plain is not None:
        layer.__class__ = kind.plain
    own["weight"] = nn.Parameter(weight, requires_grad=False)
    return before


def make_quantised(layer: nn.Module, before: Before) -> None:
    """Undo `make_plain`: the very weight is back."""
    layer.__class__ = before.cls
    layer.__dict__.update(before.attributes)
    layer._parameters["weight"] = before.weight  # pyright: ignore[reportPrivateUsage]


def plain_weight(layer: nn.Module, kind: LayerType, parameter: str = "weight") -> Tensor:
    """Return a layer's weight as plain numbers, dequantised where it is quantised.

    Examples:
        >>> layer = nn.Linear(2, 2)
        >>> plain_weight(layer, LINEAR) is layer.weight
        True
    """
    if kind.quantised is not None:
        return kind.quantised.dequantise(layer)
    weight = weight_of(layer) if parameter == "weight" else getattr(layer, parameter)
    return data_of(layer, parameter) if weight.is_meta else weight
