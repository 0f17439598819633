"""Counters that a model holds as plain attributes: training forwards change them, and no adapter file has them."""

from torch import nn

from rankwise.lora.base.attributes import Attributes
from rankwise.lora.base.before_forward import WeakHook, before_forward
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
        self.numbers: dict[str, float] | None = None
        self.looks = 0
        self.moved: list[str] = []
        hook = before_forward(model)
        hook.in_training.append(self.look)
        self.hook = WeakHook(hook)

    def look(self, model: nn.Module) -> None:
        """Before a training forward: which numbers has every one so far moved?"""
        now = Attributes(model, depth=0).values()
        if self.numbers is not None:
            moved = [name for name, value in now.items() if value != self.numbers.get(name, value)]
            self.moved = [name for name in moved if self.looks == 1 or name in self.moved]
        if self.looks == LOOKS or (self.looks and not self.moved):
            self.end(model)
            self.numbers = None
            return
        self.numbers, self.looks = now, self.looks + 1

    def end(self, model: nn.Module) -> None:
        """Look no further."""
        self.hook.remove(self.look, model)


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
            found.end(module)
