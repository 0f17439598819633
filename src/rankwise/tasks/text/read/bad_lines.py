"""Lines that can't be used: refused together in one message, or left out where the user says so."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar, runtime_checkable

from rankwise.errors import DataError

NAMED = 5
"""The most lines that a message names; it counts the others."""


class BadLineError(DataError):
    """One line of the data can't be used; the message names it."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"Line {line}{reason}")
        self.line = line


@runtime_checkable
class HasLine(Protocol):
    """Anything read from a line."""

    @property
    def line(self) -> int:
        """Its line, counted from 1."""
        ...


Row = TypeVar("Row", bound=HasLine)
Made = TypeVar("Made")


def numbers(lines: Sequence[int]) -> str:
    """Line numbers in words, the first few by name.

    Examples:
        >>> numbers([3]), numbers([1, 2, 3, 4, 5, 6, 7])
        ('line 3', 'lines 1, 2, 3, 4, 5 and 2 more')
    """
    named = ", ".join(map(str, lines[:NAMED]))
    more = f" and {len(lines) - NAMED:,} more" if len(lines) > NAMED else ""
    return f"{'line' if len(lines) == 1 else 'lines'} {named}{more}"


def usable(
    rows: Sequence[Row], make: Callable[[Row], Made], what: str, *, skip: bool
) -> tuple[list[tuple[Row, Made]], list[str]]:
    """Make something of every row, or of all rows of which it can be made.

    Args:
        rows: The rows.
        make: Makes it, or raises `BadLineError`.
        what: "training examples", for messages.
        skip: Leave out rows that can't be used, and say so in a note.

    Returns:
        The rows that can be used, each with what was made of it; and notes.

    Raises:
        DataError: Rows can't be used and are not to be left out, or none is left.
    """
    good: list[tuple[Row, Made]] = []
    bad: list[BadLineError] = []
    for row in rows:
        try:
            good.append((row, make(row)))
        except BadLineError as error:
            bad.append(error)
    if not bad:
        return good, []
    counted = f"{len(bad):,} of {len(rows):,} {what} can't be used ({numbers([error.line for error in bad])})"
    if skip and good:
        return good, [f"{counted} and were left out. {_sentence(bad[0])}"]
    mend = "" if skip else " --skip-bad-lines leaves such lines out."
    raise DataError(f"{_sentence(bad[0])}{mend}" if len(bad) == 1 else f"{counted}. {_sentence(bad[0])}{mend}")


def _sentence(error: Exception) -> str:
    text = str(error)
    return text if text.endswith((".", "!", "?")) else f"{text}."
