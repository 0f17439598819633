"""Check at every forward that each adapted layer, with its weight's shape, and each frozen norm are still there.

Layers are replaced after `inject` too: a vocabulary is resized, norms are made synchronous or fused into convolutions.
Looking costs some 0.1 us for each module on the way to an adapted layer.
"""

import warnings
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from rankwise.errors import AdapterError
from rankwise.lora.adapter import LoRA, loras_in
from rankwise.lora.base.before_forward import WeakHook, before_forward
from rankwise.lora.base.statistics import freeze_statistics, frozen_norms
from rankwise.lora.checks.complete import lost_message, lost_paths
from rankwise.lora.targets.modules import base_modules, unwrapped
from rankwise.lora.trained_modules import trained_modules

_STILL_THERE = "_rankwise_still_there"
"""Attribute of an injected model: its `StillThere`."""

Edge = tuple[dict[str, nn.Module | None], str, nn.Module]
"""The children of a module, the name of one, and what it is."""

Parameters = Mapping[str, nn.Parameter | None]
"""A layer's own: the layer may be the model, which refers to what looks at it."""


class StillThere:
    """Looks at the structure of an injected model before each forward.

    Args:
        model: The injected model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.warned: set[str] = set()
        self.take(model)
        hook = before_forward(model)
        hook.always.append(self.look)
        self.hook = WeakHook(hook)

    def take(self, model: nn.Module) -> None:
        """Record the structure that must stay."""
        found = list(loras_in(model))
        self.attached = {
            name: attached for _, _, lora in found for name, attached in lora.attached.items() if name in lora.scale
        }
        self.norms = frozen_norms(model)
        trained = (layer for layer, _ in trained_modules(model).values())
        self.edges = _edges(model, {*(layer for _, layer, _ in found), *trained, *self.norms.values()})
        self.weights = [
            (names[0], lora, layer._parameters, lora.parameter, weight.shape)  # pyright: ignore[reportPrivateUsage]
            for names, layer, lora in found
            if (weight := _plain_weight(layer._parameters, lora)) is not None  # pyright: ignore[reportPrivateUsage]
        ]

    def look(self, model: nn.Module) -> None:
        """Before a forward: raise or warn if the structure has changed."""
        for children, name, module in self.edges:
            if children.get(name) is not module:
                self._changed(model)
                return
        for path, lora, parameters, name, shape in self.weights:
            weight = parameters.get(name)
            if weight is not None and weight.shape != shape and _was_resized(parameters, lora, weight, shape):
                raise AdapterError(
                    f'The weight of "{path}" has shape {tuple(weight.shape)} now and had {tuple(shape)} when adapter '
                    f'"{next(iter(lora.scale))}" was attached: a vocabulary was resized after inject. Change the model '
                    "first, and then inject or load_adapter."
                )

    def _changed(self, model: nn.Module) -> None:
        for name, attached in self.attached.items():
            there = any(name in lora.scale for _, _, lora in loras_in(model))
            if lost := lost_paths(model, name) if there else [*attached.adapted]:
                message = lost_message(name, lost)
                if model.training and torch.is_grad_enabled():
                    raise AdapterError(f"{message} Put the adapted layer back, or change the model first, then inject.")
                self._warn(f"{message} Outputs are without it.")
        if any(True for _ in loras_in(model)):
            before = self.norms
            freeze_statistics(model)
            if gone := next((path for path in before if path not in frozen_norms(model)), None):
                self._warn(
                    f'The normalisation layer "{gone}" has left the model. Where it was fused into the layer before '
                    "it, the adapter of that layer acts on the wrong scale: merge before fusing."
                )
        self.take(model)

    def _warn(self, message: str) -> None:
        if message not in self.warned:
            self.warned.add(message)
            warnings.warn(message, stacklevel=5)


def _plain_weight(parameters: Parameters, lora: LoRA) -> Tensor | None:
    weight = parameters.get(lora.parameter)
    return weight if type(weight) is nn.Parameter else None


def _was_resized(parameters: Parameters, lora: LoRA, weight: Tensor, shape: torch.Size) -> bool:
    """Tell whether a shape has changed for good: sharding makes weights flat or empty for a while."""
    plain = _plain_weight(parameters, lora) is not None and not lora.merged
    return plain and weight.ndim == len(shape) and weight.numel() > 0


def _edges(model: nn.Module, modules: set[nn.Module]) -> list[Edge]:
    """Return the places of modules in a model, and of all modules around them."""
    above: dict[nn.Module, tuple[nn.Module, str]] = {}
    for parent in base_modules(model):
        for name, child in parent._modules.items():  # pyright: ignore[reportPrivateUsage]
            if child is not None:
                above.setdefault(child, (parent, name))
    found: dict[nn.Module, Edge] = {}
    for module in modules:
        for child in _way_up(module, model, above):
            if child in found:
                break
            parent, name = above[child]
            found[child] = parent._modules, name, child  # pyright: ignore[reportPrivateUsage]
    return list(found.values())


def _way_up(module: nn.Module, model: nn.Module, above: dict[nn.Module, tuple[nn.Module, str]]) -> Iterator[nn.Module]:
    while module is not model and module in above:
        yield module
        module = above[module][0]


def watch_structure(model: nn.Module) -> None:
    """Look at the structure of an injected model before each forward."""
    stop_watching_structure(model)
    setattr(unwrapped(model), _STILL_THERE, StillThere(model))


def stop_watching_structure(model: nn.Module) -> None:
    """Undo `watch_structure`, in a model or any part of it."""
    for module in base_modules(model):
        found = module.__dict__.pop(_STILL_THERE, None)
        if isinstance(found, StillThere):
            found.hook.remove(found.look, module)
