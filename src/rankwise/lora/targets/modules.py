"""The modules of a model, each once, with all its paths; adapters are skipped, wrappers unwrapped.

A wrapper (torch.compile, activation checkpoints, DistributedDataParallel, FSDP) holds one module and takes its
place. Paths leave out what it adds, so an adapter of a wrapped model has the names it has on the plain one.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from torch import Tensor, nn

from rankwise.lora.offloaded import discards

ADAPTER_CHILD = "lora"
"""Name of the submodule that holds A and B of an adapted layer."""

Result = TypeVar("Result")

Named = tuple[nn.Module, list[str]]
"""A module and all its paths."""

_WRAPPERS = {
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "torch.distributed.algorithms._checkpoint.checkpoint_wrapper.ActivationWrapper": "_checkpoint_wrapped_module",
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": "_fsdp_wrapped_module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.optim.swa_utils.AveragedModel": "module",
    "torch.ao.quantization.stubs.QuantWrapper": "module",
    "timm.utils.model_ema.ModelEmaV2": "module",
    "timm.utils.model_ema.ModelEmaV3": "module",
    "opacus.grad_sample.grad_sample_module.GradSampleModule": "_module",
    "deepspeed.runtime.engine.DeepSpeedEngine": "module",
    "lightning.fabric.wrappers._FabricModule": "_forward_module",
    "lightning_fabric.wrappers._FabricModule": "_forward_module",
}
"""Full name of a wrapper's class -> the child it wraps."""

WRAPPER_WORDS = frozenset(_WRAPPERS.values()) - {"module"}
"""What wrappers add to a path; "module" is left out, for it is also a name that models use."""


_OF_BLOCKS = {"disabled", "by_row"}
"""Attributes of adapters that last for a `with` block."""


class Adapter(nn.Module):
    """A submodule that belongs to an adapter, not to the base."""

    def __getstate__(self) -> dict[str, Any]:
        """Return a copy's state: inside `disabled` or `by_row` as outside, as it never leaves the block."""
        return {name: value for name, value in self.__dict__.items() if name not in _OF_BLOCKS}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Adapter":
        """Move or cast as any module does, but keep the values where `fn` discards them (`to_empty`, "meta").

        A base loads its values from a checkpoint afterwards; an adapter's are nowhere else. 8-bit floats, in which some
        tools store a base between its forwards, would round them.
        """
        before = [
            (module, name, p.data)  # no view of it: torch swaps no tensor that others refer to
            for module in self.modules()
            for name, p in module._parameters.items()
            if p is not None
        ]
        super()._apply(fn, recurse)
        if before and discards(fn):
            for module, name, values in before:
                parameter = module._parameters[name]
                if parameter is None or parameter.is_meta:
                    required = parameter is None or parameter.requires_grad
                    module._parameters[name] = nn.Parameter(values, requires_grad=required)
                elif not values.is_meta:
                    parameter.data.copy_(values)
        for module, name, values in before:
            parameter = module._parameters[name]
            if parameter is not None and parameter.itemsize == 1 < values.itemsize:
                parameter.data = values.to(parameter.device)
        return self


def child_name(parameter: str) -> str:
    """Return the name of the submodule that holds the adapters of a parameter.

    Examples:
        >>> child_name("weight"), child_name("weight_ih_l0")
        ('lora', 'lora_weight_ih_l0')
    """
    return ADAPTER_CHILD if parameter == "weight" else f"{ADAPTER_CHILD}_{parameter}"


_CHILD_OF: dict[type[nn.Module], str] = {}
"""Class -> the child it wraps, empty where it is no wrapper; filled as classes are met.

No functools.cache, because compiled code asks it."""


def _wrapped_child(cls: type[nn.Module]) -> str:
    if cls not in _CHILD_OF:
        names = [f"{ancestor.__module__}.{ancestor.__qualname__}" for ancestor in cls.__mro__]
        _CHILD_OF[cls] = next((_WRAPPERS[name] for name in names if name in _WRAPPERS), "")
    return _CHILD_OF[cls]


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module inside all wrappers.

    Examples:
        >>> layer = nn.Linear(2, 2)
        >>> unwrapped(nn.DataParallel(layer)) is layer, unwrapped(layer) is layer
        (True, True)
    """
    while child := _wrapped_child(type(module)):
        inner = module._modules.get(child)  # pyright: ignore[reportPrivateUsage]
        if inner is None:
            break
        module = inner
    return module


_walked: "ContextVar[dict[tuple[str, nn.Module], Any] | None]" = ContextVar("_walked", default=None)
"""What walks have found inside `structure_kept`: what is asked and the model -> the answer."""


@contextmanager
def structure_kept() -> Generator[None]:
    """Inside this block no module is replaced, but for adapters: each model is walked once, not a dozen times."""
    token = _walked.set({})
    try:
        yield
    finally:
        _walked.reset(token)


def found_once(what: tuple[str, nn.Module], find: Callable[[], Result]) -> Result:
    """Return what a function finds; inside `structure_kept` what it has found before.

    Args:
        what: What it looks for, and in which model.
        find: The function.
    """
    known = _walked.get()
    if known is None:
        return find()
    if what not in known:
        known[what] = find()
    return known[what]


def walk(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return every path and its module, a shared module under each of its names."""

    def find() -> list[tuple[str, nn.Module]]:
        found: list[tuple[str, nn.Module]] = []
        _walk(model, "", found)
        return found

    return found_once(("walk", model), find)


def _walk(module: nn.Module, name: str, found: list[tuple[str, nn.Module]]) -> None:
    # No generator, which would take a frame for each level at every module; and no call for what is no wrapper.
    if _CHILD_OF.get(type(module)) != "":
        module = unwrapped(module)
    found.append((name, module))
    for child, inner in module._modules.items():  # pyright: ignore[reportPrivateUsage]
        if inner is not None and not isinstance(inner, Adapter):
            _walk(inner, f"{name}.{child}" if name else child, found)


def base_modules(model: nn.Module) -> list[nn.Module]:
    """Return every module once, in the model's order, wrappers among them, without adapters and what is inside them:
    three of four modules of an injected model."""

    def find() -> list[nn.Module]:
        found: dict[nn.Module, None] = {}
        _collect(model, found, Adapter)
        return list(found)

    return found_once(("base modules", model), find)


def every_module(model: nn.Module) -> list[nn.Module]:
    """Return what `model.modules()` yields, in a third of the time."""
    found: dict[nn.Module, None] = {}
    _collect(model, found, ())
    return list(found)


def _collect(module: nn.Module, found: dict[nn.Module, None], without: type[nn.Module] | tuple[()]) -> None:
    found[module] = None
    for child in module._modules.values():  # pyright: ignore[reportPrivateUsage]
        if child is not None and child not in found and not isinstance(child, without):
            _collect(child, found, without)


def named_once(model: nn.Module) -> list[Named]:
    """Return every module once, in the model's order, with all its paths."""

    def find() -> list[Named]:
        names: dict[nn.Module, list[str]] = {}
        for name, module in walk(model):
            names.setdefault(module, []).append(name)
        return list(names.items())

    return found_once(("names", model), find)


def submodule(model: nn.Module, path: str) -> nn.Module:
    """Return the module of a path as `walk` gives it.

    Raises:
        AttributeError: There is none.

    Examples:
        >>> model = nn.DataParallel(nn.Sequential(nn.ReLU()))
        >>> submodule(model, "0")
        ReLU()
    """
    module = unwrapped(model)
    for piece in filter(None, path.split(".")):
        child = module._modules.get(piece)  # pyright: ignore[reportPrivateUsage]
        if child is None:
            raise AttributeError(f'The {type(model).__name__} has no submodule "{path}".')
        module = unwrapped(child)
    return module


def path_of_key(model: nn.Module, key: str) -> str:
    """Return the path of a key of `model.state_dict()`, without what wrappers add; empty for what is a wrapper's own.

    Examples:
        >>> path_of_key(nn.DataParallel(nn.Sequential(nn.Linear(2, 2))), "module.0.weight")
        '0.weight'
        >>> from torch.optim.swa_utils import AveragedModel
        >>> path_of_key(AveragedModel(nn.Linear(2, 2)), "n_averaged")
        ''
    """
    kept: list[str] = []
    module: nn.Module | None = model
    for piece in key.split("."):
        while module is not None and (child := _wrapped_child(type(module))) not in ("", piece):
            if piece in module._buffers or piece in module._parameters:  # pyright: ignore[reportPrivateUsage]
                return ""
            module = module._modules.get(child)  # pyright: ignore[reportPrivateUsage]
        if module is None or not _wrapped_child(type(module)):
            kept.append(piece)
        module = None if module is None else module._modules.get(piece)  # pyright: ignore[reportPrivateUsage]
    return ".".join(kept)


def base_tensors(model: nn.Module, *, buffers: bool = True) -> dict[str, Tensor]:
    """Return the base's parameters and buffers under all their paths, without those of adapters."""
    found: dict[str, Tensor] = {}
    for path, module in walk(model):
        for kind in (module._parameters, module._buffers) if buffers else (module._parameters,):  # pyright: ignore[reportPrivateUsage]
            for leaf, tensor in kind.items():
                if tensor is not None:
                    found[f"{path}.{leaf}" if path else leaf] = tensor
    return found
