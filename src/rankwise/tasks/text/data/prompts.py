"""Prompts to answer and texts to label, from a file of examples, whose answers are not read, or from a text with one on
each line."""

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rankwise.errors import DataError
from rankwise.tasks.text.data.examples import Example, Labelled, PromptPair, SftExample
from rankwise.tasks.text.data.forms import read_examples
from rankwise.tasks.text.read.bad_lines import BadLineError
from rankwise.tasks.text.read.records import Bad, RawRecord, checked
from rankwise.tasks.text.read.sources import has_reader, read_records
from rankwise.tasks.text.read.text_files import open_text, split_lines


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
        Examples whose answers mean nothing, and notes for the user.

    Raises:
        DataError: The file can't be read, is empty, or has no prompts; or columns of a text are named.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "a.jsonl")
        ...     _ = path.write_text('{"prompt": "The cat", "completion": " sat"}')
        ...     read_prompts(path)[0]
        [PromptPair(line=1, source='The cat', answer='', chat=False)]
    """
    found, notes = _read(file, "generate", lambda line, text: PromptPair(line, text, ""), columns, skip_bad_lines)
    prompts: list[Any] = found
    return prompts, notes


def read_texts(
    file: Path, columns: Mapping[str, str] | None = None, *, skip_bad_lines: bool = False
) -> tuple[list[Labelled], list[str]]:
    """Read texts to label, likewise; their labels mean nothing.

    Raises:
        DataError: As `read_prompts`.
    """
    found, notes = _read(file, "predict", as_text, columns, skip_bad_lines)
    texts: list[Any] = found
    return texts, notes


def as_text(line: int, text: str, pair: str | None = None) -> Labelled:
    """A text to label, or two.

    Raises:
        BadLineError: It is no text that can be written as UTF-8.
    """
    check_text(line, text if pair is None else text + pair)
    return Labelled(line, text, "?", pair)


def check_text(line: int, text: str) -> None:
    """Refuse a text with bytes that were no UTF-8, or with half of a surrogate pair.

    Raises:
        BadLineError: It has some.
    """
    if isinstance(bad := checked(RawRecord(line, {"": text})), Bad):
        raise BadLineError(line, f" is no text: {bad.reason}.")


def _read(
    file: Path,
    task: str,
    of_line: Callable[[int, str], Example],
    columns: Mapping[str, str] | None,
    skip_bad_lines: bool,
) -> tuple[list[Example], list[str]]:
    if has_reader(file):
        records = read_records(file, skip_bad_lines=skip_bad_lines)
        found, notes = read_examples(records, task, columns, skip_bad_lines=skip_bad_lines)
        return found, [*records.notes, *notes]
    what = {"generate": "prompt", "predict": "text"}[task]
    if columns:
        raise DataError(f"{file} is read as a text with a {what} on each line, which has no columns; leave them out.")
    takes = f"--file takes a text file with a {what} on each line, or examples."
    try:
        with open_text(file) as opened:
            text = opened.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} can't be read ({getattr(error, 'strerror', None) or error}); {takes}") from error
    if isinstance(checked(RawRecord(1, {"": text})), Bad):
        raise DataError(f"{file} can't be read (it is no UTF-8 text); {takes}")
    found = [of_line(i, line) for i, line in enumerate(split_lines(text), start=1) if line.strip()]
    if not found:
        raise DataError(f"{file} is empty; --file takes a text with a {what} on each line, or examples.")
    return found, []
