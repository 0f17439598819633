"""What the value of a setting must be: written next to its type, and checked when the settings are made.

epochs: Annotated[int, AT_LEAST_ONE] = 60
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args

from rankwise.errors import ConfigError, suggest


@dataclass(frozen=True)
class Requirement:
    """What a value must be.

    Args:
        holds: Whether a value is that.
        words: The rule and what to do, as they follow "epochs is 0; ".
    """

    holds: Callable[[Any], bool]
    words: str


AT_LEAST_ONE = Requirement(lambda n: n >= 1 and n == int(n), "it must be a whole number of at least 1")
POSITIVE = Requirement(lambda x: math.isfinite(x) and x > 0, "it must be a positive number")
NOT_NEGATIVE = Requirement(lambda x: math.isfinite(x) and x >= 0, "it must be 0 or a positive number")
RANKS = Requirement(lambda ns: bool(ns) and min(ns) >= 1, "give one or more whole numbers of at least 1")
SEEDS = Requirement(lambda ns: bool(ns) and min(ns) >= 0, "give at least one, none below 0")


def _all_positive(numbers: Iterable[float]) -> bool:
    return bool(numbers) and all(math.isfinite(x) and x > 0 for x in numbers)


RATES = Requirement(_all_positive, "give positive numbers, such as 1e-4,1e-3")
ALPHAS = Requirement(_all_positive, "give positive numbers, such as 16,32")
RISING = Requirement(
    lambda rungs: [*rungs] == sorted({*rungs}) and all(rung >= 1 for rung in rungs),
    "give rising numbers of epochs, such as 1,2",
)
PART = Requirement(lambda share: 0 < share < 1, "it is a share of the training data, such as 0.1")


def require(settings: Any, named: Callable[[str], str] = str) -> None:
    """Hold every field of a dataclass against the requirements in its annotation; None meets them all.

    Args:
        settings: The dataclass.
        named: Field -> what the user calls it.

    Raises:
        ConfigError: A value does not meet one.

    Examples:
        >>> from typing import Annotated
        >>> @dataclass
        ... class Course:
        ...     epochs: Annotated[int, AT_LEAST_ONE] = 1
        >>> require(Course(epochs=0))
        Traceback (most recent call last):
        rankwise.errors.ConfigError: epochs is 0; it must be a whole number of at least 1.
    """
    for field in fields(settings):
        value = getattr(settings, field.name)
        for requirement in _requirements(field.type):
            if value is not None and not requirement.holds(value):
                shown = list(value) if isinstance(value, tuple) else value
                raise ConfigError(f"{named(field.name)} is {shown}; {requirement.words}.")


def require_known(what: str, name: str, known: Iterable[str] | Mapping[str, object]) -> None:
    """Refuse a name that there is not.

    Raises:
        ConfigError: There is none of that name.
    """
    known = list(known)
    if name not in known:
        raise ConfigError(f'{what} "{name}" is not known; there are {", ".join(known)}.{suggest(name, known)}')


def _requirements(annotation: Any) -> Iterable[Requirement]:
    """Those in an annotation, and in the parts of a union."""
    for part in get_args(annotation):
        if isinstance(part, Requirement):
            yield part
        else:
            yield from _requirements(part)
