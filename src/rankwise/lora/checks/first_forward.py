"""Check in the first forward whether every adapted layer is called, and which weights are read without a call."""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rankwise.errors import AdapterError
from rankwise.lora.adapter import LoRA, loras_in
from rankwise.lora.base.snapshot import Snapshot
from rankwise.lora.checks.reads import Uses, WeightPlace
from rankwise.lora.targets.modules import base_modules, named_once, submodule, unwrapped
from rankwise.lora.targets.readers import Reader
from rankwise.lora.trained_modules import TrainedModules, trained_modules, trained_readers

_WATCH = "_rankwise_watch"
"""Attribute of an injected model until its first forward: the `FirstForward`."""


class FirstForward:
    """Looks at the first forward of an injected model.

    An adapter on a layer that is never called does nothing, and nothing fails; one on a layer that is called and
    whose weight is also read elsewhere misses it. Where a weight is read while its adapter doesn't act, the adapter
    is moved to a module around both, and the forward is run again with it. What is neither called nor read is warned
    of.

    Args:
        model: The injected model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.reads: Uses | None = None
        self.before: Snapshot | None = None
        self.noting = ExitStack()
        self.hooks: list[RemovableHandle] = [
            model.register_forward_pre_hook(self.begin),
            model.register_forward_hook(self.end, with_kwargs=True, always_call=True),
        ]

    def begin(self, model: nn.Module, args: tuple[Any, ...]) -> None:
        """Start recording."""
        if torch.compiler.is_compiling() or self.reads is not None:
            return
        self.reads, self.before = Uses(model, _to_watch(model)), Snapshot(model)
        self.noting.enter_context(self.reads.noting())

    def end(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> object:
        """Move adapters to where weights are read, warn, and stop watching."""
        uses, before = self.reads, self.before
        if torch.compiler.is_compiling() or uses is None:
            return None
        self.noting.close()
        self.reads = self.before = None
        if output is None:  # it failed, or returned nothing
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
        if before is not None:  # so that statistics and random numbers advance by one forward, not two
            before.restore()
        return model(*args, **kwargs)

    def remove(self) -> None:
        """Remove all hooks."""
        for handle in self.hooks:
            handle.remove()


def _is_plain(value: object) -> bool:
    """Tell whether a forward can't change its arguments: tensors, numbers, strings, None, and lists of them."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, Mapping):
        return type(value) is dict and all(map(_is_plain, value.values()))
    return value is None or isinstance(value, Tensor | bool | int | float | str | torch.dtype)


def move_to_readers(model: nn.Module, uses: Uses) -> list[str]:
    """Let adapters act on the weight itself where it was read without them; return their paths."""
    readers = uses.readers()
    moved = [(path, lora, place) for path, lora, place in _places(model) if place.key in readers]
    for _, lora, place in moved:
        lora.hook_on(place.layer, readers[place.key])
    # Of the readers of a layer's parameters the outermost: it runs around the others.
    around: dict[TrainedModules, Reader] = {}
    paths = [path for path, _, _ in moved]
    for path, trained, place in _replacement_places(model):
        if place.key in readers:
            found, other = readers[place.key], around.get(trained)
            around[trained] = found if other is None or len(found.below) > len(other.below) else other
            paths.append(path)
    for trained, reader in around.items():
        trained.hook_on(reader)
    return paths


def warn_of_missed(model: nn.Module, called: Iterable[nn.Module]) -> None:
    """Warn of the adapted layers that a forward neither called nor read, under none of the names of their weight."""
    called = {*called, unwrapped(model)}
    places = list(_places(model))
    reached = {id(it) for _, lora, place in places if place.reader in called for it in _trained(lora)}
    missed = [path for path, lora, _ in places if not any(id(it) in reached for it in _trained(lora))]
    if missed:
        warnings.warn(
            f"The first forward reached {len(missed)} of the adapted layers not at all: {_listed(missed)}. There the "
            "adapter does nothing. Ignore this if the input only took another path.",
            stacklevel=2,
        )


def _trained(lora: LoRA) -> Iterator[Tensor]:
    for name in lora.names:
        yield from lora.trained(name)


def _listed(paths: list[str]) -> str:
    return ", ".join(f'"{path}"' for path in paths[:5]) + (", ..." if len(paths) > 5 else "")


def watch(model: nn.Module) -> None:
    """Watch the next forward of a model for adapters that it doesn't reach."""
    stop_watching(model)
    if any(place.reader is not unwrapped(model) for _, _, place in _places(model)):
        setattr(model, _WATCH, FirstForward(model))


def _to_watch(model: nn.Module) -> list[WeightPlace]:
    """Return the adapted weights whose adapters aren't active throughout a forward."""
    places = [place for found in (_places(model), _replacement_places(model)) for _, _, place in found]
    return [place for place in places if place.reader is not unwrapped(model)]


def _places(model: nn.Module) -> Iterator[tuple[str, LoRA, WeightPlace]]:
    """Yield the adapted weights, with their paths."""
    for names, layer, lora in loras_in(model):
        path = ".".join(filter(None, (names[0], lora.parameter if lora.is_parameter else "")))
        yield path, lora, WeightPlace(layer, lora.parameter, _reader(model, names, layer, lora.below))


def _replacement_places(model: nn.Module) -> Iterator[tuple[str, TrainedModules, WeightPlace]]:
    """Yield the parameters that active adapters train in full, with their paths."""
    kept = {
        ".".join(filter(None, (path, leaf))): (leaf, trained)
        for path, (_, trained) in trained_modules(model).items()
        for leaf in trained.tensors(trained.active)
    }
    names = dict(named_once(model)) if kept else {}
    for path, (owner, _) in (trained_readers(model, kept) if kept else {}).items():
        leaf, trained = kept[path]
        yield path, trained, WeightPlace(owner, leaf, _reader(model, names[owner], owner, trained.below))


def _reader(model: nn.Module, names: list[str], layer: nn.Module, below: str | None) -> nn.Module:
    """Return the module during whose forward an adapter acts; the model if that module contains it."""
    if not below:
        return layer
    inner = [name for name in names if name == below or name.endswith(f".{below}")]
    return submodule(model, inner[0].removesuffix(below).removesuffix(".")) if inner else unwrapped(model)


def stop_watching(model: nn.Module) -> None:
    """Undo `watch`, in a model or any part of it."""
    for module in base_modules(model):
        watching = module.__dict__.pop(_WATCH, None)
        if isinstance(watching, FirstForward):
            watching.remove()
