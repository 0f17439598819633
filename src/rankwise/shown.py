"""Text from elsewhere, shown as text: nothing in it acts on a terminal, a spreadsheet or a file's encoding."""

import json
import re
from typing import Any, cast

_ACTING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and new line, marks that turn the direction of writing, halves of surrogate pairs."""

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""Beginnings of cells that a spreadsheet computes."""


def printable(text: str) -> str:
    r"""Return a text with a replacement sign for each character that would act on a terminal.

    Examples:
        >>> printable("r = 8\x1b[2J") == "r = 8\ufffd[2J"
        True
    """
    return _ACTING.sub("\ufffd", text)


def cleaned(value: Any) -> Any:
    """Return what JSON can hold with every text in it printable.

    Examples:
        >>> cleaned({"labels": ["a", 1]}) == {"labels": ["a", 1]}
        True
    """
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(str(key)): cleaned(entry) for key, entry in cast("dict[Any, Any]", value).items()}
    return [cleaned(entry) for entry in cast("list[Any]", value)] if isinstance(value, list) else value


def json_line(value: Any, indent: int | None = None) -> str:
    r"""Return JSON: letters of all scripts as they are, characters that would act on a terminal escaped.

    Args:
        value: What JSON can hold.
        indent: Spaces of each level; None for a single line.

    Examples:
        >>> json_line({"ü": "\x9b2J"})
        '{"ü": "\\u009b2J"}'
    """
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return _ACTING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def shortened(text: str, most: int = 60) -> str:
    """Return a text that can be shown in a line: printable, and cut where it is long.

    Examples:
        >>> shortened("a" * 100, 10)
        'aaaaaaaaa…'
    """
    text = printable(text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def csv_cell(value: Any) -> Any:
    """Return a cell of a CSV file that a spreadsheet shows and doesn't compute: text after an apostrophe.

    Examples:
        >>> csv_cell("=1+1"), csv_cell(-0.5), csv_cell("r8"), csv_cell("-0.5")
        ("'=1+1", -0.5, 'r8', '-0.5')
    """
    if not isinstance(value, str) or not value.lstrip(" ").startswith(FORMULA) or _is_number(value):
        return value
    return f"'{value}"


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text) is not None
