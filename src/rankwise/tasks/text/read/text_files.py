"""Text files opened as UTF-8, plain or compressed, and refused by name where they are something else."""

import gzip
from collections.abc import Iterable, Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from rankwise.errors import DataError

_OTHERS = {b"\xff\xfe\x00\x00": "UTF-32", b"\x00\x00\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
"""Byte-order marks of other encodings, the longer ones first."""


def open_text(path: Path) -> TextIOWrapper:
    """Open a text file; bytes that are no UTF-8 become lone surrogates, so that the line that has them can be named.

    Raises:
        DataError: It is UTF-16, UTF-32, or no text at all.
    """
    opened: Any = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rb") as file:
        start: bytes = file.read(64)
    encoding = next((name for mark, name in _OTHERS.items() if start.startswith(mark)), None)
    if encoding is None and b"\x00" in start:
        encoding = "UTF-16 without a mark, or no text at all"
    if encoding is not None:
        raise DataError(f"{path} is {encoding}; save it as UTF-8.")
    return opened(path, mode="rt", encoding="utf-8-sig", errors="surrogateescape", newline="")


def read_lines(stream: Iterable[str]) -> Iterator[str]:
    """The lines of a stream such as standard input, without their ends and the mark that UTF-8 text may begin with.

    Raises:
        DataError: It is no UTF-8.
    """
    try:
        for i, line in enumerate(stream):
            yield (line.removeprefix("\ufeff") if i == 0 else line).rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError("Standard input is no UTF-8 text; save it as UTF-8.") from error


def split_lines(text: str) -> list[str]:
    r"""The lines of a text, which end with \n, \r\n or \r and with nothing else.

    `str.splitlines` also cuts at form feeds and at U+2028, which stand inside of texts.

    Examples:
        >>> split_lines("one\u2028two\r\nthree\x0cfour\n")
        ['one\u2028two', 'three\x0cfour']
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines
