"""The base's own tensors, also while an adapter's replace them."""

from torch import Tensor, nn

from rankwise.lora.adapter import loras_in
from rankwise.lora.targets.modules import base_tensors, walk
from rankwise.lora.trained_modules import joined, trained_modules


def base_values(model: nn.Module) -> dict[str, Tensor | None]:
    """Return the base's parameters and buffers under all their paths, as they are without merged adapters.

    Args:
        model: A model, injected or not.

    Returns:
        Path -> tensor; None where merging freed it.
    """
    values: dict[str, Tensor | None] = dict(base_tensors(model))
    for names, _, lora in loras_in(model):
        if lora.merged:
            values.update((joined(name, lora.parameter), lora.base_weight) for name in names)
    for path, (_, trained) in trained_modules(model).items():
        values |= {joined(path, leaf): tensor for leaf, tensor in trained.before.items()}
    return values


def fleeting_buffers(model: nn.Module) -> set[str]:
    """Return the paths of the buffers that no checkpoint of the model holds."""
    return {
        joined(path, leaf)
        for path, module in walk(model)
        for leaf in module._non_persistent_buffers_set  # pyright: ignore[reportPrivateUsage]
    }
