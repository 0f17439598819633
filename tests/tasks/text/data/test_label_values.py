"""Labels of every shape that data hold: read the same wherever they mean the same, and refused by name otherwise."""

import datetime
import json
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from rankwise.errors import ConfigError, DataError
from rankwise.tasks.text.data.examples import Labelled
from rankwise.tasks.text.data.forms import read_examples
from rankwise.tasks.text.data.labels import Labels, find_labels, read_labels
from rankwise.tasks.text.data.loading import TextData, load_examples
from rankwise.tasks.text.read.sources import RawRecord, Records


def written(path: Path, labels: list[Any]) -> Path:
    rows = [{"text": f"one {i}", "label": label} for i, label in enumerate(labels)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def label_of(value: Any) -> Any:
    records = Records("a.jsonl", (RawRecord(1, {"text": "x", "label": value}),), ("text", "label"), {})
    return read_examples(records, "classify")[0][0].label  # pyright: ignore[reportAttributeAccessIssue]


HOT = [[1, 0, 1], [0, 1, 0], [0, 1, 1], [1, 0, 0]] * 10


@pytest.mark.parametrize("make", [int, float, bool])
def test_rows_of_0_and_1_have_a_place_for_each_label(make: Any, tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [[make(v) for v in row] for row in HOT])
    splits, names = load_examples(TextData(data=path), "classify")
    labels = find_labels(splits.train, None, names["label"], places=splits.places)  # pyright: ignore[reportArgumentType]
    assert labels == Labels("several", ("0", "1", "2"), places=True)
    lines = [e.line - 1 for e in splits.train]
    assert labels.encode(splits.train, "training").tolist() == [HOT[i] for i in lines]  # pyright: ignore[reportArgumentType]
    assert any("row of 0 and 1; its 3 places stand for 3 labels" in note for note in splits.notes)
    labels.save(tmp_path)
    assert read_labels(tmp_path) == labels


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([[0], [1], [0], [1]] * 10, ("0", "1")),
        ([[0, 1], [1], [0]] * 10, ("0", "1")),
        ([[0, 2], [1, 2]] * 10, ("0", "1", "2")),
        ([["0", "1"], ["1", "0"]] * 10, ("0", "1")),
    ],
    ids=["one each", "of several lengths", "other numbers", "texts"],
)
def test_lists_of_names_stay_lists_of_names(labels: list[Any], names: tuple[str, ...], tmp_path: Path) -> None:
    splits, known = load_examples(TextData(data=written(tmp_path / "a.jsonl", labels)), "classify")
    assert not splits.places
    found = find_labels(splits.train, None, known.get("label", ()))  # pyright: ignore[reportArgumentType]
    assert found == Labels("several", names)


def test_places_that_no_training_row_has_and_rows_in_a_csv_file(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [[1, 0, 0, 0], [0, 1, 0, 0]] * 10)
    splits, names = load_examples(TextData(data=path), "classify")
    assert names["label"] == ("0", "1", "2", "3")
    table = tmp_path / "a.csv"
    table.write_text("text,label\n" + "".join(f'one {i},"{json.dumps(row)}"\n' for i, row in enumerate(HOT)))
    splits, names = load_examples(TextData(data=table, labels="several"), "classify")
    assert splits.places
    assert names["label"] == ("0", "1", "2")


def test_a_test_row_of_another_length_is_named(tmp_path: Path) -> None:
    data, test = written(tmp_path / "a.jsonl", HOT), written(tmp_path / "b.jsonl", [[1, 0, 0], [1, 0]])
    with pytest.raises(DataError, match=r"line 2 \(the label is no row of 3 numbers 0 and 1\)"):
        load_examples(TextData(data=data, test=test), "classify")


def test_places_are_several_labels() -> None:
    with pytest.raises(ConfigError, match='--labels is "one", and the labels are rows of 0 and 1'):
        find_labels([Labelled(1, "a", ("0",))], "one", ("0", "1"), places=True)


@pytest.mark.parametrize(
    ("one", "other"),
    [(True, [True]), (2.0, [2]), ("a", [" a "]), (3, [3.0]), (7, ["7"]), (False, ["false"]), (-1.0, [-1])],
)
def test_a_label_has_one_name_alone_and_in_a_list(one: Any, other: list[Any]) -> None:
    alone, [listed] = label_of(one), label_of(other)
    found = find_labels([Labelled(1, "x", alone), Labelled(2, "x", "other")], "one")
    assert listed in found.names


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (datetime.date(2026, 1, 1), "the label is a date; it is a text, a number, or a list of these"),
        ({"a": 1}, "the label is a dict; it is"),
        (b"a", "the label is a bytes; it is"),
        (None, "the label is missing"),
        (" ", "the label is empty"),
        ([None], "a label in the list is missing"),
        ([[1]], "a label in the list is a list"),
        (["a", ""], "a label in the list is empty"),
        ([float("nan")], "a label in the list is nan, not a finite number"),
    ],
)
def test_what_is_no_label_is_called_what_it_is(value: Any, reason: str) -> None:
    with pytest.raises(DataError, match=rf"line 1 \({reason}"):
        label_of(value)


def test_decimals_are_numbers() -> None:
    assert label_of(Decimal("0.5")) == 0.5


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["1", "01", "001"], ("001", "01", "1")),
        (["2", "10", "02"], ("02", "2", "10")),
        (["--5", "5"], ("--5", "5")),
        (["-", "1"], ("-", "1")),
        (["-1", "1", "0"], ("-1", "0", "1")),
    ],
)
def test_whole_numbers_have_one_order(names: list[str], order: tuple[str, ...]) -> None:
    for given in (names, names[::-1]):
        assert find_labels([Labelled(i, "x", name) for i, name in enumerate(given, start=1)]).names == order


def test_the_order_is_the_same_in_every_process() -> None:
    script = (
        "from rankwise.tasks.text.data.labels import find_labels; "
        "from rankwise.tasks.text.data.examples import Labelled; "
        "print(find_labels([Labelled(i, 'x', n) for i, n in enumerate(['1', '01', '001', '2', '02'])]).names)"
    )
    environment = {"PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    there = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    ).stdout
    here = find_labels([Labelled(i, "x", n) for i, n in enumerate(["1", "01", "001", "2", "02"])]).names
    assert there.strip() == str(here)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ([0.2, 0.8], "a list with the number 0.2; a row of scores is no list of labels"),
        ([3, 1, 3], "a list that has the number 3 twice, so it is a row of values"),
        ([1, -1, 1], "a list that has the number 1 twice"),
    ],
)
def test_rows_of_values_are_no_lists_of_labels(label: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        label_of(label)


LISTS = {
    "python": ["['a', 'b']", "['a']", "['b', \"c's\"]", "[]"],
    "json": ['["a", "b"]', '["a"]', '["b", "c\'s"]', "[]"],
}


@pytest.mark.parametrize("labels", LISTS.values(), ids=LISTS.keys())
def test_lists_in_a_table_are_several_labels(tmp_path: Path, labels: list[str]) -> None:
    data = written(tmp_path / "a.jsonl", labels * 5)
    splits, _ = load_examples(TextData(data=data), "classify")
    assert {e.label for e in splits.train} == {("a", "b"), ("a",), ("b", "c's"), ()}
    assert any("each label is written as a list" in note for note in splits.notes)
    splits, _ = load_examples(TextData(data=data, labels="one"), "classify")
    assert {e.label for e in splits.train} == {*labels}


def test_lists_without_commas_are_refused(tmp_path: Path) -> None:
    """As numpy writes them; in Python two texts side by side are one."""
    data = written(tmp_path / "a.jsonl", ["['a' 'b']"] * 5)
    with pytest.raises(DataError, match="begins as a list and is none"):
        load_examples(TextData(data=data), "classify")


@pytest.mark.parametrize("kind", [None, "number"])
def test_numbers_of_a_table_are_no_names(tmp_path: Path, kind: str | None) -> None:
    """Each number occurs once, and no cut may take the last example of a name."""
    table = tmp_path / "a.csv"
    table.write_text("text,label\n" + "\n".join(f"text {i},{i}.25" for i in range(20)))
    splits, _ = load_examples(TextData(data=table, labels=kind), "classify")
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (16, 2, 2)
    assert {e.label for e in splits.train + splits.validation + splits.test} == {i + 0.25 for i in range(20)}
    with pytest.raises(DataError, match="20 examples with 20 different inputs can't be cut in two"):
        load_examples(TextData(data=table, labels="one"), "classify")


@pytest.mark.parametrize("missing", ["nan", "inf", "-Infinity"])
def test_no_number_among_numbers(tmp_path: Path, missing: str) -> None:
    table = tmp_path / "a.csv"
    table.write_text("text,label\n" + "\n".join(f"text {i},{missing if i == 7 else i % 2}" for i in range(20)))
    with pytest.raises(DataError, match=f'^Line 9 has the label "{missing}" among numbers; leave the line out'):
        load_examples(TextData(data=table), "classify")
    splits, _ = load_examples(TextData(data=table, labels="one"), "classify")
    assert missing in {e.label for e in splits.train}


def test_numbers_that_32_bits_do_not_tell_apart() -> None:
    examples = [Labelled(i, "x", 16777216.5 + 2 * (i % 3)) for i in range(9)]
    with pytest.raises(DataError, match=r"differ by about 1.63, and 32 bits round them by up to"):
        find_labels(examples)
    with pytest.raises(DataError, match=r"label 1e\+39, which is beyond what 32 bits hold"):
        Labels("number", ("value",)).encode([Labelled(1, "x", 1e39)], "training")


@pytest.mark.parametrize(
    "content",
    [
        {"kind": "two", "names": ["a", "b"]},
        {"kind": "one", "names": [0, 1]},
        {"kind": "one", "names": "ab"},
        {"kind": "one", "names": ["a", "a"]},
        {"kind": "one", "names": []},
    ],
)
def test_files_of_labels_that_are_none(tmp_path: Path, content: dict[str, Any]) -> None:
    (tmp_path / "labels.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"labels\.json is damaged"):
        read_labels(tmp_path)
