"""The one hook before the forwards of an injected model: each further one would cost every forward .3 us.

A model that is one adapted layer has none: the layer's own hook, which comes behind the layer's forward, looks then,
and in train mode alone. Looking costs such a model 2% of a small forward, and there is little that could change.

What looks refers to the model's modules, so no module but the model refers to what looks: a cycle of references would
keep a model in memory until Python looks for cycles.
"""

import weakref
from collections.abc import Callable
from typing import Any

from torch import compiler, is_grad_enabled, nn
from torch.compiler import is_dynamo_compiling
from torch.utils.hooks import RemovableHandle

from rankwise.lora.adapter import LoRA

Look = Callable[[nn.Module], None]
"""Is given the model."""

_BEFORE = "_rankwise_before_forward"
"""Attribute of a model that is one adapted layer: its `BeforeForward`."""


class BeforeForward:
    """What is looked at before each forward of a model, and before those of its training; nothing while it is compiled.

    Args:
        model: The injected model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.always: list[Look] = []
        self.in_training: list[Look] = []
        layer = next((lora for lora in _loras_of(model) if lora.is_called), None)
        self.hook: RemovableHandle | None = None
        if layer is None:
            self.hook = model.register_forward_pre_hook(self.before)
        else:
            layer.looks = _BEFORE
            setattr(model, _BEFORE, self)

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

    def remove(self, look: Look, model: nn.Module) -> None:
        """Look no further."""
        for looks in (self.always, self.in_training):
            if look in looks:
                looks.remove(look)
        if self.always or self.in_training:
            return
        if self.hook is not None:
            self.hook.remove()
        elif model.__dict__.get(_BEFORE) is self:
            delattr(model, _BEFORE)
            for lora in _loras_of(model):
                lora.looks = None


class WeakHook:
    """A hook as they hold it that look from there: with a strong reference, only the garbage collector would free them.

    Copies and pickles of it hold the hook's copy.

    Args:
        hook: The hook, which the model holds.
    """

    def __init__(self, hook: BeforeForward) -> None:
        self._hook: Callable[[], BeforeForward | None] = weakref.ref(hook)

    def __getstate__(self) -> tuple[BeforeForward | None]:
        """A weak reference has no copies and no pickle."""
        return (self._hook(),)

    def __setstate__(self, state: tuple[BeforeForward | None]) -> None:
        """Hold the copy of the hook; the model's copy holds it, too."""
        (hook,) = state
        self._hook = weakref.ref(hook) if hook is not None else lambda: None

    def remove(self, look: Look, model: nn.Module) -> None:
        """Look no further."""
        hook = self._hook()
        if hook is not None:
            hook.remove(look, model)


def _loras_of(model: nn.Module) -> list[LoRA]:
    """The adapters of a model that is itself a layer."""
    return [child for child in model.children() if isinstance(child, LoRA)]


def before_forward(model: nn.Module) -> BeforeForward:
    """What is looked at before a model's forwards; nothing yet where it has no hook for it."""
    owners = [getattr(hook, "__self__", None) for hook in model._forward_pre_hooks.values()]  # pyright: ignore[reportPrivateUsage]
    owners += [model.__dict__.get(lora.looks) for lora in _loras_of(model) if lora.looks is not None]
    return next((looks for looks in owners if isinstance(looks, BeforeForward)), None) or BeforeForward(model)
