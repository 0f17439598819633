"""Buffers of the base that training changes: running means, codebooks, counters.

The purpose of a user's buffer is unknown, so training may change it. `inject` copies its value:
`eject` gives that back, and a saved adapter holds the buffers that have changed, since it would compute something else
without them.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rankwise.lora.base.statistics import has_statistics
from rankwise.lora.targets.modules import base_modules, base_tensors, unwrapped, walk

_BUFFERS = "_rankwise_buffers"
"""Attribute of an injected model: its `BaseBuffers`."""

LARGEST = 1 << 26
"""The most bytes of a buffer to copy; larger ones are tables and caches, which training doesn't change."""


class BaseBuffers:
    """Copies of a model's persistent buffers, on the CPU.

    Args:
        model: The model, before an adapter trains on it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.values: dict[str, Any] = {path: self.copy_of(tensor) for path, tensor in self.of(model).items()}
        self.handle: RemovableHandle = unwrapped(model).register_load_state_dict_pre_hook(self.reload)

    def reload(self, model: nn.Module, state: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Before a checkpoint is loaded: the base's own checkpoint sets the base's buffers."""
        adapters = model.state_dict().keys() - base_tensors(model).keys()
        if any(f"{prefix}{key}" in state for key in adapters):
            return  # one of a training run, whose buffers may have changed
        for path in self.values:
            value = state.get(f"{prefix}{path}")
            if isinstance(value, Tensor) and not value.is_meta:
                self.values[path] = self.copy_of(value)

    @staticmethod
    def of(model: nn.Module) -> Mapping[str, Tensor]:
        """Return the copies, by path."""
        return buffers_kept(model)

    @staticmethod
    def copy_of(tensor: Tensor) -> Any:
        """Return the copy of a tensor."""
        return tensor.detach().to("cpu", copy=True)


def buffers_kept(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that a checkpoint of the model holds, without the statistics that `inject` freezes."""
    found: dict[str, Tensor] = {}
    for path, module in walk(model):
        for leaf, buffer in module._buffers.items():  # pyright: ignore[reportPrivateUsage]
            fleeting = leaf in module._non_persistent_buffers_set or has_statistics(module)  # pyright: ignore[reportPrivateUsage]
            if buffer is None or fleeting or type(buffer) is not Tensor or buffer.layout != torch.strided:
                continue
            if not buffer.is_meta and not is_large(buffer):
                found[f"{path}.{leaf}" if path else leaf] = buffer
    return found


def is_large(buffer: Tensor) -> bool:
    """Tell whether a buffer is too large to be copied."""
    return buffer.nbytes > LARGEST


def _recorded(model: nn.Module) -> BaseBuffers | None:
    return next((it for m in base_modules(model) if isinstance(it := m.__dict__.get(_BUFFERS), BaseBuffers)), None)


def remember_buffers(model: nn.Module) -> None:
    """Copy the base's buffers, unless that has been done."""
    if _recorded(model) is None and buffers_kept(model):
        setattr(unwrapped(model), _BUFFERS, BaseBuffers(model))


def changed_buffers(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the buffers that have changed: path -> (base's, present)."""
    recorded = _recorded(model)
    now = base_tensors(model) if recorded is not None else {}
    changed: dict[str, tuple[Tensor, Tensor]] = {}
    for path, before in recorded.values.items() if recorded is not None else ():
        present = now.get(path)
        if present is None or present.is_meta or present.shape != before.shape:
            continue
        if not torch.equal(present.detach().to("cpu", before.dtype).nan_to_num(), before.nan_to_num()):
            changed[path] = before, present
    return changed


def restore_buffers(model: nn.Module) -> None:
    """Restore the base's buffers, and drop the copies."""
    with torch.no_grad():
        for before, present in changed_buffers(model).values():
            present.copy_(before)
    for module in base_modules(model):
        recorded = module.__dict__.pop(_BUFFERS, None)
        if isinstance(recorded, BaseBuffers):
            recorded.handle.remove()
