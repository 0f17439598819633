"""Prompts to answer, from a file of examples, whose answers are not read, or from a text with one on each line."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankwise.errors import DataError
from rankwise.tasks.text.examples import Pair, SftExample
from rankwise.tasks.text.forms import read_examples
from rankwise.tasks.text.records import Bad, Record, checked
from rankwise.tasks.text.sources import has_reader, read_records
from rankwise.tasks.text.text_files import open_text, split_lines


def read_prompts(
    file: Path, columns: Mapping[str, str] | None = None, *, skip_bad_lines: bool = False
) -> tuple[list[SftExample], list[str]]:
    """Read prompts.

    Args:
        file: A .jsonl, .json, .csv, .tsv or .parquet file, read as examples to train on are; else a text with a prompt
            on each line.
        columns: Role -> column, where a column is not called as its role.
        skip_bad_lines: Leave out records that can't be used, and say so.

    Returns:
        Examples whose answers mean nothing, and what the user should be told.

    Raises:
        DataError: The file can't be read, is empty, or has no prompts; or columns of a text are named.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "a.jsonl")
        ...     _ = path.write_text('{"prompt": "The cat", "completion": " sat"}')
        ...     read_prompts(path)[0]
        [Pair(line=1, source='The cat', answer='', chat=False)]
    """
    if has_reader(file):
        records = read_records(file, skip_bad_lines=skip_bad_lines)
        found, notes = read_examples(records, "generate", columns, skip_bad_lines=skip_bad_lines)
        prompts: list[Any] = list(found)
        return prompts, [*records.notes, *notes]
    if columns:
        raise DataError(f"{file} is read as a text with a prompt on each line, which has no columns; leave them out.")
    return _lines(file), []


def _lines(file: Path) -> list[SftExample]:
    takes = "--file takes a text file with a prompt on each line, or examples."
    try:
        with open_text(file) as opened:
            text = opened.read()
    except OSError as error:
        raise DataError(f"{file} can't be read ({error.strerror or error}); {takes}") from error
    if isinstance(checked(Record(1, {"": text})), Bad):
        raise DataError(f"{file} can't be read (it is no UTF-8 text); {takes}")
    lines = split_lines(text)
    prompts: list[SftExample] = [Pair(i, line, "") for i, line in enumerate(lines, start=1) if line.strip()]
    if not prompts:
        raise DataError(f"{file} is empty; --file takes a text with a prompt on each line, or examples.")
    return prompts
