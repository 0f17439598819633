"""The schema, and that the package's own reading of it agrees with a full reader of JSON schemas."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_results import sample_results

from rankwise.errors import OutputError
from rankwise.report.schema import faults, read_results, schema, validate

VALIDATOR = jsonschema.Draft202012Validator(schema())


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"published": True, "baselines": [("a", 0.98), ("b", 0.93), ("c", 0.98)]},
        {"answer_r": None},
        {"baselines": [], "ranks": [4]},
        {"seeds": 1, "forgetting": False, "base_metric": None},
    ],
    ids=str,
)
def test_samples_are_valid(given: dict[str, Any], tmp_path: Path) -> None:
    results = sample_results(**given)
    VALIDATOR.validate(results)
    assert validate(results) is results
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert read_results(tmp_path) == read_results(tmp_path / "results.json") == results


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) below a value."""
    found: list[tuple[Any, Any]] = []
    for key, entry in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        found += [(value, key), *places(entry)]
    return found


SMALL = sample_results([2, 4], baselines=[("full", 0.98)], published=True, seeds=1)
ODD_VALUES = [None, True, -1, 2, 2.0, 0.5, "text", "lora", [], [0.1, 0.2], [0.1, "x"], {}, {"mean": 1}]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_change_is_judged_as_a_full_reader_judges_it(data: st.DataObject) -> None:
    results = copy.deepcopy(SMALL)
    container, key = data.draw(st.sampled_from(places(results)).filter(lambda place: place[1] != "format"))
    if data.draw(st.booleans()):
        container[key] = data.draw(st.sampled_from(ODD_VALUES))
    else:
        del container[key]
    unknown_keys = [e for e in VALIDATOR.iter_errors(results) if e.validator != "additionalProperties"]
    assert bool(list(faults(results, schema(), "results"))) == bool(unknown_keys)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_number_that_is_not_finite(value: float, tmp_path: Path) -> None:
    results = sample_results()
    results["runs"][3]["validation_loss"] = value
    with pytest.raises(OutputError, match=r"results\.runs\[3\]\.validation_loss is (nan|inf); a finite number or null"):
        validate(results)
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(OutputError, match=r"(NaN|Infinity) where a finite number or null is needed"):
        read_results(tmp_path)


def test_the_schema_forbids_unknown_keys_and_reading_lets_them_pass() -> None:
    results = sample_results() | {"from_the_future": 1}
    validate(results)
    with pytest.raises(jsonschema.ValidationError, match="from_the_future"):
        VALIDATOR.validate(results)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"can't be read \(No such file.*give a run directory"),
        ("{", "damaged JSON"),
        ("[" * 100_000, "damaged JSON"),
        (b"\xff\xfe\x00", "damaged JSON"),
        ("[]", 'the format is missing; "rankwise-results-2" is needed'),
        ('{"format": "rankwise-results-9"}', 'the format is "rankwise-results-9"; "rankwise-results-2" is needed'),
        ('{"format": "rankwise-results-2"}', 'results has no "complete"'),
    ],
    ids=range(7),
)
def test_what_is_no_results_file(content: str | bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(OutputError, match=message) as caught:
        read_results(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
