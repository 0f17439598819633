"""Convert a user's arguments of a sweep to one form."""

import math
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

from torch import nn

from rankwise.errors import ConfigError, suggest


def as_rates(given: Any, what: str) -> tuple[float, ...]:
    """One learning rate, or several.

    Raises:
        ConfigError: There is none, or one is no positive number.

    Examples:
        >>> as_rates(1e-3, "lrs"), as_rates([1e-4, 1e-3], "lrs")
        ((0.001,), (0.0001, 0.001))
    """
    rates = as_list(given)
    if not rates or not all(_is_number(rate) and math.isfinite(rate) and rate > 0 for rate in rates):
        raise ConfigError(f"{what} is {given!r}; give one or more positive numbers, such as (1e-4, 3e-4, 1e-3).")
    return tuple(float(rate) for rate in rates)


def as_counts(given: Any, what: str) -> tuple[int, ...]:
    """Whole numbers, or one.

    Raises:
        ConfigError: One is no whole number, or negative.
    """
    counts = as_list(given)
    if not all(_is_number(count) and int(count) == count >= 0 for count in counts):
        raise ConfigError(f"{what} is {given!r}; give whole numbers of at least 0.")
    return tuple(int(count) for count in counts)


def as_list(given: Any) -> list[Any]:
    """Several things as a list, and one thing (a number, a text, a setting) as a list of it."""
    return list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def modules_of_head(model: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    """The modules with their own parameters that these names stand for: of a container, those inside it.

    Raises:
        ConfigError: There is no such module, or nothing in it can be trained.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)))
        >>> modules_of_head(model, ["1"])
        ('1.0', '1.2')
    """
    modules = dict(model.named_modules())
    found: dict[str, None] = {}
    for name in names:
        if name not in modules:
            raise ConfigError(f'The model has no module "{name}" to train in full.{suggest(name, modules)}')
        inside = [
            f"{name}.{path}" if name and path else name or path
            for path, module in modules[name].named_modules()
            if next(module.parameters(recurse=False), None) is not None
        ]
        if not inside:
            raise ConfigError(f'"{name}" has no parameters, so it can\'t be trained in full; leave it out of head.')
        found |= dict.fromkeys(inside)
    return tuple(found)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
