"""One thread or task at a time changes what a model computes: `by_row`, `disabled`, packs and `activate` act on its
layers."""

import functools
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType
from typing import Any, Concatenate, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from rankwise.errors import AdapterError
from rankwise.lora.adapter import loras_in
from rankwise.lora.targets.modules import Adapter

Rest = ParamSpec("Rest")
Result = TypeVar("Result")

_CALL = nn.Module._wrapped_call_impl.__code__  # pyright: ignore[reportPrivateUsage]
"""The code that every call of a module runs."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

_lock = threading.Lock()
_held: "WeakKeyDictionary[nn.Module, list[Guard]]" = WeakKeyDictionary()
_mine: "ContextVar[frozenset[Guard]]" = ContextVar("_mine", default=frozenset())
"""The guards of this thread, or of this task of asyncio and those that it has started."""


class Guard:
    """A hook before and after the forwards of a held model's modules: it refuses all threads and tasks but the holder.

    Each module has it, since another thread may be within the model's forward when the block begins, or call a part.

    Args:
        what: What holds the model.
        free: Whether all threads may pass, as on a copy of the model.
    """

    def __init__(self, what: str, *, free: bool = False) -> None:
        self.what, self.free = what, free

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any = None) -> None:
        """Refuse a forward of another thread, except in a backward pass or a replica."""
        if torch.compiler.is_compiling() or self.free or self in _mine.get():
            return
        in_backward = torch._C._current_graph_task_id() != -1  # pyright: ignore
        if not in_backward and "_is_replica" not in module.__dict__:
            raise AdapterError(_message(module, self.what))

    def __reduce__(self) -> Any:
        return _free_guard, (self.what,)


def _free_guard(what: str) -> Guard:
    return Guard(what, free=True)


def _message(model: nn.Module, what: str) -> str:
    return (
        f"Another thread is using this {type(model).__name__} inside {what}, which changes what the model computes; "
        "let one thread at a time use it (a lock), or give each a copy."
    )


def check_free(model: nn.Module) -> None:
    """Refuse to change a model that another thread or task holds or runs, or whose rows have their own adapters.

    Raises:
        AdapterError: Another is inside a block of `held_by_thread`, or in a forward pass; or this is inside `by_row`.
    """
    with _lock:
        _check(model)
    _check_idle(model)
    if any(lora.by_row is not None for _, _, lora in loras_in(model)):
        raise AdapterError(
            f"The rows of this {type(model).__name__} have their own adapters inside by_row, so its adapters can't "
            "be changed; leave the block first."
        )


def _check_idle(model: nn.Module) -> None:
    """Raise where another thread is in a forward pass of the model or of a part: its stack has the module's call."""
    others = [frame for thread, frame in sys._current_frames().items() if thread != threading.get_ident()]  # pyright: ignore[reportPrivateUsage]
    called = {id(module) for frame in others for module in _called_in(frame)}
    if called and any(id(module) in called for module in model.modules()):
        raise AdapterError(
            f"Another thread is in a forward pass of this {type(model).__name__}, and would get layers of the adapters "
            "from before and after this call. Let one thread at a time use the model (a lock), or give each a copy."
        )


def _called_in(frame: FrameType | None) -> Iterator[nn.Module]:
    """The modules whose calls are on a stack."""
    while frame is not None:
        if frame.f_code is _CALL:
            yield frame.f_locals["self"]
        frame = frame.f_back


def _check(model: nn.Module) -> None:
    """Raise where the model, or a part of it, is held elsewhere."""
    if not _held:
        return
    mine = _mine.get()
    for module in model.modules():
        if any(guard not in mine for guard in _held.get(module, ())):
            raise AdapterError(_message(model, _held[module][-1].what))


def _of_the_base(module: nn.Module, seen: set[nn.Module]) -> Iterator[nn.Module]:
    """A module and all inside it, but for adapters and scripts, which take no hooks."""
    if module in seen or isinstance(module, Adapter | torch.jit.ScriptModule):
        return
    seen.add(module)
    yield module
    for child in module.children():
        yield from _of_the_base(child, seen)


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of a module, or a backward pass through it, runs hooks. Guards are none: they compute nothing, and
    every module of a sweep has one.

    Examples:
        >>> model = nn.Linear(2, 2)
        >>> with held_by_thread(model, "by_row"):
        ...     has_hooks(model)
        False
    """
    hooks = (hook for kind in _HOOKS for hook in module.__dict__[kind].values())
    return any(not isinstance(hook, Guard) for hook in hooks)


@contextmanager
def held_by_thread(model: nn.Module, what: str) -> Generator[None]:
    """Lock a model for this thread, or asyncio task: others can neither run it nor lock it inside this block.

    Raises:
        AdapterError: Another holds it, or a part of it; or a block that was entered later is still open at the end.

    Examples:
        >>> model = nn.Linear(2, 2)
        >>> with held_by_thread(model, "by_row"):
        ...     model(torch.ones(2)).shape
        torch.Size([2])
    """
    with _guarded(model, list(_of_the_base(model, set())), what):
        yield


def changes_model(
    function: Callable[Concatenate[nn.Module, Rest], Result],
) -> Callable[Concatenate[nn.Module, Rest], Result]:
    """Lock a model's adapters during a function that changes them, so that no forward pass sees half a change.

    It refuses what `check_free` does, and a forward pass of another thread that reaches an adapted layer meanwhile.
    """

    @functools.wraps(function)
    def call(model: nn.Module, *args: Rest.args, **kwargs: Rest.kwargs) -> Result:
        check_free(model)
        with _guarded(model, [layer for _, layer, _ in loras_in(model)], function.__name__):
            _check_idle(model)  # again: whatever begins from here on meets the guard
            return function(model, *args, **kwargs)

    return call


@contextmanager
def _guarded(model: nn.Module, modules: Iterable[nn.Module], what: str) -> Generator[None]:
    """Keep other threads from running or locking these modules of a model inside this block."""
    guard, handles, modules = Guard(what), list[RemovableHandle](), list(dict.fromkeys(modules))
    with _lock:
        _check(model)
        for module in modules:
            _held.setdefault(module, []).append(guard)
    _mine.set(_mine.get() | {guard})
    last = True
    try:
        for module in modules:
            handles.append(module.register_forward_pre_hook(guard))
            if any(isinstance(child, Adapter) for child in module.children()):
                # What was inside this layer when the block began has had its update from elsewhere.
                handles.append(module.register_forward_hook(guard))
        yield
    finally:
        for handle in handles:
            handle.remove()
        _mine.set(_mine.get() - {guard})
        with _lock:
            for module in modules:
                guards = _held[module]
                last = last and guards[-1] is guard
                guards.remove(guard)
                if not guards:
                    del _held[module]
        if not last:
            raise AdapterError(
                f"{what} was left while a block of the same {type(model).__name__} that was entered later is still "
                "open, so outputs inside may have been another adapter's. Leave blocks in the reverse order; give each "
                "generator a copy of the model."
            )
