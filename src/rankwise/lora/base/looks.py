"""What is looked at before the first training forwards of an injected model: by one hook, since torch takes longer for
a hook than most looks do, also in eval mode."""

from collections.abc import Callable
from typing import Any

from torch import nn

_LOOKS = "_rankwise_looks"
"""Attribute of an injected model: its `TrainingLooks`."""

Look = Callable[[nn.Module, tuple[Any, ...]], None]
"""(model, arguments of the forward) -> nothing."""


class TrainingLooks:
    """The looks at one model; with the last one the hook goes.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.looks: list[Look] = []
        self.hook = model.register_forward_pre_hook(self.look)

    def look(self, model: nn.Module, args: tuple[Any, ...]) -> None:
        """Before a forward."""
        if model.training:
            for look in [*self.looks]:  # one may end itself or another
                look(model, args)


def look_in_training(model: nn.Module, look: Look) -> None:
    """Call a function before each forward of a model in train mode."""
    looks = model.__dict__.get(_LOOKS)
    if not isinstance(looks, TrainingLooks):
        looks = TrainingLooks(model)
        setattr(model, _LOOKS, looks)
    looks.looks.append(look)


def stop_looking(model: nn.Module, look: Look) -> None:
    """Undo `look_in_training`."""
    found = model.__dict__.get(_LOOKS)
    if isinstance(found, TrainingLooks) and look in found.looks:
        found.looks.remove(look)
        if not found.looks:
            found.hook.remove()
            del model.__dict__[_LOOKS]
