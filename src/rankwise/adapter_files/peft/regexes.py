"""Regular expressions that come with an adapter: none that could take forever is ever matched.

A matcher that goes back tries one way after the other to match a pattern. How many ways there are is bounded from the
pattern alone: a product over what follows one another, a sum over alternatives that can begin alike, and, for a repeat
of what can match in several ways, a power.
"""

import importlib
import math
import re
from dataclasses import dataclass
from typing import Any

from rankwise.errors import AdapterFileError

parser: Any = importlib.import_module("re._parser")

MOST_STARS = 5
"""Unbounded repeats one after another: each multiplies the time of a failed match by the name's length."""

MOST_WAYS = 10_000
"""Of matching what is bounded: alternatives that begin alike, and repeats of up to so many."""


@dataclass(frozen=True)
class Ways:
    """A bound on the ways in which a pattern can match: `count` times the name's length to the power of `stars`."""

    count: float = 1
    stars: float = 0

    def then(self, other: "Ways") -> "Ways":
        """Those of a pattern followed by another."""
        return Ways(self.count * other.count, self.stars + other.stars)

    @property
    def many(self) -> bool:
        """Whether a failed match could take forever."""
        return self.count > MOST_WAYS or self.stars > MOST_STARS


ONE, ENDLESS = Ways(), Ways(math.inf, math.inf)


def compiled(expression: str, pattern: str) -> re.Pattern[str]:
    """Compile a regular expression of a file, unless matching it could take forever.

    Args:
        expression: What is to be compiled.
        pattern: The part of it that the file holds, for messages.

    Raises:
        AdapterFileError: It is none, or there are too many ways to match it.

    Examples:
        >>> compiled(r"(.|.)*x", "(.|.)*x")
        Traceback (most recent call last):
        rankwise.errors.AdapterFileError: The pattern "(.|.)*x" of the adapter's settings can match in too many ways;
        matching it could take forever.
    """
    try:
        ways = ways_of(pattern)
        if not ways.many:
            return re.compile(expression)
    except (re.error, OverflowError, RecursionError) as error:
        raise AdapterFileError(
            f'A pattern of the adapter\'s settings is no regular expression: "{pattern}", {error}.'
        ) from error
    raise AdapterFileError(
        f'The pattern "{pattern}" of the adapter\'s settings can match in too many ways; matching it could take '
        "forever."
    )


def ways_of(pattern: str) -> Ways:
    """Return a bound on the ways in which a pattern can match.

    Examples:
        >>> ways_of(r".*layers\\.[0-9]+\\.(q|k|v)_proj"), ways_of("(q|q)x"), ways_of("(a?){3}").count
        (Ways(count=1, stars=2), Ways(count=2, stars=0), 8)
    """
    return _sequence(parser.parse(pattern))


def _sequence(parsed: Any) -> Ways:
    ways = ONE
    for operator, argument in parsed:
        ways = ways.then(_one(str(operator), argument))
    return ways


def _one(operator: str, argument: Any) -> Ways:
    if operator in ("MAX_REPEAT", "MIN_REPEAT"):
        low, high, inner = argument
        return _repeat(low, math.inf if high == parser.MAXREPEAT else int(high), _sequence(inner))
    if operator == "POSSESSIVE_REPEAT":  # it never goes back, but tries all ways of its inside each time
        inner = _sequence(argument[2])
        return ONE if inner == ONE else _repeat(argument[0], math.inf, inner)
    if operator == "BRANCH":
        return _branch(argument[1])
    if operator == "SUBPATTERN":
        return _sequence(argument[3])
    if operator == "ATOMIC_GROUP":
        return _sequence(argument)
    if operator in ("ASSERT", "ASSERT_NOT"):
        return _sequence(argument[1])
    if operator == "GROUPREF_EXISTS":
        return _branch([argument[1], argument[2] or []])
    return ONE


def _repeat(low: int, high: float, inner: Ways) -> Ways:
    if inner == ONE:
        return Ways(1, 1) if high == math.inf else Ways(high - low + 1)
    if high == math.inf or inner.stars * high > MOST_STARS:
        return ENDLESS
    try:
        return Ways(sum(inner.count**n for n in range(low, min(int(high), 1000) + 1)), inner.stars * high)
    except OverflowError:
        return ENDLESS


def _branch(branches: Any) -> Ways:
    ways = [_sequence(branch) for branch in branches]
    firsts = [_first(branch) for branch in branches]
    # Only one of alternatives with different first letters can match at a place.
    apart = None not in firsts and len({*firsts}) == len(firsts)
    count = max(it.count for it in ways) if apart else sum(it.count for it in ways)
    return Ways(count, max(it.stars for it in ways))


def _first(branch: Any) -> str | None:
    """The letter that a pattern begins with, where it can be no other; whatever its case, as a flag may ignore it."""
    for operator, argument in branch:
        if str(operator) == "LITERAL":
            return chr(argument).casefold()
        if str(operator) == "SUBPATTERN":
            return _first(argument[3])
        if str(operator) != "AT":
            return None
    return None
