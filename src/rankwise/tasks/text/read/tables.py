"""CSV and TSV files: rows with the line each begins on, and whether quotation marks are marks or text."""

import csv
import re
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rankwise.errors import DataError
from rankwise.tasks.text.read.records import Bad, RawRecord, checked
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


@dataclass(frozen=True)
class _Form:
    """The format of a file.

    Args:
        delimiter: Between fields.
        quoting: Whether quotation marks are marks or text.
        spaces: Whether spaces after a delimiter belong to the field.
        above: Lines above the columns' names.
    """

    delimiter: str
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL
    spaces: bool = True
    above: int = 0


DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


def read_table(path: Path, delimiter: str) -> tuple[list[RawRecord | Bad], list[str]]:
    """The rows of a file whose first line names its columns.

    Many TSV files (GLUE's, WMT's) have no quoting, and texts that begin with a quotation mark. A TSV file is read so
    where less of it is damaged that way: a quotation mark that opens a field would run over tabs and lines. A file of
    one column that another delimiter parts into several, line by line, is read with that one: spreadsheets write
    semicolons into CSV files in many countries.

    Args:
        path: The file.
        delimiter: Between fields.

    Returns:
        Records, and lines that can't be read; and notes.

    Raises:
        DataError: The first line can't be used.
    """
    notes: list[str] = []
    form = _Form(delimiter)
    if named := _named_delimiter(path):
        form = _Form(named, above=1)
        notes.append(f"{path}: its first line names the delimiter, {DELIMITERS.get(named, named)}.")
    form, header, rows = _parsed(path, form)
    if not named and not isinstance(header, csv.Error) and len(header) == 1:
        for other in DELIMITERS:
            found = _parsed(path, _Form(other)) if other != delimiter and other in header[0] else None
            if found and not isinstance(found[1], csv.Error) and all(row.wrong is None for row in found[2]):
                form, header, rows = found
                notes.append(f"{path}: it is read with {DELIMITERS[other]} between its columns.")
                break
    if form.quoting == csv.QUOTE_NONE:
        notes.append(f"{path}: quotation marks are read as a part of the texts.")
    if isinstance(header, csv.Error):
        raise DataError(f"{path}: its first line, the columns' names, can't be read ({header}).") from header
    if any(name[:1] == " " for name in header[1:]):
        _, without, rows = _parsed(path, replace(form, spaces=False))
        header = header if isinstance(without, csv.Error) else without
        notes.append(f"{path}: spaces at the beginning of its fields are left out, as in the names of its columns.")
    if len(set(header)) != len(header):
        raise DataError(f"{path}: its first line names a column twice ({', '.join(header)}).")
    if long := [row.line for row in rows if row.wrong is None and row.runs_on]:
        what = "1 row runs" if len(long) == 1 else f"{len(long):,} rows run"
        notes.append(f"{path}: {what} over several lines, as quotation marks say (the first begins in line {long[0]}).")
    found = [
        Bad(row.line, row.wrong)
        if row.wrong is not None
        else checked(RawRecord(row.line, dict(zip(header, row.fields, strict=True))))
        for row in rows
    ]
    return found, notes


def _named_delimiter(path: Path) -> str | None:
    """The delimiter that a first line such as "sep=;" names, which spreadsheets write and read."""
    with open_text(path) as file:
        found = re.fullmatch(r'"?sep=(.)"?\s*', file.readline(), re.IGNORECASE)
    return found[1] if found else None


def _parsed(path: Path, form: _Form) -> tuple[_Form, list[str] | csv.Error, list[_Row]]:
    """The columns' names and the rows; of a file with tabs without quoting where that damages less of it."""
    header, rows = _rows_of(path, form)
    if form.delimiter == "\t":
        plain = replace(form, quoting=csv.QUOTE_NONE)
        plain_header, plain_rows = _rows_of(path, plain)
        if _damaged(plain_rows, form.delimiter) < _damaged(rows, form.delimiter):
            return plain, plain_header, plain_rows
    return form, header, rows


def _damaged(rows: list[_Row], delimiter: str) -> int:
    """The lines of rows that can't be read, or of which one text holds both delimiters and line ends."""
    return sum(
        row.lines
        for row in rows
        if row.wrong is not None or any(delimiter in field and "\n" in field for field in row.fields)
    )


def _rows_of(path: Path, form: _Form) -> tuple[list[str] | csv.Error, list[_Row]]:
    with _long_fields(), open_text(path) as file:
        for _ in range(form.above):
            file.readline()
        reader = csv.reader(
            file, delimiter=form.delimiter, strict=True, quoting=form.quoting, skipinitialspace=not form.spaces
        )
        try:
            header = next(reader, [])
        except csv.Error as error:
            return error, []
        return header, list(_rows(reader, len(header), form.above))


def _rows(reader: Any, n: int, above: int) -> Iterator[_Row]:
    while True:
        before = reader.line_num + above
        try:
            fields = next(reader, None)
        except csv.Error as error:
            yield _Row(before + 1, max(1, reader.line_num + above - before), [], str(error))
            continue
        if fields is None:
            return
        if not fields:
            continue
        wrong = None if len(fields) == n else f"{len(fields)} fields where the first line has {n}"
        yield _Row(before + 1, reader.line_num + above - before, fields, wrong)


@contextmanager
def _long_fields() -> Generator[None]:
    """Python's limit of 128 KiB a field is far below a long document."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)
