"""Modules given another `forward` for a while."""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

Forward = Callable[..., Any]


@contextmanager
def replaced_forwards(modules: Mapping[str, nn.Module], wrap: Callable[[str, Forward], Forward]) -> Generator[None]:
    """Replace `forward` on the instances, and put back what was there; classes, keys and hooks stay.

    Args:
        modules: Name -> module; a module under several names is replaced once, under its first name.
        wrap: (name, the present forward) -> the forward to use instead.
    """
    replaced: dict[int, tuple[nn.Module, Forward | None]] = {}
    try:
        for name, module in modules.items():
            if id(module) not in replaced:
                replaced[id(module)] = (module, module.__dict__.get("forward"))
                module.forward = wrap(name, module.forward)
        yield
    finally:
        for module, before in replaced.values():
            if before is None:
                del module.forward
            else:
                module.forward = before
