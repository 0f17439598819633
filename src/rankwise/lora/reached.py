"""The first forward of an injected model: does it call every adapted layer, or read weights without a call?"""

import warnings
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rankwise.errors import AdapterError
from rankwise.lora.adapter import LoRA, adapted_layers, loras_in
from rankwise.lora.uses import Uses

_WATCH = "_rankwise_watch"
"""Attribute of an injected model until its first forward: the `Watch`."""


class Watch:
    """Looks at the first forward of an injected model.

    An adapter on a layer that is never called does nothing, and nothing fails; one on a layer that is called and
    whose weight is read besides misses the reading. Where a weight is read from outside, its adapter is moved to the
    module that reads it, and the forward is run again with it. What is neither called nor read is warned of.

    Args:
        model: The injected model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.uses: Uses | None = None
        self.noting = ExitStack()
        self.hooks: list[RemovableHandle] = [
            model.register_forward_pre_hook(self.begin),
            model.register_forward_hook(self.end, with_kwargs=True, always_call=True),
        ]

    def begin(self, model: nn.Module, args: tuple[Any, ...]) -> None:
        """Note what happens from here on."""
        if torch.compiler.is_compiling() or self.uses is not None:
            return
        self.uses = Uses(model, {(layer, lora.parameter): acts for layer, lora, acts in _watched(model).values()})
        self.noting.enter_context(self.uses.noting())

    def end(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> object:
        """Move adapters to where weights are read, warn, and watch no longer."""
        uses = self.uses
        if torch.compiler.is_compiling() or uses is None:
            return None
        self.noting.close()
        self.uses = None
        if output is None:  # it failed, or said nothing
            return None
        stop_watching(model)
        moved = move_to_readers(model, uses)
        warn_of_missed(model, uses.called)
        if not moved:
            return None
        if not _is_plain((args, kwargs)):
            raise AdapterError(
                f'The model reads the weight of "{moved[0]}" without calling the layer, which its first forward has '
                "shown; the adapter acts there from now on. Call the model again, with new arguments where the first "
                "forward may have changed them (a cache)."
            )
        return model(*args, **kwargs)

    def remove(self) -> None:
        """Take all hooks away."""
        for handle in self.hooks:
            handle.remove()


def _is_plain(value: object) -> bool:
    """Tell whether a forward leaves its arguments as they were: tensors, numbers, words, nothing, and lists of them."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, Mapping):
        return type(value) is dict and all(map(_is_plain, value.values()))
    return value is None or isinstance(value, Tensor | bool | int | float | str | torch.dtype)


def move_to_readers(model: nn.Module, uses: Uses) -> list[str]:
    """Let adapters act on the weight where it is read, if that is from outside; return their paths."""
    readers = uses.readers()
    moved: list[str] = []
    for path, (layer, lora, _) in _watched(model).items():
        reader = readers.get((layer, lora.parameter))
        if reader is not None:
            lora.hook_on(layer, reader)
            moved.append(path)
    return moved


def warn_of_missed(model: nn.Module, called: Iterable[nn.Module]) -> None:
    """Warn of the adapted layers that a forward neither called nor read."""
    called = {*called}
    missed = [path for path, (_, _, acts) in _watched(model).items() if acts not in called]
    if missed:
        warnings.warn(
            f"The first forward reached {len(missed)} of the adapted layers not at all: {_listed(missed)}. There the "
            "adapter does nothing. If this input only took another way, all is well.",
            stacklevel=2,
        )


def _listed(paths: list[str]) -> str:
    return ", ".join(f'"{path}"' for path in paths[:5]) + (", ..." if len(paths) > 5 else "")


def watch(model: nn.Module) -> None:
    """Watch the next forward of a model for adapters that it doesn't reach."""
    stop_watching(model)
    if any(_acts_in(model, *place) is not model for place in loras_in(model)):
        setattr(model, _WATCH, Watch(model))


def _watched(model: nn.Module) -> dict[str, tuple[nn.Module, LoRA, nn.Module]]:
    """Return the adapted weights inside a model, each with the module during whose call the adapter acts: the layer, or
    the module that reads the weight. The model itself is called in any case."""
    acting = (_acts_in(model, names, layer, lora) for names, layer, lora in loras_in(model))
    found = zip(adapted_layers(model).items(), acting, strict=True)
    return {path: (layer, lora, acts) for (path, (layer, lora)), acts in found if acts is not model}


def _acts_in(model: nn.Module, names: list[str], layer: nn.Module, lora: LoRA) -> nn.Module:
    if not lora.below:
        return layer
    end = f".{lora.below}"
    path = next((path for name in names if (path := f".{name}").endswith(end)), "")
    return model.get_submodule(path.removesuffix(end).removeprefix(".")) if path else layer


def stop_watching(model: nn.Module) -> None:
    """Undo `watch`, in a model or any part of it."""
    for module in model.modules():
        watching = module.__dict__.pop(_WATCH, None)
        if isinstance(watching, Watch):
            watching.remove()
