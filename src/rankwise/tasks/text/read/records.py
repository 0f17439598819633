"""Records of lines of a file, or the reason for none; and texts that no tokenizer accepts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RawRecord:
    """One example as it was read.

    Args:
        line: Where it begins, counted from 1: a line of a text file, a row of other sources.
        values: Column -> value.
    """

    line: int
    values: dict[str, Any]


@dataclass(frozen=True)
class Bad:
    """A line that can't be read, and why."""

    line: int
    reason: str


def checked(record: RawRecord) -> RawRecord | Bad:
    """The record, unless a text in it is none.

    Examples:
        >>> checked(RawRecord(3, {"text": ["\\ud83d"]}))
        Bad(line=3, reason='half of a surrogate pair (\\\\ud83d)')
    """
    found = _surrogate(record.values)
    if found is None:
        return record
    # Bytes that are no UTF-8 are read as these.
    if "\udc80" <= found <= "\udcff":
        return Bad(record.line, "not UTF-8")
    return Bad(record.line, f"half of a surrogate pair (\\u{ord(found):04x})")


def _surrogate(value: Any) -> str | None:
    """The first half of a surrogate pair that stands alone in any text."""
    if isinstance(value, str):
        return None if value.isascii() else next((c for c in value if "\ud800" <= c <= "\udfff"), None)
    if isinstance(value, Mapping):
        value = [part for pair in value.items() for part in pair]
    if isinstance(value, list | tuple):
        return next((found for part in value if (found := _surrogate(part)) is not None), None)
    return None
