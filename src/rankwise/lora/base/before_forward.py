"""The one hook before the forwards of an injected model: each further one would cost every forward .3 us.

A model that is one adapted layer has none: the layer's own hook, which comes behind the layer's forward, looks then.
"""

from collections.abc import Callable
from typing import Any

from torch import compiler, is_grad_enabled, nn
from torch.compiler import is_dynamo_compiling
from torch.utils.hooks import RemovableHandle

from rankwise.lora.adapter import LoRA

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
        self.layer = next((lora for lora in _loras_of(model) if lora.is_called), None)
        self.hook: RemovableHandle | None = None
        if self.layer is None:
            self.hook = model.register_forward_pre_hook(self.before)
        else:
            self.layer.looks = self.look

    def before(self, model: nn.Module, args: tuple[Any, ...]) -> None:
        """The hook."""
        # `is_compiling`, in half its time.
        if not (is_dynamo_compiling() or compiler._is_compiling_flag):  # pyright: ignore[reportPrivateUsage]
            self.look(model)

    def look(self, model: nn.Module) -> None:
        """Look at the model in a forward that isn't compiled."""
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
        if self.always or self.in_training:
            return
        if self.hook is not None:
            self.hook.remove()
        if self.layer is not None:
            self.layer.looks = None


def _loras_of(model: nn.Module) -> list[LoRA]:
    """The adapters of a model that is itself a layer."""
    return [child for child in model.children() if isinstance(child, LoRA)]


def before_forward(model: nn.Module) -> BeforeForward:
    """What is looked at before a model's forwards; nothing yet where it has no hook for it."""
    hooks = [*model._forward_pre_hooks.values(), *(lora.looks for lora in _loras_of(model))]  # pyright: ignore[reportPrivateUsage]
    owners = (getattr(hook, "__self__", None) for hook in hooks)
    return next((looks for looks in owners if isinstance(looks, BeforeForward)), None) or BeforeForward(model)
