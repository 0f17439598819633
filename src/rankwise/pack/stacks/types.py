"""The types in which the stacks of a pack compute."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from rankwise.lora.targets.modules import base_tensors
from rankwise.lora.variants import LORA, Sizes
from rankwise.pack.precision import rounds
from rankwise.pack.stacks.bucket import Bucket


def rounded_stacks(buckets: Sequence[Bucket], model: nn.Module) -> list[str]:
    """The stacks that linear layers read in bfloat16, where they compute in it."""
    adapted: dict[str, bool] = {}
    for bucket in buckets:
        for t in bucket.members[0].targets:
            plain = rounds(t.module) and bucket.variant(t.name) is LORA and not t.layer_type.partial
            adapted[t.name] = plain and adapted.get(t.name, True)
    weights = {name for bucket in buckets for name in bucket.members[0].trained_parameters if name.endswith(".weight")}
    own = [
        name
        for name in weights
        if rounds(model.get_submodule(name.removesuffix(".weight"))) and adapted.get(name.removesuffix(".weight"), True)
    ]
    return [
        *own,
        *(f"{name}.{letter}" for name, plain in adapted.items() if plain for letter in LORA.shapes(Sizes(1, 1, 1))),
    ]


def types_of_stacks(buckets: Iterable[Bucket], model: nn.Module, default: torch.dtype) -> dict[str, torch.dtype]:
    """The type in which each stack computes, by its key: the type of the weight it replaces or adapts.

    What other variants have is not among them: norms of rows, and what is computed from vectors, need more than half
    precision.
    """
    parameters = base_tensors(model, buffers=False)
    weights: dict[str, Tensor] = {}
    for bucket in buckets:
        first = bucket.members[0]
        for t in first.targets:
            if t.variant == "lora":
                weights |= {f"{t.name}.{key}": t.weight for key in LORA.shapes(t.sizes)}
        for name in first.trained_parameters:
            weights[name] = parameters[name]
    return {key: weight.dtype if weight.is_floating_point() else default for key, weight in weights.items()}


def types_of_weights(buckets: Iterable[Bucket]) -> set[torch.dtype]:
    """The types of the adapted weights that hold plain numbers."""
    weights = [t.weight for bucket in buckets for t in bucket.members[0].targets]
    return {weight.dtype for weight in weights if weight.is_floating_point() and weight.dtype.itemsize > 1}
