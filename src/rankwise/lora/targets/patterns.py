"""Patterns and the names they match: the language of targets, ranks and alphas."""

import fnmatch
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from rankwise.errors import TargetError
from rankwise.lora.config import TargetPattern

_RANGE = re.compile(r"\{(\d+)\.\.(\d*)\}")
"""An inclusive range of numbers: "{8..15}"."""


class Patterns:
    """Patterns that find what they match, and remember which of them matched anything.

    A name matches a module of that path and one whose path ends in it after a dot. A glob or a regular
    expression ("re:...") must match the whole path. A predicate is called with (name, module). In names and globs
    "{8..15}" stands for a number from 8 to 15, "{8..}" for one from 8 on: ranges of layers.

    Args:
        patterns: As `LoRAConfig` takes them.

    Raises:
        TargetError: A regular expression is not one.

    Examples:
        >>> Patterns(["q_proj", "*.up", "re:h[.]0"]).matching(["h.0.q_proj"], nn.ReLU())
        ['q_proj']
        >>> ranges = Patterns(["layers.{1..2}.up"])
        >>> [name for name in ("h.layers.0.up", "h.layers.1.up") if ranges.matching([name], nn.ReLU())]
        ['h.layers.1.up']
    """

    def __init__(self, patterns: Iterable[TargetPattern]) -> None:
        self.all = list(patterns)
        # Plain names are looked up, not searched: 2,000 names over 2,000 modules stay cheap.
        self.plain: dict[str, int] = {}
        self.tests: list[tuple[int, Callable[[str, nn.Module], Any]]] = []
        for place, pattern in enumerate(self.all):
            if isinstance(pattern, str) and is_plain(pattern):
                self.plain.setdefault(pattern, place)
            else:
                self.tests.append((place, _test_of(pattern)))
        self.used: set[TargetPattern] = set()

    def matching(self, names: Sequence[str], module: nn.Module) -> list[TargetPattern]:
        """Return the patterns that match a module under any of its names, in the order they were given."""
        if not self.all:
            return []
        places = {self.plain[tail] for name in names for tail in _tails(name) if tail in self.plain}
        places.update(place for place, test in self.tests if any(test(name, module) for name in names))
        return [self.all[place] for place in sorted(places)]

    def mark(self, patterns: Iterable[TargetPattern]) -> None:
        """Mark these patterns as used."""
        self.used.update(patterns)

    def unused(self) -> list[TargetPattern]:
        """Return the patterns that matched nothing so far."""
        return [pattern for pattern in self.all if pattern not in self.used]


def is_plain(pattern: str) -> bool:
    """Whether a pattern is a plain name: no glob, regular expression or range."""
    return not pattern.startswith("re:") and not _is_glob(pattern) and not _RANGE.search(pattern)


def _is_glob(pattern: str) -> bool:
    return any(sign in pattern for sign in "*?[")


def _tails(name: str) -> Iterator[str]:
    yield name
    while "." in name:
        name = name.split(".", 1)[1]
        yield name


def _test_of(pattern: TargetPattern) -> Callable[[str, nn.Module], Any]:
    if not isinstance(pattern, str):
        return pattern
    if not pattern.startswith("re:") and _RANGE.search(pattern):
        return _test_of_ranges(pattern)
    expression = pattern.removeprefix("re:") if pattern.startswith("re:") else fnmatch.translate(pattern)
    try:
        compiled = re.compile(expression)
    except re.error as error:
        raise TargetError(f'"{pattern}" is no regular expression: {error}.') from error
    return lambda name, module: compiled.fullmatch(name)


def _test_of_ranges(pattern: str) -> Callable[[str, nn.Module], Any]:
    """Return the test of a name or glob with ranges of numbers in it."""
    bounds = [(int(low), int(high or sys.maxsize)) for low, high in _RANGE.findall(pattern)]
    if any(low > high for low, high in bounds):
        raise TargetError(f'"{pattern}" has a range that ends before it begins; write "{{8..15}}", or "{{8..}}".')
    translate = (lambda part: fnmatch.translate(part)[4:-3]) if _is_glob(pattern) else re.escape
    parts = re.split(_RANGE.pattern.replace("(", "(?:"), pattern)
    start = "" if _is_glob(pattern) else r"(?:.*\.)?"
    compiled = re.compile(start + r"(\d+)".join(translate(part) if part else "" for part in parts), re.DOTALL)

    def test(name: str, module: nn.Module) -> bool:
        found = compiled.fullmatch(name)
        numbers = map(int, found.groups()) if found else ()
        return found is not None and all(low <= n <= high for n, (low, high) in zip(numbers, bounds, strict=True))

    return test


def pattern_list(patterns: TargetPattern | Sequence[TargetPattern]) -> list[TargetPattern]:
    """Return one pattern or several as a list."""
    return [patterns] if isinstance(patterns, str) or callable(patterns) else list(patterns)


def matching_values(patterns: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return the value of the first pattern that matches, for each name that one matches.

    Examples:
        >>> matching_values({"h.0.up": 4, "up": 2}, ["h.0.up", "h.1.up", "down"])
        {'h.0.up': 4, 'h.1.up': 2}
    """
    known, nothing = Patterns(patterns), nn.Module()
    found = {name: known.matching([name], nothing) for name in names}
    return {name: patterns[str(matches[0])] for name, matches in found.items() if matches}


def pinned(values: Mapping[str, Any], default: Any) -> dict[str, Any]:
    """Return a pattern that gives each module its value and matches none by accident.

    Examples:
        >>> pinned({"a": 4, "b": 8}, 8)
        {'a': 4}
        >>> pinned({"a": 4, "block.a": 8}, 8)
        {'re:a': 4}
    """
    # In the order that a file will have, for the first match counts.
    differing = {name: value for name, value in sorted(values.items()) if value != default}
    reached = matching_values(differing, values)
    if all(reached.get(name, default) == value for name, value in values.items()):
        return differing
    return {f"re:{re.escape(name)}": value for name, value in differing.items()}
