"""One thread at a time changes what a model computes: `by_row`, `disabled`, packs and `activate` act on its layers."""

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from rankwise.errors import AdapterError
from rankwise.lora.adapter import loras_in

_lock = threading.Lock()
_held: "WeakKeyDictionary[nn.Module, list[Guard]]" = WeakKeyDictionary()


class Guard:
    """A forward pre-hook that refuses every thread but one.

    Args:
        thread: Its identifier; None lets all pass, as on a copy of the model.
        what: What holds the model.
    """

    def __init__(self, thread: int | None, what: str) -> None:
        self.thread, self.what = thread, what

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Refuse a forward of another thread, those of a backward pass and of replicas aside."""
        if torch.compiler.is_compiling() or self.thread in (None, threading.get_ident()):
            return
        in_backward = torch._C._current_graph_task_id() != -1  # pyright: ignore
        if not in_backward and "_is_replica" not in module.__dict__:
            raise AdapterError(_message(module, self.what))

    def __reduce__(self) -> tuple[type["Guard"], tuple[None, str]]:
        return Guard, (None, self.what)


def _message(model: nn.Module, what: str) -> str:
    return (
        f"Another thread is using this {type(model).__name__} inside {what}, which changes what the model computes; "
        "let one thread at a time use it (a lock), or give each a copy."
    )


def check_free(model: nn.Module) -> None:
    """Refuse to change a model that another thread holds, or whose rows have adapters of their own.

    Raises:
        AdapterError: Another thread is inside a block of `held_by_thread`, or this is inside `by_row`.
    """
    with _lock:
        _check(model)
    if any(lora.by_row is not None for _, _, lora in loras_in(model)):
        raise AdapterError(
            f"The rows of this {type(model).__name__} have adapters of their own inside by_row, so which adapters it "
            "has and which of them act can't be changed; leave the block first."
        )


def _check(model: nn.Module) -> None:
    guards = _held.get(model)
    if guards and guards[-1].thread != threading.get_ident():
        raise AdapterError(_message(model, guards[-1].what))


@contextmanager
def held_by_thread(model: nn.Module, what: str) -> Generator[None]:
    """Hold a model for this thread: others can neither run it nor hold it inside this block.

    Raises:
        AdapterError: Another thread holds it.

    Examples:
        >>> model = nn.Linear(2, 2)
        >>> with held_by_thread(model, "by_row"):
        ...     model(torch.ones(2)).shape
        torch.Size([2])
    """
    guard = Guard(threading.get_ident(), what)
    with _lock:
        _check(model)
        _held.setdefault(model, []).append(guard)
    handle = model.register_forward_pre_hook(guard)
    try:
        yield
    finally:
        handle.remove()
        with _lock:
            guards = _held[model]
            guards.remove(guard)
            if not guards:
                del _held[model]
