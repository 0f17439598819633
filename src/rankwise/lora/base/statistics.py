"""Running statistics of normalisation layers: an adapter trains over the base's, so they stay as they are.

In train mode BatchNorm and InstanceNorm (with `track_running_stats`) normalise by the batch and move their running
statistics. A file of an adapter doesn't hold these, and the base mustn't change. In an injected model such a layer
computes as in eval mode, for the length of each call; `module.training` is what it was before and after. A layer that
an adapter trains in full (`modules_to_save`) has its own statistics and moves them.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rankwise.errors import AdapterError
from rankwise.lora.offloaded import has_data, in_fake_mode
from rankwise.lora.targets.modules import base_modules, named_once, unwrapped
from rankwise.lora.trained_modules import TRAINED_CHILD, TrainedModules

_FROZEN = "_rankwise_statistics"
"""Attribute of an injected model: the `FrozenStatistics`."""


class FrozenStatistics:
    """Lets the normalisation layers of a model compute with the base's statistics.

    Args:
        model: The injected model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.norms: dict[str, nn.Module] = {}
        self.handles: list[RemovableHandle] = []
        for module, names in named_once(model):
            if has_statistics(module):
                self.norms[names[0]] = module
                frozen = _FrozenNorm(names[0])
                self.handles += [
                    module.register_forward_pre_hook(frozen.hold, prepend=True),
                    module.register_forward_hook(frozen.release, always_call=True),
                ]


class _FrozenNorm:
    """The hooks of one normalisation layer, which refer to no module: the layer refers to them.

    Args:
        path: The layer's.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.held = False
        self.before: Statistics | None = None

    def hold(self, norm: nn.Module, args: tuple[Any, ...]) -> None:
        """Before the call: eval mode, unless the active adapter trains the layer in full."""
        if norm.training and not torch.compiler.is_compiling():
            self._refuse_reset(norm)
        trained = norm._modules.get(TRAINED_CHILD)  # pyright: ignore[reportPrivateUsage]
        own = isinstance(trained, TrainedModules) and trained.active and not trained.disabled and not trained.merged
        if norm.training and not own:
            norm.training = False
            self.held = True

    def _refuse_reset(self, norm: Any) -> None:
        """Raise where the statistics were thrown away, to be taken again by training forwards: they stay frozen."""
        if not has_data(norm.running_mean) or in_fake_mode():
            return
        before, version = self.before, version_of(norm.running_mean)
        if before is None or (before.mean_is, before.version) != (id(norm.running_mean), version):
            if before is not None and before.had_moved and not _have_moved(norm):
                before.give_back(norm)
                raise AdapterError(
                    f'The statistics of "{self.path}" were reset (update_bn of torch.optim.swa_utils, '
                    "reset_running_stats). An adapter keeps those of the base, so no forward would take them anew; "
                    "they have been given back. Merge and eject first, or train the layer in full (modules_to_save)."
                )
            self.before = Statistics(norm)

    def release(self, norm: nn.Module, args: tuple[Any, ...], output: object) -> None:
        """After the call, also after one that failed: the mode from before."""
        if self.held:
            self.held = False
            norm.training = True


class Statistics:
    """A copy of a normalisation layer's statistics, to restore.

    Args:
        norm: The layer.
    """

    def __init__(self, norm: Any) -> None:
        self.had_moved, self.momentum = _have_moved(norm), norm.momentum
        self.values: dict[str, Tensor] = {name: t.detach().clone() for name, t in _statistics_of(norm).items()}
        self.mean_is, self.version = id(norm.running_mean), version_of(norm.running_mean)

    def give_back(self, norm: Any) -> None:
        """Give a layer these statistics."""
        with torch.no_grad():
            for name, tensor in _statistics_of(norm).items():
                tensor.copy_(self.values[name])
        norm.momentum = self.momentum
        self.mean_is, self.version = id(norm.running_mean), version_of(norm.running_mean)


def _statistics_of(norm: nn.Module) -> dict[str, Tensor]:
    return {name: buffer for name, buffer in norm.named_buffers(recurse=False) if name in _NAMES}


_NAMES = ("running_mean", "running_var", "num_batches_tracked")


def _have_moved(norm: Any) -> bool:
    return bool(norm.running_mean.any()) or not bool((norm.running_var == 1).all())


def version_of(tensor: Tensor) -> int:
    """Return how often a tensor was changed in place; tensors of inference mode don't say."""
    return -1 if tensor.is_inference() else tensor._version


def has_statistics(module: nn.Module) -> bool:
    """Tell whether a layer moves running statistics in train mode.

    Examples:
        >>> has_statistics(nn.BatchNorm1d(2)), has_statistics(nn.InstanceNorm1d(2)), has_statistics(nn.LayerNorm(2))
        (True, False, False)
    """
    norm = nn.modules.batchnorm._NormBase  # pyright: ignore[reportPrivateUsage]
    return isinstance(module, norm) and isinstance(module.running_mean, torch.Tensor)


def freeze_statistics(model: nn.Module) -> tuple[str, ...]:
    """Freeze the statistics of a model's normalisation layers, and return the paths of these."""
    thaw_statistics(model)
    frozen = FrozenStatistics(model)
    if frozen.norms:
        setattr(unwrapped(model), _FROZEN, frozen)
    return tuple(frozen.norms)


def frozen_norms(model: nn.Module) -> dict[str, nn.Module]:
    """Return the normalisation layers whose statistics are frozen, by path."""
    found = (module.__dict__.get(_FROZEN) for module in base_modules(model))
    frozen = next((it for it in found if isinstance(it, FrozenStatistics)), None)
    return {} if frozen is None else frozen.norms


def thaw_statistics(model: nn.Module) -> None:
    """Undo `freeze_statistics`, in a model or any part of it."""
    for module in base_modules(model):
        frozen = module.__dict__.pop(_FROZEN, None)
        if isinstance(frozen, FrozenStatistics):
            for handle in frozen.handles:
                handle.remove()
