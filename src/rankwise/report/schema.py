"""`results.json`: read it, and hold it against its schema, the only thing the report knows of a sweep."""

import functools
import json
import math
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from rankwise.errors import OutputError
from rankwise.shown import cleaned
from rankwise.writing import read_regular

FORMAT, OLD_FORMAT = "rankwise-results-2", "rankwise-results-1"

Results = dict[str, Any]
"""The content of `results.json`; what each key means stands in `results.schema.json`."""

TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}


@functools.cache
def schema() -> dict[str, Any]:
    """Return the shipped JSON schema (draft 2020-12) of `results.json`.

    Examples:
        >>> schema()["properties"]["format"]["const"]
        'rankwise-results-2'
    """
    return json.loads(resources.files("rankwise.report").joinpath("results.schema.json").read_text("utf-8"))


def validate(results: object) -> Results:
    """Return `results` if they follow the schema, and every number in them is finite.

    Keys the schema does not know are let pass here: a newer version may have written them. (The schema itself
    forbids them, for those who write results.)

    Raises:
        OutputError: Something is missing or of another kind; the message names the first such place.
    """
    if isinstance(results, dict) and results.get("format") == OLD_FORMAT:
        results = upgraded(results)
    if not isinstance(results, dict) or results.get("format") != FORMAT:
        given = json.dumps(results.get("format")) if isinstance(results, dict) else "missing"
        raise OutputError(f'the format is {given}; "{FORMAT}" is needed.')
    for fault in faults(results, schema(), "results"):
        raise OutputError(f"{fault}.")
    return results


def upgraded(results: Results) -> Results:
    """Results of format 1 as those of format 2.

    Format 1 named the smallest configuration whose mean passed where none passed by its bound, and called the reference
    an answer after no test: both are undecided here.
    """
    configurations = [
        {"p_within": None, "state": None, **c, "is_answer": c.get("is_answer") and _was_shown(results)}
        for c in results.get("configurations", [])
    ]
    answer = results.get("answer")
    if isinstance(answer, dict):
        shown = _was_shown(results)
        leaning = None if shown or answer.get("name") == answer.get("reference") else answer.get("name")
        whole = next((c for c in configurations if c.get("name") == answer.get("reference")), {})
        answer = {
            **answer,
            "verdict": "shown" if shown else "undecided",
            "confidence": 0.95,
            "leaning": leaning and {"name": leaning, "p_within": None},
            "detectable_difference": None,
            "separable": shown,
            "reason": answer.get("reason") if shown else None,
        }
        if leaning:
            answer |= {"name": answer["reference"], "r": whole.get("r"), "adapter": None, "relative_parameters": 1.0}
            answer |= {"trainable_parameters": whole.get("trainable_parameters"), "relative_metric": None}
            answer |= {"relative_metric_interval": None}
    return {**results, "format": FORMAT, "configurations": configurations, "answer": answer}


def _was_shown(results: Results) -> bool:
    answer = results.get("answer")
    return bool(isinstance(answer, dict) and answer.get("separable") and answer.get("name") != answer.get("reference"))


def read_results(path: str | Path) -> Results:
    """Read the results of a sweep.

    Args:
        path: A run directory, or its `results.json`.

    Returns:
        The content, every text in it printable.

    Raises:
        OutputError: The file is missing, no JSON, or no results file.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "results.json"
    try:
        return cleaned(validate(json.loads(read_regular(path).decode("utf-8"), parse_constant=_refuse)))
    except OSError as error:
        raise OutputError(
            f"{path} can't be read ({error.strerror}); give a run directory, which holds results.json."
        ) from error
    except OutputError as error:
        raise OutputError(f"{path} is no results file: {error}") from error
    except (ValueError, RecursionError) as error:
        raise OutputError(f"{path} is no results file: it is damaged JSON ({error}).") from error


def _refuse(constant: str) -> Literal[None]:
    raise ValueError(f"{constant} where a finite number or null is needed")


def faults(value: object, rule: dict[str, Any], place: str) -> Iterator[str]:
    """Yield what is wrong with `value`, one short fact each, in the order of the rule.

    Reads the few words of JSON Schema that `results.schema.json` uses, because a full reader of schemas would be a
    dependency for this alone; the tests hold it against one.
    """
    if "$ref" in rule:
        yield from faults(value, schema()["$defs"][rule["$ref"].removeprefix("#/$defs/")], place)
        return
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{place} is {value}; a finite number or null is needed"
        return
    if "const" in rule and value != rule["const"]:
        yield f"{place} is {_short(value)}; {_short(rule['const'])} is needed"
    if "enum" in rule and value not in rule["enum"]:
        yield f"{place} is {_short(value)}; one of {', '.join(map(str, rule['enum']))} is needed"
    kinds = rule.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_is(value, kind) for kind in kinds):
        yield f"{place} is {_short(value)}; {' or '.join(kinds)} is needed"
        return
    if "minimum" in rule and _is(value, "number") and value < rule["minimum"]:  # type: ignore[operator]
        yield f"{place} is {value}; at least {rule['minimum']} is needed"
    if isinstance(value, dict):
        yield from _object_faults(value, rule, place)
    if isinstance(value, list):
        low, high = rule.get("minItems", 0), rule.get("maxItems", math.inf)
        if not low <= len(value) <= high:
            yield f"{place} has {len(value)} entries; {low} are needed"
        for i, entry in enumerate(value):
            yield from faults(entry, rule.get("items", {}), f"{place}[{i}]")


def _object_faults(value: dict[str, Any], rule: dict[str, Any], place: str) -> Iterator[str]:
    for key in rule.get("required", []):
        if key not in value:
            yield f'{place} has no "{key}"'
    known, others = rule.get("properties", {}), rule.get("additionalProperties", True)
    for key, entry in value.items():
        yield from faults(entry, known.get(key, others if isinstance(others, dict) else {}), f"{place}.{key}")


def _is(value: object, kind: str) -> bool:
    if isinstance(value, bool) and kind != "boolean":  # in Python a bool is an int, in JSON it is none
        return False
    return isinstance(value, TYPES[kind]) or (kind == "integer" and isinstance(value, float) and value.is_integer())


def _short(value: object) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."
