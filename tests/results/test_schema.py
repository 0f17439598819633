"""The shipped schema is that of the types, and reading agrees with a full reader of JSON schemas."""

import copy
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwise.errors import OutputError
from rankwise.results import parsed, plain
from rankwise.results.schema import generated_schema, shipped_schema
from sample_results import sample_content

VALIDATOR = jsonschema.Draft202012Validator(shipped_schema())


def test_the_shipped_schema_is_that_of_the_types() -> None:
    """After a change of the types: python -m rankwise.results.schema > src/rankwise/results/results.schema.json"""
    assert shipped_schema() == generated_schema()


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(shipped_schema())


def test_every_key_but_that_of_another_type_has_a_meaning() -> None:
    kinds = {"results": shipped_schema(), **shipped_schema()["$defs"]}
    own = {"mean", "interval", "metric", "trainable_parameters", "method", "r", "format", "p_within", "name", "over"}
    own |= {"lower_bound", "relative_parameters", "relative_metric"}
    silent = [
        f"{kind}.{key}"
        for kind, definition in kinds.items()
        for key, rule in definition["properties"].items()
        if "description" not in rule and "$ref" not in rule and key not in own
    ]
    assert silent == []
    assert all(definition["description"] for definition in kinds.values())


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) below a value."""
    found: list[tuple[Any, Any]] = []
    for key, entry in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        found += [(value, key), *places(entry)]
    return found


SMALL = sample_content([2, 4], baselines=[("full", 0.98)], published=True, seeds=1)
ODD_VALUES = [None, True, -1, 2, 0.5, "text", "lora", [], [0.1, 0.2], [0.1, "x"], {}, {"mean": 1}]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_change_is_judged_as_a_full_reader_judges_it(data: st.DataObject) -> None:
    content = copy.deepcopy(SMALL)
    container, key = data.draw(st.sampled_from(places(content)).filter(lambda place: place[1] != "format"))
    if data.draw(st.booleans()):
        container[key] = data.draw(st.sampled_from(ODD_VALUES))
    else:
        del container[key]
    unknown_keys = [e for e in VALIDATOR.iter_errors(content) if e.validator != "additionalProperties"]
    if unknown_keys:
        with pytest.raises(OutputError, match=r"^results"):
            parsed(content)
    else:
        VALIDATOR.validate(plain(parsed(content)))


def test_the_schema_forbids_unknown_keys_and_reading_lets_them_pass() -> None:
    content = sample_content() | {"from_the_future": 1}
    assert "from_the_future" not in plain(parsed(content))
    with pytest.raises(jsonschema.ValidationError, match="from_the_future"):
        VALIDATOR.validate(content)
