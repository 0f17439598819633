"""CSV and TSV files: rows with the line each begins on, and whether quotation marks are marks or text."""

import csv
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rankwise.errors import DataError
from rankwise.tasks.text.read.records import Bad, Record, checked
from rankwise.tasks.text.read.text_files import open_text


@dataclass(frozen=True)
class _Row:
    """A row as it was read: its fields, or what is wrong with it."""

    line: int
    lines: int
    fields: list[str]
    wrong: str | None = None

    @property
    def runs_on(self) -> bool:
        """Whether a text in it runs over several lines."""
        return any("\n" in field or "\r" in field for field in self.fields)


def read_table(path: Path, delimiter: str) -> tuple[list[Record | Bad], list[str]]:
    """The rows of a file whose first line names its columns.

    Many TSV files (GLUE's, WMT's) have no quoting, and texts that begin with a quotation mark. A TSV file is read so
    where less of it is damaged that way: a quotation mark that opens a field would run over tabs and lines.

    Args:
        path: The file.
        delimiter: Between fields.

    Returns:
        Records, and lines that can't be read; and notes.

    Raises:
        DataError: The first line can't be used.
    """
    header, rows = _parsed(path, delimiter, csv.QUOTE_MINIMAL)
    notes: list[str] = []
    if delimiter == "\t":
        plain_header, plain = _parsed(path, delimiter, csv.QUOTE_NONE)
        if _damaged(plain, delimiter) < _damaged(rows, delimiter):
            header, rows = plain_header, plain
            notes.append(f"{path}: quotation marks are read as a part of the texts.")
    if isinstance(header, csv.Error):
        raise DataError(f"{path}: its first line, the columns' names, can't be read ({header}).") from header
    if len(set(header)) != len(header):
        raise DataError(f"{path}: its first line names a column twice ({', '.join(header)}).")
    if long := [row.line for row in rows if row.wrong is None and row.runs_on]:
        what = "1 row runs" if len(long) == 1 else f"{len(long):,} rows run"
        notes.append(f"{path}: {what} over several lines, as quotation marks say (the first begins in line {long[0]}).")
    found = [
        Bad(row.line, row.wrong)
        if row.wrong is not None
        else checked(Record(row.line, dict(zip(header, row.fields, strict=True))))
        for row in rows
    ]
    return found, notes


def _damaged(rows: list[_Row], delimiter: str) -> int:
    """The lines of rows that can't be read, or of which one text holds both delimiters and line ends."""
    return sum(
        row.lines
        for row in rows
        if row.wrong is not None or any(delimiter in field and "\n" in field for field in row.fields)
    )


def _parsed(path: Path, delimiter: str, quoting: Literal[0, 3]) -> tuple[list[str] | csv.Error, list[_Row]]:
    with _long_fields(), open_text(path) as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True, quoting=quoting)
        try:
            header = next(reader, [])
        except csv.Error as error:
            return error, []
        return header, list(_rows(reader, len(header)))


def _rows(reader: Any, n: int) -> Iterator[_Row]:
    while True:
        before = reader.line_num
        try:
            fields = next(reader, None)
        except csv.Error as error:
            yield _Row(before + 1, max(1, reader.line_num - before), [], str(error))
            continue
        if fields is None:
            return
        if not fields:
            continue
        wrong = None if len(fields) == n else f"{len(fields)} fields where the first line has {n}"
        yield _Row(before + 1, reader.line_num - before, fields, wrong)


@contextmanager
def _long_fields() -> Generator[None]:
    """Python's limit of 128 KiB a field is far below a long document."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)
