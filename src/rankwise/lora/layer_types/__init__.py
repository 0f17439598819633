"""The layers that can be adapted, in one table: a new layer type is one new entry.

`register_layer_type` adds an entry for a user's class.
"""

import functools

from torch import nn
from torch.nn.parameter import is_lazy

from rankwise.errors import renamed_arguments
from rankwise.lora.layer_types.convolution import CONV, CONV_TRANSPOSE
from rankwise.lora.layer_types.embedding import EMBEDDING
from rankwise.lora.layer_types.layer_type import LayerType, Quantised, weight_of
from rankwise.lora.layer_types.linear import CONV1D, LINEAR
from rankwise.lora.layer_types.quantised import BITSANDBYTES, in_eight_bits, with_weight_of

__all__ = [
    "EMBEDDING",
    "LAYER_TYPES",
    "LayerType",
    "Quantised",
    "called_as_listed",
    "layer_type_of",
    "obstacle",
    "register_layer_type",
    "weight_of",
]

LAYER_TYPES: dict[str, LayerType] = {
    "torch.nn.modules.linear.Linear": LINEAR,
    # By name, so that transformers need not be imported to know its layer.
    "transformers.pytorch_utils.Conv1D": CONV1D,
    "torch.nn.modules.sparse.Embedding": EMBEDDING,
    **BITSANDBYTES,
    **CONV,
    **CONV_TRANSPOSE,
}
"""Full class name -> layer type. A subclass has the type of its nearest listed ancestor."""


@renamed_arguments(row="kind")
def register_layer_type(cls: type[nn.Module], kind: LayerType) -> None:
    """Teach Rankwise your own layer class; its subclasses are known with it.

    Its weight must be the attribute `weight`. The functions of the entry should be those of a module, not
    lambdas, where adapted models are to be pickled.

    Args:
        cls: The class.
        kind: How it is adapted; replaces an existing entry of the class.

    Examples:
        >>> class Scaled(nn.Linear):
        ...     def forward(self, x):
        ...         return 2 * super().forward(x)
        >>> from dataclasses import replace
        >>> twice = replace(LINEAR, name="Scaled", update=lambda layer, x, A, B: 2 * (x @ A.mT @ B.mT))
        >>> register_layer_type(Scaled, twice)
        >>> layer_type_of(Scaled(2, 3)).name
        'Scaled'
    """
    LAYER_TYPES[f"{cls.__module__}.{cls.__qualname__}"] = kind
    _listed.cache_clear()


@functools.cache
def _listed(cls: type[nn.Module]) -> tuple[type[nn.Module], LayerType] | None:
    """Return the nearest ancestor of a class that is in the table, and its entry."""
    named = ((ancestor, f"{ancestor.__module__}.{ancestor.__qualname__}") for ancestor in cls.__mro__)
    return next(((ancestor, LAYER_TYPES[name]) for ancestor, name in named if name in LAYER_TYPES), None)


def called_as_listed(layer: nn.Module) -> bool:
    """Tell whether a layer is called and computes what its layer type says: no subclass overrides it.

    Examples:
        >>> class Doubled(nn.Linear):
        ...     def forward(self, x):
        ...         return 2 * super().forward(x)
        >>> called_as_listed(nn.Linear(2, 2)), called_as_listed(Doubled(2, 2))
        (True, False)
    """
    listed = _listed(type(layer))
    if listed is None or isinstance(layer, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return False  # the attention reads its out_proj's weight and never calls it
    names = ("forward", "_conv_forward")
    return all(getattr(type(layer), name, None) is getattr(listed[0], name, None) for name in names)


def holds_codes(layer: nn.Module) -> bool:
    """Tell whether a layer's weight is 8-bit floats that its class's own forward turns into numbers, by a scale say.

    Examples:
        >>> class Scaled(nn.Linear):
        ...     def forward(self, x):
        ...         return nn.functional.linear(x, 0.1 * self.weight.float())
        >>> import torch
        >>> holds_codes(Scaled(2, 2).to(torch.float8_e4m3fn)), holds_codes(nn.Linear(2, 2).to(torch.float8_e4m3fn))
        (True, False)
    """
    weight = layer._parameters.get("weight")  # pyright: ignore[reportPrivateUsage]
    return type(weight) is nn.Parameter and in_eight_bits(weight) and not called_as_listed(layer)


def acts_on_output(layer: nn.Module) -> bool:
    """Tell whether an adapter's update is added to a layer's output: it is called, and is a linear map of its input."""
    kind = layer_type_of(layer)
    return called_as_listed(layer) or (kind is not None and kind.linear and kind.matrix and holds_codes(layer))


def layer_type_of(layer: nn.Module) -> LayerType | None:
    """Return the type of a layer, or None where its class is not in the table.

    Examples:
        >>> layer_type_of(nn.Linear(2, 3)).dims(nn.Linear(2, 3))
        (2, 3)
        >>> layer_type_of(nn.ReLU()) is None
        True
    """
    listed = _listed(type(layer))
    if listed is None:
        return None
    weight = layer._parameters.get("weight")  # pyright: ignore[reportPrivateUsage]
    return listed[1] if weight is None or type(weight) is nn.Parameter else with_weight_of(listed[1], type(weight))


def obstacle(layer: nn.Module) -> str:
    """Return why this layer can't be adapted, or an empty string where it can.

    Examples:
        >>> obstacle(nn.Linear(2, 3))
        ''
        >>> obstacle(nn.ReLU())
        'its class is not in LAYER_TYPES; register_layer_type adds it'
    """
    kind = layer_type_of(layer)
    if kind is None:
        return "its class is not in LAYER_TYPES; register_layer_type adds it"
    if getattr(layer, "weight", None) is None:
        kept = [name for name, _ in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False))]
        return f"it has no weight but {', '.join(kept) or 'nothing'}; load it without compression"
    weight = weight_of(layer)
    if is_lazy(weight):
        return "its shape is unknown until the first forward; run one first"
    if not weight.is_floating_point() and kind.quantised is None:
        return f"its weight is of type {str(weight.dtype).removeprefix('torch.')}; a floating-point weight is needed"
    if holds_codes(layer) and not acts_on_output(layer):
        return "its weight holds 8-bit codes, which its class turns into numbers in a way that isn't known here"
    if 0 in weight.shape:
        return f"its weight has shape {tuple(weight.shape)}; inputs and outputs are needed"
    return kind.obstacle(layer)
