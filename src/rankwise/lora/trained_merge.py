"""Parameters that an adapter trains in full, written over the base's and given back: their part of `merge`."""

import torch
from torch import Tensor, nn

from rankwise.errors import AdapterError
from rankwise.lora.targets.modules import named_once
from rankwise.lora.trained_modules import joined, trained_modules


def check_mergeable_trained(model: nn.Module) -> None:
    """Raise where layers share a parameter, and the active adapters don't have the same in its place everywhere.

    Raises:
        AdapterError: In these cases.
    """
    active: dict[str, Tensor] = {}
    for path, (_, trained) in trained_modules(model).items():
        active |= {joined(path, leaf): tensor for leaf, tensor in trained.tensors(trained.active).items()}
    names: dict[int, list[str]] = {}
    for module, paths in named_once(model) if active else ():
        for leaf, parameter in module._parameters.items():  # pyright: ignore[reportPrivateUsage]
            names.setdefault(id(parameter), []).append(joined(paths[0], leaf))
    names.pop(id(None), None)
    for shared in names.values():
        mine = [active[name] for name in shared if name in active]
        if mine and not (len(mine) == len(shared) and all(torch.equal(mine[0], other) for other in mine)):
            raise AdapterError(
                f'"{shared[0]}" and "{shared[1]}" are one parameter, and the adapter has not the same in the place of '
                "both, so it can't be merged. Give each its own parameter first (for a model of transformers: "
                "tie_word_embeddings=False)."
            )


def merge_trained(model: nn.Module, keep_base: bool) -> None:
    """Write the active adapters' parameters over the base's; `check_mergeable_trained` has let them pass."""
    before: dict[int, Tensor] = {}
    with torch.no_grad():
        for layer, trained in trained_modules(model).values():
            owner = trained.owner(layer)
            for leaf, tensor in trained.tensors(trained.active).items():
                base: Tensor = getattr(owner, leaf)
                if keep_base and id(base) not in before:
                    before[id(base)] = base.detach().to("cpu", copy=True)
                trained.before[leaf] = before.get(id(base))
                base.copy_(tensor)
            trained.merged = trained.active


def unmerge_trained(model: nn.Module) -> None:
    """Restore the base's parameters."""
    for layer, trained in trained_modules(model).values():
        trained.restore(layer)
