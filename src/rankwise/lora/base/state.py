"""The base's own checkpoint, taken from an injected model."""

from collections import OrderedDict
from typing import Any

from torch import nn

from rankwise.errors import AdapterError
from rankwise.lora.adapter import loras_in
from rankwise.lora.targets.modules import Adapter, path_of_key, walk
from rankwise.lora.trained_modules import trained_modules


def base_state_dict(model: nn.Module) -> dict[str, Any]:
    """Return the base's own checkpoint: `model.state_dict()` as it was before `inject`, even while merged.

    Args:
        model: A model, injected or not.

    Returns:
        The base's keys and tensors (those of the model, not copies).

    Raises:
        AdapterError: Merging freed the base's weights.

    Examples:
        >>> from rankwise.lora import LoRAConfig, inject
        >>> layer = nn.Linear(2, 2)
        >>> _ = inject(layer, LoRAConfig(r=1))
        >>> list(base_state_dict(layer))
        ['weight', 'bias']
    """
    base = without_adapters(model)
    for names, layer, lora in loras_in(model):
        if lora.before is not None:
            raise AdapterError(f'"{names[0]}" is dequantised while its adapter is merged; call unmerge first.')
        if lora.freed:
            raise AdapterError(
                f'The base weight of "{names[0]}" was freed by merge(keep_base=False). '
                "For the merged weights call eject(model), then model.state_dict()."
            )
        if lora.base_weight is not None:
            weight = lora.base_weight.to(lora.weight(layer).device)
            base.update({f"{name}.{lora.parameter}".lstrip("."): weight for name in names})
    for path, (_, trained) in trained_modules(model).items():
        if None in trained.before.values():
            raise AdapterError(f'Parameters of "{path}" were overwritten by merge(keep_base=False).')
        base.update({f"{path}.{leaf}".lstrip("."): tensor for leaf, tensor in trained.before.items()})
    return base


def without_adapters(model: nn.Module) -> OrderedDict[str, Any]:
    """Return `model.state_dict()` without the adapters' own keys; the weights are the merged ones where any are.

    Keys are those of the plain model: what wrappers (torch.compile, activation checkpoints) add to them is left out.
    """
    state = model.state_dict()
    metadata: dict[str, Any] = getattr(state, "_metadata", {})
    keys = {key: path_of_key(model, key) for key in state}
    adapters = _adapter_paths(model)
    base = OrderedDict((path, state[key]) for key, path in keys.items() if path and not _is_below(path, adapters))
    own = {path_of_key(model, key) if key else "": value for key, value in metadata.items()}
    own = {path: value for path, value in own.items() if not _is_below(path, adapters)}
    setattr(base, "_metadata", own)  # noqa: B010  (load_state_dict reads it; OrderedDict declares no such attribute)
    return base


def _adapter_paths(model: nn.Module) -> set[str]:
    """Return the paths of the submodules that belong to adapters."""
    return {
        f"{path}.{child}" if path else child
        for path, module in walk(model)
        for child, inner in module._modules.items()  # pyright: ignore[reportPrivateUsage]
        if isinstance(inner, Adapter)
    }


def _is_below(path: str, outer: set[str]) -> bool:
    pieces = path.split(".")
    return any(".".join(pieces[:end]) in outer for end in range(1, len(pieces) + 1))
