"""The one hook before the forwards of an injected model: each further one would cost every forward .3 us."""

from collections.abc import Callable
from typing import Any

from torch import compiler, is_grad_enabled, nn
from torch.compiler import is_dynamo_compiling
from torch.utils.hooks import RemovableHandle

Look = Callable[[nn.Module], None]
"""Is given the model."""


class BeforeForward:
    """What is looked at before each forward of a model, and before those of its training; nothing while it is compiled.

    Args:
        model: The injected model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.always: list[Look] = []
        self.in_training: list[Look] = []
        self.hook: RemovableHandle = model.register_forward_pre_hook(self.look)

    def look(self, model: nn.Module, args: tuple[Any, ...]) -> None:
        """The hook."""
        # `is_compiling`, in half its time.
        if is_dynamo_compiling() or compiler._is_compiling_flag:  # pyright: ignore[reportPrivateUsage]
            return
        for look in self.always:
            look(model)
        if self.in_training and model.training and is_grad_enabled():
            for look in tuple(self.in_training):  # some end themselves
                look(model)

    def remove(self, look: Look) -> None:
        """Look no further."""
        for looks in (self.always, self.in_training):
            if look in looks:
                looks.remove(look)
        if not self.always and not self.in_training:
            self.hook.remove()


def before_forward(model: nn.Module) -> BeforeForward:
    """What is looked at before a model's forwards; nothing yet where it has no hook for it."""
    hooks = (getattr(hook, "__self__", None) for hook in model._forward_pre_hooks.values())  # pyright: ignore[reportPrivateUsage]
    return next((looks for looks in hooks if isinstance(looks, BeforeForward)), None) or BeforeForward(model)
