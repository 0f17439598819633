"""Which modules a forward calls: asked of an example, or seen at the first forward."""

import warnings
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rankwise.lora.adapter import adapted_layers
from rankwise.lora.modules import named_once

_WATCH = "_rankwise_watch"
"""Attribute of an injected model until its first forward: the `Watch`."""


def called_by(model: nn.Module, example: Any) -> set[nn.Module]:
    """Run a model once, in eval mode and without gradients, and return the modules that were called.

    Modes, buffers and random numbers are afterwards as before.

    Args:
        model: The model.
        example: Its input: a tensor, a mapping of keyword arguments, or a tuple or list of arguments.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> called_by(model, torch.ones(1, 2)) == set(model.modules())
        True
    """
    called: set[nn.Module] = set()
    with _in_eval(model), torch.random.fork_rng(), torch.no_grad(), _noting(dict(named_once(model)), called):
        call(model, example)
    return called


def call(model: nn.Module, example: Any) -> Any:
    """Call a model with a tensor, a mapping of keyword arguments, or a tuple or list of arguments.

    Examples:
        >>> call(nn.Identity(), {"input": torch.ones(1)})
        tensor([1.])
    """
    if isinstance(example, Tensor):
        return model(example)
    return model(**example) if isinstance(example, Mapping) else model(*example)


@contextmanager
def _in_eval(model: nn.Module) -> Generator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _noting(modules: Iterable[nn.Module], called: set[nn.Module]) -> Generator[None]:
    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        called.add(module)

    handles = [module.register_forward_pre_hook(note) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Watch:
    """Looks at the first forward of an injected model, and warns of adapters that it doesn't reach.

    An adapter on a layer that is never called does nothing, and nothing fails.

    Args:
        model: The injected model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.called: list[str] = []
        self.inner: list[RemovableHandle] = []
        begin = model.register_forward_pre_hook(self.begin)
        end = model.register_forward_hook(self.end, always_call=True)
        self.outer = [begin, end]

    def begin(self, model: nn.Module, args: tuple[Any, ...]) -> None:
        """Have every adapted layer note that it is called."""
        if torch.compiler.is_compiling():
            return
        self.called, self.inner = [], []
        for path, layer in _to_be_called(model).items():
            self.inner.append(layer.register_forward_pre_hook(_Note(path, self.called)))

    def end(self, model: nn.Module, args: tuple[Any, ...], output: object) -> None:
        """Warn, and watch no longer."""
        if torch.compiler.is_compiling() or not self.inner:
            return
        missed = [path for path in _to_be_called(model) if path not in self.called]
        stop_watching(model)
        if missed and output is not None:
            shown = ", ".join(f'"{path}"' for path in missed[:5]) + (", ..." if len(missed) > 5 else "")
            warnings.warn(
                f"The first forward called {len(missed)} of the adapted layers not at all: {shown}. There the adapter "
                "does nothing. If their weights are read directly, inject with example=batch, which finds the reader; "
                "if this input only took another way, all is well.",
                stacklevel=2,
            )

    def remove(self) -> None:
        """Take all hooks away."""
        for handle in (*self.inner, *self.outer):
            handle.remove()


class _Note:
    """A hook that notes a path; an object, because a closure can't be pickled."""

    def __init__(self, path: str, called: list[str]) -> None:
        self.path, self.called = path, called

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.called.append(self.path)


def watch(model: nn.Module) -> None:
    """Watch the next forward of a model for adapters that it doesn't reach."""
    stop_watching(model)
    if _to_be_called(model):
        setattr(model, _WATCH, Watch(model))


def _to_be_called(model: nn.Module) -> dict[str, nn.Module]:
    """Return the adapted layers inside a model whose adapters act only when they are called."""
    return {
        path: layer
        for path, (layer, lora) in adapted_layers(model).items()
        if layer is not model and not lora.has_reader
    }


def stop_watching(model: nn.Module) -> None:
    """Undo `watch`, in a model or any part of it."""
    for module in model.modules():
        watching = module.__dict__.pop(_WATCH, None)
        if isinstance(watching, Watch):
            watching.remove()
