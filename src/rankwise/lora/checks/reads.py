"""Record which layers a forward pass calls, and whose weights it reads without a call."""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from rankwise.lora.base.modes import in_eval
from rankwise.lora.checks.uncompiled_mode import UncompiledMode, tensors_among
from rankwise.lora.targets.find import Targets
from rankwise.lora.targets.modules import named_once, submodule, unwrapped
from rankwise.lora.targets.readers import Reader

_NO_READING = {
    f"aten::{name}"
    for like in ("zeros", "ones", "empty", "full")
    for name in (f"{like}_like", f"new_{like}", f"new_{like}_strided")
} | {"aten::rand_like", "aten::randn_like", "aten::_cudnn_rnn_flatten_weight"}
"""Operations that only ask for a tensor's shape and type, or change its layout (RNN.flatten_parameters)."""


@dataclass(frozen=True)
class WeightPlace:
    """A weight, and where its adapter acts.

    Args:
        layer: The module that has it.
        parameter: Its name there.
        reader: The module during whose forward the adapter acts: the layer itself if it is called.
    """

    layer: nn.Module
    parameter: str
    reader: nn.Module

    @property
    def key(self) -> tuple[nn.Module, str]:
        """The layer and its weight's name."""
        return self.layer, self.parameter


class Uses(UncompiledMode):
    """Records the uses of weights while a model runs.

    Operations are seen below autograd, where a mode changes neither results nor the way torch takes.

    Args:
        model: The model.
        places: Weights in it.
    """

    def __init__(self, model: nn.Module, places: Iterable[WeightPlace]) -> None:
        super().__init__()
        self.called: set[nn.Module] = set()
        self._model = unwrapped(model)
        self._running = [self._model]
        self._outside: dict[WeightPlace, list[nn.Module]] = {}
        self._around: dict[nn.Module, list[nn.Module]] = {}
        self._owners: dict[int, list[WeightPlace]] = {}
        for place in places:
            weight = place.layer._parameters.get(place.parameter)  # pyright: ignore[reportPrivateUsage]  (None where it is computed)
            if weight is not None:
                self._owners.setdefault(id(weight), []).append(place)
        self._readers = dict.fromkeys(place.reader for owners in self._owners.values() for place in owners)

    @contextmanager
    def noting(self) -> Generator[None]:
        """Record inside a `with` block."""
        handles = [
            register_module_forward_pre_hook(self._begin),
            register_module_forward_hook(self._end, always_call=True),
            # Last of a module's hooks: what an adapter there already reads of the weight is no reading from outside.
            *(reader.register_forward_hook(self._leave, always_call=True) for reader in self._readers),
        ]
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _begin(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.called.add(module)
        if module in self._readers:
            self._around[module] = self._all_running(self._around.get(module))
        self._running.append(module)

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        if module not in self._readers:
            self._leave(module, args, output)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        if self._running[-1] is module:
            self._running.pop()

    def _all_running(self, before: list[nn.Module] | None) -> list[nn.Module]:
        """Return the modules that run now and ran at the other times too, outermost first."""
        return [module for module in self._running if before is None or module in before]

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation, and note which weights are among its arguments while none of their adapters acts."""
        kwargs = kwargs or {}
        # What an operation writes to is not read: RWKV divides weights of its layers in place before its first run.
        given = args[1:] if func._schema.is_mutable else args
        for tensor in tensors_among((*given, *kwargs.values())):
            owners = self._owners.get(id(tensor), ())
            if not owners or func.name().split(".")[0] in _NO_READING:
                continue
            if not any(place.reader in self._running for place in owners):
                for place in owners:
                    self._outside[place] = self._all_running(self._outside.get(place))
        return func(*args, **kwargs)

    def readers(self) -> dict[tuple[nn.Module, str], Reader]:
        """Return the weights that were read where their adapters didn't act, each with the innermost module that has
        the layer inside it and in whose run all happened: these readings, and those where the adapter acts now."""
        paths = dict(named_once(self._model)) if self._outside else {}
        found: dict[tuple[nn.Module, str], Reader] = {}
        for place, outside in self._outside.items():
            around = self._around.get(place.reader, outside)
            found[place.key] = self._reader([module for module in outside if module in around], paths[place.layer])
        return found

    def _reader(self, running: list[nn.Module], paths: list[str]) -> Reader:
        below: dict[nn.Module, str] = {}
        for path in paths:
            names = path.split(".")
            for n in range(len(names)):
                below.setdefault(submodule(self._model, ".".join(names[:n])), ".".join(names[n:]))
        module = next(module for module in reversed(running) if module in below)
        return Reader(module, below[module])


def uses_of(model: nn.Module, places: Iterable[WeightPlace], example: Any) -> Uses:
    """Run a model once, in eval mode and without gradients, and return what it did with some weights.

    Modes and random number generators are restored.

    Args:
        model: The model.
        places: The weights.
        example: Its input: a tensor, a mapping of keyword arguments, or a tuple or list of arguments.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> uses_of(model, [WeightPlace(model[0], "weight", model[0])], torch.ones(1, 2)).called >= {*model}
        True
    """
    uses = Uses(model, places)
    with in_eval(model), torch.random.fork_rng(), torch.no_grad(), uses.noting():
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


def weight_places(targets: Targets) -> Iterator[WeightPlace]:
    """Yield the weights of targets, ties among them."""
    for target in targets.adapted:
        yield WeightPlace(target.module, target.parameter, target.reader.module if target.reader else target.module)
        for tie in target.ties:
            yield WeightPlace(tie.module, "weight", tie.reader.module if tie.reader else tie.module)


def with_readers(targets: Targets, uses: Uses) -> Targets:
    """Give the targets whose weights are read where their adapters wouldn't act the modules that read them."""
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
