"""The base under an adapter, as its file records it: its own values, also while others stand in their place."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from rankwise.lora.adapter import LoRA, lora_of, loras_in
from rankwise.lora.base.buffers import changed_buffers
from rankwise.lora.targets.modules import base_tensors, walk
from rankwise.lora.trained_modules import wholes

Places = Mapping[str, tuple[nn.Module, str]]
"""Path -> a module and the name of its weight."""


def adapted_weights(places: Places) -> dict[str, Tensor | None]:
    """Return the base's weights, also of merged layers; None where they are no plain tensors that can be looked at."""
    weights: dict[str, Tensor | None] = {}
    for path, (layer, parameter) in places.items():
        lora = lora_of(layer, parameter)
        weights[path] = _plain(lora.base_weight if lora is not None and lora.merged else getattr(layer, parameter))
    return weights


def other_tensors(model: nn.Module, without: Collection[str]) -> dict[str, Tensor | None]:
    """Return all the base's parameters and persistent buffers, each once under its first path.

    Args:
        model: A model, injected or not.
        without: Paths to leave out.
    """
    fleeting = _not_persistent(model)
    base = {path: tensor for path, tensor in base_tensors(model).items() if path not in fleeting}
    for names, _, lora in loras_in(model):
        if lora.merged:
            base.update((f"{name}.{lora.parameter}".lstrip("."), _before(lora)) for name in names)
    for path, (_, whole) in wholes(model).items():
        base |= {f"{path}.{leaf}".lstrip("."): t for leaf, t in whole.before.items() if t is not None}
    base |= {path: before for path, (before, _) in changed_buffers(model).items()}
    firsts: dict[int, str] = {}
    for path, tensor in base.items():
        firsts.setdefault(id(tensor), path)
    return {path: _plain(base[path]) for path in firsts.values() if path not in without}


def _before(lora: LoRA) -> Tensor:
    return torch.empty(0, device="meta") if lora.base_weight is None else lora.base_weight


def _not_persistent(model: nn.Module) -> set[str]:
    return {
        f"{path}.{leaf}" if path else leaf
        for path, module in walk(model)
        for leaf in module._non_persistent_buffers_set  # pyright: ignore[reportPrivateUsage]
    }


def _plain(tensor: Tensor | None) -> Tensor | None:
    # A quantised weight may be a tensor in name only.
    if tensor is None or type(tensor) not in (Tensor, nn.Parameter) or tensor.is_meta:
        return None
    return tensor if tensor.layout == torch.strided else None
