"""Running statistics of normalisation layers: an adapter trains over the base's, so they stay as they are.

In train mode BatchNorm and InstanceNorm (with `track_running_stats`) normalise by the batch and move their running
statistics. A file of an adapter doesn't hold these, and the base mustn't change. In an injected model such a layer
computes as in eval mode, for the length of each call; `module.training` is what it was before and after. A layer that
an adapter trains whole (`modules_to_save`) has statistics of its own and moves them.
"""

from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from rankwise.lora.targets.modules import named_once, unwrapped
from rankwise.lora.trained_modules import WHOLE_CHILD, TrainedModules

_FROZEN = "_rankwise_statistics"
"""Attribute of an injected model: the `FrozenStatistics`."""


class FrozenStatistics:
    """Lets the normalisation layers of a model compute with the base's statistics.

    Args:
        model: The injected model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.names: list[str] = []
        self.handles: list[RemovableHandle] = []
        self.held: set[nn.Module] = set()
        for module, names in named_once(model):
            if has_statistics(module):
                self.names.append(names[0])
                self.handles += [
                    module.register_forward_pre_hook(self.hold, prepend=True),
                    module.register_forward_hook(self.release, always_call=True),
                ]

    def hold(self, norm: nn.Module, args: tuple[Any, ...]) -> None:
        """Before the call: eval mode, unless the active adapter has the layer whole."""
        whole = norm._modules.get(WHOLE_CHILD)  # pyright: ignore[reportPrivateUsage]
        own = isinstance(whole, TrainedModules) and whole.active and not whole.disabled and not whole.merged
        if norm.training and not own:
            norm.training = False
            self.held.add(norm)

    def release(self, norm: nn.Module, args: tuple[Any, ...], output: object) -> None:
        """After the call, also after one that failed: the mode from before."""
        if norm in self.held:
            self.held.discard(norm)
            norm.training = True


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
    if frozen.names:
        setattr(unwrapped(model), _FROZEN, frozen)
    return tuple(frozen.names)


def thaw_statistics(model: nn.Module) -> None:
    """Undo `freeze_statistics`, in a model or any part of it."""
    for module in model.modules():
        frozen = module.__dict__.pop(_FROZEN, None)
        if isinstance(frozen, FrozenStatistics):
            for handle in frozen.handles:
                handle.remove()
