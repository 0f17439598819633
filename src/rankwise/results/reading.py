"""`results.json`, read into its types."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import msgspec

from rankwise.errors import OutputError
from rankwise.remote.store import ObjectStore, url_of
from rankwise.results.content import FORMAT, Results
from rankwise.results.format_1 import OLD_FORMAT, upgraded
from rankwise.results.record import OTHERS, OpenRecord, Record, plain
from rankwise.shown import cleaned
from rankwise.writing import read_regular


def read_results(path: str | Path) -> Results:
    """Read the results of a sweep.

    Args:
        path: A run directory, or its `results.json`; on this machine, or a URL such as s3://bucket/run.

    Returns:
        The content, every text in it printable.

    Raises:
        OutputError: The file is missing, no JSON, or no results file.
    """
    url, path = url_of(path), Path(path)
    if url is None and path.is_dir():
        path = path / "results.json"
    try:
        if url is not None:
            run, path = url.removesuffix("/results.json"), f"{url.removesuffix('/results.json')}/results.json"
            data = ObjectStore(run).read("results.json")
        else:
            data = read_regular(path)
        return parsed(cleaned(json.loads(data.decode("utf-8"), parse_constant=_refuse)))
    except OSError as error:
        raise OutputError(
            f"{path} can't be read ({error.strerror or 'there is none'}); give a run directory, which holds "
            "results.json."
        ) from error
    except OutputError as error:
        raise OutputError(f"{path} is no results file: {error}") from error
    except (ValueError, RecursionError) as error:
        raise OutputError(f"{path} is no results file: it is damaged JSON ({error}).") from error


def parsed(content: object) -> Results:
    """Return the content of `results.json`, of format 2 or 1, as its types.

    Keys that the types don't know are dropped: a newer version may have written them.

    Raises:
        OutputError: Something is missing or of another kind, or a number is not finite; the message names the first
            such place.
    """
    if isinstance(content, dict) and content.get("format") == OLD_FORMAT:
        content = upgraded(cast("dict[str, Any]", content))
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = json.dumps(content.get("format")) if isinstance(content, dict) else "missing"
        raise OutputError(f'the format is {found}; "{FORMAT}" is needed.')
    content = cast("dict[str, Any]", content)
    for place, value in _not_finite(content, "results"):
        raise OutputError(f"{place} is {value}; a finite number or null is needed.")
    try:
        return msgspec.convert(_folded(content, Results), Results)
    except msgspec.ValidationError as error:
        raise OutputError(_fault(str(error), content)) from error


def printable_results(results: Results) -> Results:
    """Return results with every text in them printable."""
    return parsed(cleaned(plain(results)))


def _refuse(constant: str) -> Literal[None]:
    raise ValueError(f"{constant} where a finite number or null is needed")


def _not_finite(value: Any, place: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, float) and not math.isfinite(value):
        yield place, value
    for key, entry in value.items() if isinstance(value, dict) else ():
        yield from _not_finite(entry, f"{place}.{key}")
    for i, entry in enumerate(value if isinstance(value, list) else ()):
        yield from _not_finite(entry, f"{place}[{i}]")


def _folded(value: Any, kind: type[Record]) -> Any:
    """JSON with the keys that an open record does not name moved into its `others`."""
    if not isinstance(value, dict):
        return value
    value = cast("Mapping[str, Any]", value)
    kinds = {f.name: f.type for f in msgspec.structs.fields(kind) if f.name != OTHERS}
    named = {
        key: _folded(value[key], inner) if isinstance(inner, type) and issubclass(inner, Record) else value[key]
        for key, inner in kinds.items()
        if key in value
    }
    if issubclass(kind, OpenRecord):
        named[OTHERS] = {key: entry for key, entry in value.items() if key not in kinds}
    return named


def _fault(message: str, content: Mapping[str, Any]) -> str:
    """A message of msgspec in the words of this package: the place, its value, what is needed."""
    fact, _, path = message.partition(" - at `")
    path = path.removesuffix("`").removeprefix("$")
    place = f"results{path}"
    if missing := re.fullmatch(r"Object missing required field `(\w+)`", fact):
        return f'{place} has no "{missing[1]}".'
    value = _short(_at(content, path))
    if fact.startswith("Expected "):
        needed = fact.removeprefix("Expected ").partition(", got ")[0].replace("`", "").replace(" | ", " or ")
        return f"{place} is {value}; {needed} is needed."
    return f"{place} is {value}: {fact}."


def _at(content: Any, path: str) -> Any:
    """The value at a path such as `.runs[3].r`; the whole of an object whose key the path does not tell (`[...]`)."""
    for key, index in re.findall(r"\.(\w+)|\[(\d+)\]", path.partition("[...]")[0]):
        content = content[key] if key else content[int(index)]
    return content


def _short(value: object) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."
