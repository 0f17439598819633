"""Detect changes of numbers that a model holds as plain attributes, which no checkpoint has."""

from collections import deque
from collections.abc import Iterator
from types import FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

DEPTH = 3
"""Search depth inside attributes: of containers, and of plain objects."""

_MOST = 100_000
"""The most numbers of a model to compare."""

_OF_MODULES = frozenset(vars(nn.Module()))

Place = tuple[str, Any, Any]
"""Name; container (a dictionary or list), or the list itself; key, or None for the length."""


class Attributes:
    """The numbers among the attributes of a model's modules and in the globals of their code, as they are now.

    Args:
        model: The model.
        depth: Search depth inside containers and plain objects; 0 for the modules' own attributes.
    """

    def __init__(self, model: nn.Module, depth: int = DEPTH) -> None:
        places = (place for place, _ in zip(_places(model, depth), range(_MOST), strict=False))
        self._then = {place[0]: (place, value_at(place)) for place in places}

    def values(self) -> dict[str, float]:
        """The numbers, by name: they hold nothing of the model."""
        return {name: value for name, (_, value) in self._then.items()}

    def changed_places(self) -> list[tuple[Place, float]]:
        """The places whose numbers have changed since, and by how much a pass changes them."""
        found = ((place, value_at(place), then) for place, then in self._then.values())
        return [(place, now - then) for place, now, then in found if now is not None and now != then]


def _places(model: nn.Module, depth: int) -> Iterator[Place]:
    seen: set[int] = set()
    for path, module in model.named_modules():
        own = {key: value for key, value in vars(module).items() if not _is_torchs(key, value)}
        for key in own:
            yield from _inside(f"{path}.{key}".lstrip("."), vars(module), key, seen, depth)
        for kind in type(module).__mro__:
            forward = vars(kind).get("forward")
            if isinstance(forward, FunctionType) and not kind.__module__.startswith("torch."):
                names = forward.__code__.co_names
                for key in (name for name in names if name in forward.__globals__):
                    yield from _inside(f"{kind.__module__}.{key}", forward.__globals__, key, seen, depth)


def _is_torchs(key: str, value: Any) -> bool:
    """Whether an attribute is one of those that every module has, a part of the model, or of this package."""
    return isinstance(value, Tensor | nn.Module) or key in _OF_MODULES or key.startswith("_rankwise")


def _inside(name: str, holder: Any, key: Any, seen: set[int], depth: int) -> Iterator[Place]:
    """The numbers at a place, and below it."""
    value = holder[key]
    if isinstance(value, int | float):
        if not isinstance(value, bool):
            yield name, holder, key
        return
    plain = (Tensor, nn.Module, str, bytes, type, FunctionType, MethodType, ModuleType)
    if value is None or isinstance(value, plain) or id(value) in seen or not depth:
        return
    seen.add(id(value))
    if isinstance(value, list | deque):
        yield f"len({name})", value, None
    if isinstance(value, dict):
        below: list[Any] = list(value)  # pyright: ignore[reportUnknownArgumentType]
    elif isinstance(value, list):
        below = list(range(len(value)))  # pyright: ignore[reportUnknownArgumentType]
    elif hasattr(value, "__dict__") and not callable(value):
        value = vars(value)
        below = list(value)
    else:
        return
    for inner in below:
        yield from _inside(f"{name}.{inner}", value, inner, seen, depth - 1)


def value_at(place: Place) -> Any:
    """The number at a place; None where there is none any more."""
    _, holder, key = place
    if key is None:
        return len(holder)
    try:
        value = holder[key]
    except (KeyError, IndexError):
        return None
    return value if isinstance(value, int | float) else None
