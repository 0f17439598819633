"""The base under an adapter, as its file records it: its own values, also while others replace them."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from rankwise.lora.adapter import lora_of
from rankwise.lora.base.buffers import changed_buffers
from rankwise.lora.base.values import base_values, fleeting_buffers
from rankwise.lora.checks.foreign import is_sharded

Places = Mapping[str, tuple[nn.Module, str]]
"""Path -> a module and the name of its weight."""


def adapted_weights(places: Places) -> dict[str, Tensor | None]:
    """Return the base's weights, also of merged layers; None where they are no plain tensors that can be looked at.

    A weight that is computed (parametrised) is None too: what it is computed from is recorded, and may be in the file.
    """
    weights: dict[str, Tensor | None] = {}
    for path, (layer, parameter) in places.items():
        lora = lora_of(layer, parameter)
        own = layer._parameters.get(parameter)  # pyright: ignore[reportPrivateUsage]
        weights[path] = _plain(lora.base_weight if lora is not None and lora.merged else own)
    return weights


def other_tensors(model: nn.Module, without: Collection[str]) -> dict[str, Tensor | None]:
    """Return all the base's parameters and persistent buffers, each once under its first path.

    Args:
        model: A model, injected or not.
        without: Paths to leave out.
    """
    fleeting = fleeting_buffers(model)
    base = {path: tensor for path, tensor in base_values(model).items() if path not in fleeting and tensor is not None}
    base |= {path: before for path, (before, _) in changed_buffers(model).items()}
    firsts: dict[int, str] = {}
    for path, tensor in base.items():
        firsts.setdefault(id(tensor), path)
    return {path: _plain(base[path]) for path in firsts.values() if path not in without}


def _plain(tensor: Tensor | None) -> Tensor | None:
    if tensor is None:
        return None
    # The part that this process has of a sharded weight; who looks at the weight gathers it.
    local: Tensor = tensor.to_local() if is_sharded(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]
    # A quantised weight may be a tensor in name only.
    if type(local) not in (Tensor, nn.Parameter) or local.is_meta:
        return None
    return tensor if tensor.layout == torch.strided else None
