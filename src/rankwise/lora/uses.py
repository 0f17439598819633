"""What a forward pass does with some weights: which layers it calls, and which weights it reads from outside."""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from rankwise.lora.modules import named_once
from rankwise.lora.readers import Reader
from rankwise.lora.targets import Targets

_SHAPE_ONLY = {
    f"aten::{name}"
    for like in ("zeros", "ones", "empty", "full")
    for name in (f"{like}_like", f"new_{like}", f"new_{like}_strided")
} | {"aten::rand_like", "aten::randn_like"}
"""Operations that ask a tensor for its shape and type only."""


Key = tuple[nn.Module, str]
"""A module and the name of a weight in it."""


class Uses(TorchDispatchMode):
    """Notes the uses of weights while a model runs.

    Operations are seen below autograd, where a mode changes neither results nor the way torch takes.

    Args:
        model: The model.
        inside: Weights in it, each with the module during whose call it is read as its adapter knows: the layer that is
            called, or the module that reads it. Reading it at any other time is reading from outside.
    """

    def __init__(self, model: nn.Module, inside: Mapping[Key, nn.Module]) -> None:
        super().__init__()
        self.called: set[nn.Module] = set()
        self._model = model
        self._running = [model]
        self._inside = inside
        self._enclosing: dict[Key, list[nn.Module]] = {}
        self._keys: dict[int, list[Key]] = {}
        for layer, parameter in inside:
            weight = layer._parameters.get(parameter)  # pyright: ignore[reportPrivateUsage]  (None where it is computed)
            if weight is not None:
                self._keys.setdefault(id(weight), []).append((layer, parameter))
        self._layers = dict.fromkeys(inside.values())

    @contextmanager
    def noting(self) -> Generator[None]:
        """Note what happens in a `with` block."""
        handles = [
            register_module_forward_pre_hook(self._begin),
            register_module_forward_hook(self._end, always_call=True),
            # Last of the layer's hooks: what an adapter there already reads of the weight is no reading from outside.
            *(layer.register_forward_hook(self._leave, always_call=True) for layer in self._layers),
        ]
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _begin(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.called.add(module)
        self._running.append(module)

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        if module not in self._layers:
            self._leave(module, args, output)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        if self._running[-1] is module:
            self._running.pop()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation, and note whose weights are among its arguments while none of their layers runs."""
        kwargs = kwargs or {}
        # What an operation writes to is not read: RWKV divides weights of its layers in place before its first run.
        given = args[1:] if func._schema.is_mutable else args
        for tensor in _tensors((*given, *kwargs.values())):
            keys = self._keys.get(id(tensor), ())
            if keys and func.name().split(".")[0] not in _SHAPE_ONLY and not any(map(self._is_inside, keys)):
                for key in keys:
                    before = self._enclosing.get(key, self._running)
                    self._enclosing[key] = [module for module in self._running if module in before]
        return func(*args, **kwargs)

    def _is_inside(self, key: Key) -> bool:
        return self._inside[key] in self._running

    def readers(self) -> dict[Key, Reader]:
        """Return the weights that were read from outside, each with the innermost module that all these reads happened
        in and that has the weight's module inside it."""
        paths = dict(named_once(self._model)) if self._enclosing else {}
        return {key: self._reader(modules, paths[key[0]]) for key, modules in self._enclosing.items()}

    def _reader(self, running: list[nn.Module], paths: list[str]) -> Reader:
        below: dict[nn.Module, str] = {}
        for path in paths:
            names = path.split(".")
            for n in range(len(names) + 1):
                below.setdefault(self._model.get_submodule(".".join(names[:n])), ".".join(names[n:]))
        module = next(module for module in reversed(running) if module in below)
        return Reader(module, below[module])


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def uses_of(model: nn.Module, inside: Mapping[Key, nn.Module], example: Any) -> Uses:
    """Run a model once, in eval mode and without gradients, and return what it did with some weights.

    Modes and random numbers are afterwards as before.

    Args:
        model: The model.
        inside: As of `Uses`.
        example: Its input: a tensor, a mapping of keyword arguments, or a tuple or list of arguments.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> uses_of(model, {(model[0], "weight"): model[0]}, torch.ones(1, 2)).called >= {*model}
        True
    """
    uses = Uses(model, inside)
    with _in_eval(model), torch.random.fork_rng(), torch.no_grad(), uses.noting():
        call(model, example)
    return uses


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


def known_uses(targets: Targets) -> dict[Key, nn.Module]:
    """Return the weights of targets, ties among them, each with the module during whose call its adapter acts."""
    found: dict[Key, nn.Module] = {}
    for target in targets.adapted:
        found[target.module, target.parameter] = target.reader.module if target.reader else target.module
        for tie in target.ties:
            found[tie.module, "weight"] = tie.reader.module if tie.reader else tie.module
    return found


def with_readers(targets: Targets, uses: Uses) -> Targets:
    """Give the targets whose weights are read from outside the modules that read them."""
    readers = uses.readers()
    adapted = [
        replace(
            target,
            reader=readers.get((target.module, target.parameter), target.reader),
            ties=tuple(replace(tie, reader=readers.get((tie.module, "weight"), tie.reader)) for tie in target.ties),
        )
        for target in targets.adapted
    ]
    return Targets(adapted, targets.left_out)
