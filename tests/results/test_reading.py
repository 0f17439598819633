"""`results.json` is read into its types, whole or not at all, and written as it was."""

import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from rankwise.errors import OutputError
from rankwise.results import parsed, plain, read_results
from rankwise.results.schema import shipped_schema
from sample_results import sample_content

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.stem)
def test_files_written_before_the_types_are_read_and_written_back(path: Path) -> None:
    """Keys, their order, and values; a number that is whole may come back with its point."""
    content = json.loads(path.read_text())
    again = plain(read_results(path))
    assert again == content
    without_numbers = (json.dumps(one, default=str) for one in (keys_of(again), keys_of(content)))
    assert len({*without_numbers}) == 1
    jsonschema.Draft202012Validator(shipped_schema()).validate(content)


def keys_of(value: Any) -> Any:
    """The keys of a value, in order, and of all in it."""
    if isinstance(value, dict):
        return {key: keys_of(entry) for key, entry in value.items()}
    return [keys_of(entry) for entry in value] if isinstance(value, list) else None


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
def test_samples_are_read(given: dict[str, Any], tmp_path: Path) -> None:
    content = sample_content(**given)
    results = parsed(content)
    assert plain(results).items() >= {key: plain(results[key]) for key in content}.items()
    (tmp_path / "results.json").write_text(json.dumps(content))
    assert read_results(tmp_path) == read_results(tmp_path / "results.json") == results


def test_keys_of_the_file_work_as_before() -> None:
    results = parsed(sample_content([4]))
    assert results["configurations"][0]["name"] == results.configurations[0].name == "r4"
    assert dict(results.metric) == {"name": "accuracy", "higher_is_better": True}
    assert results.grid["ranks"] == [4]
    assert results.base["metric"] == 0.33
    assert results.answer is not None
    assert results.answer.get("next", "none") == "none"
    with pytest.raises(KeyError, match="nothing"):
        results["nothing"]


def test_what_an_open_object_does_not_name_is_among_others() -> None:
    content = sample_content()
    content["base"] |= {"accuracy_on_0_4": 0.5, "others": 1.5}
    content["grid"]["protocol"] = "standard"
    content["data"]["name"] = "embedded"
    content["data"]["test"]["language"] = "de"
    results = parsed(content)
    assert results.base.others == {"accuracy_on_0_4": 0.5, "others": 1.5}
    assert results.grid.others == {"protocol": "standard"}
    assert results.data.others == {"name": "embedded"}
    assert results.data.test.others == {"language": "de"}
    again = plain(results)
    assert again["base"].items() >= content["base"].items()
    assert (again["grid"], again["data"]) == (content["grid"], content["data"])


def test_results_of_format_1_are_read_as_what_they_show() -> None:
    """Format 1 called a configuration the answer whose mean alone passed."""
    content = sample_content(separable=False)
    old = {k: v for k, v in content["answer"].items() if k not in ("verdict", "confidence", "leaning")}
    old |= {"name": "r4", "separable": False}
    configurations = [
        {k: v for k, v in c.items() if k not in ("p_within", "state")} | {"is_answer": c["name"] == "r4"}
        for c in content["configurations"]
    ]
    read = parsed({**content, "format": "rankwise-results-1", "answer": old, "configurations": configurations})
    assert read.answer is not None
    assert (read.answer.verdict, read.answer.name) == ("undecided", "full")
    assert plain(read.answer.leaning) == {"name": "r4", "p_within": None}
    assert not any(c.is_answer for c in read.configurations)
    shown = parsed({**content, "format": "rankwise-results-1", "answer": old | {"separable": True}})
    assert shown.answer is not None
    assert (shown.answer.verdict, shown.answer.name) == ("shown", "r4")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_number_that_is_not_finite(value: float, tmp_path: Path) -> None:
    content = sample_content()
    content["runs"][3]["validation_loss"] = value
    with pytest.raises(OutputError, match=r"results\.runs\[3\]\.validation_loss is (nan|inf); a finite number or null"):
        parsed(content)
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(OutputError, match=r"(NaN|Infinity) where a finite number or null is needed"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps(content).replace("NaN", "1e999").replace("Infinity", "1e999"))
    with pytest.raises(OutputError, match=r"validation_loss is inf; a finite number or null"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("runs", 3, "r"), "8", r'results\.runs\[3\]\.r is "8"; int or null is needed\.'),
        (("runs", 3, "r"), -1, r"results\.runs\[3\]\.r is -1; int >= 0 is needed\."),
        (("runs", 0, "status"), "lost", r"results\.runs\[0\]\.status is \"lost\": Invalid enum value 'lost'\."),
        (("answer", "verdict"), None, r"results\.answer\.verdict is null; str is needed\."),
        (("configurations", 0, "interval"), [1.0], r"interval is \[1\.0\]; array of length 2 is needed\."),
        (("versions", "torch"), 2, r"results\.versions\[\.\.\.\] is .*; str or null is needed\."),
        (("metric",), [], r"results\.metric is \[\]; object is needed\."),
    ],
    ids=str,
)
def test_a_value_of_another_kind_is_named_with_its_place(path: tuple[Any, ...], value: Any, message: str) -> None:
    content: Any = sample_content()
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(OutputError, match=message) as caught:
        parsed(content)
    assert "\n" not in str(caught.value)


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
        ('{"format": "rankwise-results-1"}', 'results has no "complete"'),
        ('{"format": "rankwise-results-1", "configurations": 5, "answer": {}}', "results"),
        ('{"format": "rankwise-results-1", "configurations": [1, {}], "answer": {"name": 1}}', "results"),
    ],
    ids=range(10),
)
def test_what_is_no_results_file(content: str | bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(OutputError, match=message) as caught:
        read_results(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
