"""Records from a file or a hub data set: column -> value, with the line each one stands on.

JSON, JSONL and CSV are read with the standard library, because a wrong line must be named by its number and no value
may change its type on the way ("007" and "NA" are texts); Parquet and hub names are read by `datasets`.
"""

import json
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.errors import DataError
from rankwise.tasks.text.extra import requires_extra
from rankwise.tasks.text.read.bad_lines import NAMED
from rankwise.tasks.text.read.records import Bad, RawRecord, checked
from rankwise.tasks.text.read.tables import read_table
from rankwise.tasks.text.read.text_files import open_text


@dataclass(frozen=True)
class Records:
    """The content of a source.

    Args:
        source: The file or hub name, for messages.
        rows: The records; at least one.
        columns: All their columns, in order of first appearance.
        label_names: Names of a hub data set's classes by column, in the order of their numbers.
        notes: Notes for the user.
    """

    source: str
    rows: tuple[RawRecord, ...]
    columns: tuple[str, ...]
    label_names: dict[str, tuple[str, ...]]
    notes: tuple[str, ...] = ()


Read = tuple[list[RawRecord | Bad], list[str]]
"""The content of a file, and notes."""


def read_records(where: str | Path, *, split: str = "train", skip_bad_lines: bool = False) -> Records:
    """Read a file, or a data set of the Hugging Face hub.

    Args:
        where: A path that ends in .jsonl, .ndjson, .json, .csv, .tsv (each also with .gz) or .parquet; else a hub name,
            "owner/name" or "owner/name:configuration".
        split: Which split of a hub data set.
        skip_bad_lines: Leave out lines that can't be read, and say so, instead of refusing the file.

    Raises:
        DataError: There is no such file, it is empty, or lines of it can't be read.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "a.csv")
        ...     _ = path.write_text("text,label\\nhello,NA\\n")
        ...     read_records(path).rows
        (RawRecord(line=2, values={'text': 'hello', 'label': 'NA'}),)
    """
    path = Path(where)
    suffix = _suffix(path)
    if path.is_dir():
        raise DataError(
            f"{path} is a folder; give a file that ends in {_endings()}. A folder of images goes with the task images."
        )
    if not path.is_file():
        if suffix in _TEXT_READERS or suffix == ".parquet" or isinstance(where, Path):
            raise DataError(f"There is no file {path}; give a file that ends in {_endings()}, or a hub name.")
        return _from_hub(str(where), split)
    if suffix == ".parquet":
        return _from_parquet(path)
    if suffix not in _TEXT_READERS:
        raise DataError(f'{path} ends in "{path.suffix}"; what is read ends in {_endings()}.')
    try:
        found, notes = _TEXT_READERS[suffix](path)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} can't be read ({error}).") from error
    rows = [record for record in found if isinstance(record, RawRecord)]
    bad = [record for record in found if isinstance(record, Bad)]
    if bad:
        named = "; ".join(f"line {b.line} ({b.reason})" for b in bad[:NAMED])
        more = f"; and {len(bad) - NAMED:,} more" if len(bad) > NAMED else ""
        what = f"{len(bad):,} of {len(found):,} lines can't be read: {named}{more}."
        if not skip_bad_lines:
            raise DataError(f"{path}: {what} Mend them, or give --skip-bad-lines to leave them out.")
        notes = [*notes, f"{path}: {what} They were left out."]
    return _records(str(path), rows, {}, tuple(notes))


def has_reader(path: Path) -> bool:
    """Whether a file ends as one that `read_records` reads.

    Examples:
        >>> has_reader(Path("a.csv.gz")), has_reader(Path("a.txt"))
        (True, False)
    """
    return _suffix(path) in (*_TEXT_READERS, ".parquet")


def _records(
    source: str, rows: list[RawRecord], label_names: dict[str, tuple[str, ...]], notes: tuple[str, ...] = ()
) -> Records:
    if not rows:
        raise DataError(f"{source} holds no examples; at least one is needed.")
    columns = tuple(dict.fromkeys(name for row in rows for name in row.values))
    return Records(source, tuple(rows), columns, label_names, notes)


def _suffix(path: Path) -> str:
    """The ending that says the format: that of "a.csv.gz" is ".csv"."""
    return Path(path.stem if path.suffix == ".gz" else path.name).suffix.lower()


def _endings() -> str:
    return ", ".join([*_TEXT_READERS, ".parquet"])


def _read_jsonl(path: Path) -> Read:
    with open_text(path) as file:
        return [_json_record(number, line) for number, line in enumerate(file, start=1) if _bare(line)], []


def _bare(line: str) -> str:
    """A line without the mark with which a file began that was appended to another."""
    return line.strip("\ufeff \t\r\n")


def _json_record(number: int, line: str) -> RawRecord | Bad:
    try:
        value = json.loads(_bare(line), object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        if isinstance(bad := checked(RawRecord(number, {"": line})), Bad):
            return bad
        return Bad(number, f"no JSON at column {error.colno}: {error.msg}")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists without an end
        return Bad(number, f"no JSON that can be read: {error}")
    return _record_of(number, value)


class _TwiceError(ValueError):
    """A key stands twice in one object, so one of its values would be lost."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _TwiceError(f'"{next(key for key in keys if keys.count(key) > 1)}" stands twice in one object')
    return found


def _record_of(number: int, value: Any) -> RawRecord | Bad:
    if not isinstance(value, dict):
        return Bad(number, f"a JSON {type(value).__name__}, not an object")
    return checked(RawRecord(number, {str(key): content for key, content in value.items()}))


_OF_ONE = ("messages", "conversations", "conversation")
"""Lists that are a part of one record."""


def _read_json(path: Path) -> Read:
    """A list of objects, an object that holds one list of them, or JSON lines under the name .json."""
    with open_text(path) as file:
        content = file.read()
    try:
        value = json.loads(content, object_pairs_hook=_object)
    except _TwiceError as error:
        if content.lstrip().startswith("["):
            raise DataError(f"{path}: {error}; leave one of them out.") from error
        return _read_jsonl(path)
    except (ValueError, RecursionError):
        return _read_jsonl(path)
    if isinstance(value, dict):
        lists = [inner for key, inner in value.items() if isinstance(inner, list) and key not in _OF_ONE]
        value = lists[0] if len(lists) == 1 else [value]
    if not isinstance(value, list):
        raise DataError(f"{path} holds a JSON {type(value).__name__}; a list of objects is needed.")
    return [_record_of(number, item) for number, item in enumerate(value, start=1)], []


_TEXT_READERS: dict[str, Callable[[Path], Read]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": lambda path: read_table(path, ","),
    ".tsv": lambda path: read_table(path, "\t"),
}


def _from_parquet(path: Path) -> Records:
    with requires_extra("Parquet files"):
        from datasets import Dataset
        from datasets.exceptions import DatasetGenerationError
        from pyarrow import ArrowException

    # `datasets` would keep a copy of the user's file in its cache for good.
    with tempfile.TemporaryDirectory() as cache:
        try:
            data = Dataset.from_parquet(str(path), cache_dir=cache, keep_in_memory=True)
        except (DatasetGenerationError, ArrowException, ValueError) as error:
            cause = error.__cause__ or error
            raise DataError(f"{path} can't be read as Parquet ({str(cause).splitlines()[0]}).") from error
        return _from_dataset(str(path), data)


def _from_hub(where: str, split: str) -> Records:
    with requires_extra("hub names"):
        from datasets import load_dataset
        from datasets.exceptions import DatasetNotFoundError

    name, _, configuration = where.partition(":")
    try:
        data = load_dataset(name, configuration or None, split=split)
    except DatasetNotFoundError as error:
        raise DataError(
            f'There is no file "{where}" and no data set of that name on the hub; give a file that ends in '
            f"{_endings()}, or a hub name such as owner/name."
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f'The data set "{where}" can\'t be loaded: {str(error).splitlines()[0]}') from error
    return _from_dataset(f"{where}[{split}]", data)


def _from_dataset(source: str, data: Any) -> Records:
    names = {column: found for column, feature in data.features.items() if (found := _class_names(feature))}
    rows = [RawRecord(number, dict(values)) for number, values in enumerate(data, start=1)]
    absent = 0
    for row in rows:
        for column, value in row.values.items():
            if column in names:
                row.values[column] = _named(value, names[column])
            elif isinstance(value, list | dict):
                row.values[column], n = without_nulls(value)
                absent += n
    notes = (
        (
            f"{source}: {absent:,} nulls inside of lists and objects are read as keys that are not there, as a table "
            "has every key in every row.",
        )
        if absent
        else ()
    )
    return _records(source, rows, names, notes)


def _class_names(feature: Any) -> tuple[str, ...]:
    """The names of classes that a column holds as numbers, or as lists of numbers."""
    inner = getattr(feature, "feature", feature)
    return tuple(inner.names) if type(inner).__name__ == "ClassLabel" else ()


def _named(value: Any, names: tuple[str, ...]) -> Any:
    if isinstance(value, list):
        return [_named(one, names) for one in value]
    # -1 is the hub's word for "no label", as in hidden test sets.
    return names[value] if value is not None and value >= 0 else None


def without_nulls(value: Any, depth: int = 0) -> tuple[Any, int]:
    """A value of a table without the keys that are null in it, and how many of them lie deeper than a list's objects.

    Examples:
        >>> without_nulls([{"name": "f", "arguments": {"city": "Paris", "date": None}}])
        ([{'name': 'f', 'arguments': {'city': 'Paris'}}], 1)
    """
    if isinstance(value, list):
        parts = [without_nulls(one, depth) for one in value]
        return [part for part, _ in parts], sum(n for _, n in parts)
    if not isinstance(value, dict):
        return value, 0
    cleaned = {key: without_nulls(one, depth + 1) for key, one in value.items() if one is not None}
    gone = len(value) - len(cleaned) if depth else 0
    return {key: part for key, (part, _) in cleaned.items()}, gone + sum(n for _, n in cleaned.values())
