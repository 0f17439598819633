"""Counters that a model holds as plain attributes: training forwards change them, and no adapter file has them."""

from typing import Any

from torch import nn

from rankwise.lora.base.attributes import Attributes
from rankwise.lora.base.before_forward import before_forward
from rankwise.lora.targets.modules import base_modules

_COUNTS = "_rankwise_counts"
"""Attribute of an injected model: its `Counts`."""

LOOKS = 4
"""Training forwards before which it is looked, unless nothing has moved by then."""


class Counts:
    """Looks at the numbers that modules hold as attributes before the first training forwards.

    Args:
        model: The injected model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.numbers: Attributes | None = None
        self.looks = 0
        self.moved: list[str] = []
        self.hook = before_forward(model)
        self.hook.in_training.append(self.look)

    def __getstate__(self) -> dict[str, Any]:
        """A copy's: it has seen what this has, and looks no further, since its numbers lie elsewhere."""
        return {**self.__dict__, "numbers": None}

    def look(self, model: nn.Module) -> None:
        """Before a training forward: which numbers has every one so far moved?"""
        if self.numbers is not None:
            moved = [place[0] for place, _ in self.numbers.changed_places()]
            self.moved = [name for name in moved if self.looks == 1 or name in self.moved]
        if self.looks == LOOKS or (self.looks and not self.moved):
            self.end()
            self.numbers = None
            return
        self.numbers, self.looks = Attributes(model, depth=0), self.looks + 1

    def end(self) -> None:
        """Look no further."""
        self.hook.remove(self.look)


def watch_counts(model: nn.Module) -> None:
    """Look for counts in the first training forwards of an injected model."""
    if _COUNTS in model.__dict__:
        forget_counts(model)
    setattr(model, _COUNTS, Counts(model))


def counts_of(model: nn.Module) -> list[str]:
    """Return the names of the numbers that every training forward so far has moved."""
    found = (it for m in base_modules(model) if isinstance(it := m.__dict__.get(_COUNTS), Counts))
    return [name for counts in found for name in counts.moved if counts.looks > 2]


def forget_counts(model: nn.Module) -> None:
    """Undo `watch_counts`, in a model or any part of it."""
    for module in base_modules(model):
        found = module.__dict__.pop(_COUNTS, None)
        if isinstance(found, Counts):
            found.end()
