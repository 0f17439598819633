"""Samples of the base, taken as training begins: what has changed since isn't in an adapter's file.

A base that `inject` has frozen changes all the same where a user unfreezes a part of it, a second optimiser steps it,
the model's own forward writes to it, or statistics are reset.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.lora.adapter import loras_in
from rankwise.lora.base.buffers import BaseBuffers, buffers_kept, is_large, restore_buffers
from rankwise.lora.base.checksum import checksum
from rankwise.lora.base.values import base_values, fleeting_buffers
from rankwise.lora.offloaded import has_data
from rankwise.lora.targets.modules import base_modules, base_tensors, unwrapped

_SAMPLES = "_rankwise_samples"
"""Attribute of an injected model from its first training forward on: its `BaseSamples`."""

SAMPLED = 256
"""Most entries of a tensor that are looked at."""


@dataclass(frozen=True)
class Sample:
    """A sample of a tensor.

    Args:
        shape: Its shape.
        entries: Up to 256 of its numbers, spread evenly: what is compared where it has been cast since.
        total: A number of all its bits; None where the entries are the whole tensor.
    """

    shape: torch.Size
    entries: Tensor
    total: Tensor | None

    def is_of(self, tensor: Tensor) -> bool:
        """Tell whether a tensor, perhaps cast or moved since, has these values."""
        if tensor.shape != self.shape:
            return False
        now, then = _entries(tensor), self.entries.to(tensor.device)
        if now.dtype == then.dtype:
            if self.total is not None:
                return torch.equal(checksum(tensor).cpu(), self.total)
            return torch.equal(_bits(now), _bits(then))
        narrow = min((now.dtype, then.dtype), key=lambda dtype: dtype.itemsize)
        return torch.equal(_comparable(now.to(narrow)), _comparable(then.to(narrow)))


def _bits(entries: Tensor) -> Tensor:
    return entries.contiguous().view(torch.uint8)


def _entries(tensor: Tensor) -> Tensor:
    flat = tensor.detach().flatten()
    return flat[:: max(1, -(-flat.numel() // SAMPLED))]


def _comparable(tensor: Tensor) -> Tensor:
    return (tensor.float() if tensor.itemsize == 1 else tensor).nan_to_num()


class BaseSamples(BaseBuffers):
    """Samples of a model's parameters, and of the buffers of which `BaseBuffers` has no copies.

    Args:
        model: The model, before an adapter trains on it.
    """

    @staticmethod
    def of(model: nn.Module) -> Mapping[str, Tensor]:
        """Return what is looked at."""
        copied = buffers_kept(model)
        return {path: tensor for path, tensor in base_tensors(model).items() if path not in copied and _plain(tensor)}

    @staticmethod
    def copy_of(tensor: Tensor) -> Any:
        """Return what is remembered of a tensor."""
        total = checksum(tensor).cpu() if tensor.numel() > SAMPLED else None
        return Sample(tensor.shape, _entries(tensor).clone(), total)


def _plain(tensor: Tensor | None) -> bool:
    plain = tensor is not None and type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided
    return tensor is not None and plain and has_data(tensor)


def remember_base(model: nn.Module) -> None:
    """Take samples of the base, unless that has been done or merged adapters replace it."""
    if _recorded(model) is None and not any(lora.merged for _, _, lora in loras_in(model)):
        setattr(unwrapped(model), _SAMPLES, BaseSamples(model))


def _recorded(model: nn.Module) -> tuple[nn.Module, BaseSamples] | None:
    for module in base_modules(model):
        found = module.__dict__.get(_SAMPLES)
        if isinstance(found, BaseSamples):
            return module, found
    return None


@dataclass(frozen=True)
class ChangedBase:
    """The changes of a base since training began.

    Args:
        lasting: Paths of parameters, frozen statistics and small buffers, which checkpoints hold.
        large: Paths of buffers that checkpoints hold, of which there are no copies.
        fleeting: Paths of buffers that no checkpoint of the model holds.
    """

    lasting: tuple[str, ...] = ()
    large: tuple[str, ...] = ()
    fleeting: tuple[str, ...] = ()


def changed_base(model: nn.Module) -> ChangedBase:
    """Return what has changed since training began; nothing where it has not begun."""
    recorded = _recorded(model)
    if recorded is None:
        return ChangedBase()
    inner, samples = recorded
    now, fleeting = base_values(inner), fleeting_buffers(inner)
    values = {path: tensor for path, tensor in now.items() if tensor is not None and _plain(tensor)}
    changed = [
        path
        for path, sample in samples.values.items()
        if (tensor := values.get(path)) is not None and not sample.is_of(tensor)
    ]
    kept = [path for path in changed if path not in fleeting]
    large = [path for path in kept if not isinstance(values[path], nn.Parameter) and is_large(values[path])]
    return ChangedBase(
        tuple(path for path in kept if path not in large),
        tuple(large),
        tuple(path for path in changed if path in fleeting),
    )


def restore_base(model: nn.Module) -> None:
    """Restore the base's buffers, warn of changed ones without a copy, and forget the samples."""
    changed = changed_base(model)
    if path := next(iter([*changed.fleeting, *changed.large]), None):
        warnings.warn(
            f'The buffer "{path}" has changed since training began, and no copy of it was made (it is in no '
            "checkpoint, or larger than 64 MiB): eject can't restore it.",
            stacklevel=5,
        )
    _forget(model)
    restore_buffers(model)


def _forget(model: nn.Module) -> None:
    """Undo `remember_base`, in a model or any part of it."""
    for module in base_modules(model):
        found = module.__dict__.pop(_SAMPLES, None)
        if isinstance(found, BaseSamples):
            found.handle.remove()
