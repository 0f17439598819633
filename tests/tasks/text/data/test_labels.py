"""Labels as numbers and back: kinds, order, files, and what does not fit."""

import pytest
import torch

from rankwise.errors import ConfigError, DataError
from rankwise.tasks.text.data.examples import Labelled
from rankwise.tasks.text.data.labels import Labels, find_labels, read_labels


def examples(*labels):
    return [Labelled(i, f"text {i}", label) for i, label in enumerate(labels, start=1)]


@pytest.mark.parametrize(
    ("given", "kind", "names", "encoded"),
    [
        (["b", "a", "b"], "one", ("a", "b"), [1, 0, 1]),
        (["10", "9", "-1"], "one", ("-1", "9", "10"), [2, 1, 0]),
        ([1.0, 2.0], "one", ("1", "2"), [0, 1]),
        ([("x", "z"), (), ("y",)], "several", ("x", "y", "z"), [[1, 0, 1], [0, 0, 0], [0, 1, 0]]),
        ([0.5, 2.0], "number", ("value",), [[0.5], [2.0]]),
    ],
)
def test_kinds_are_found_and_names_ordered(given, kind, names, encoded):
    labels = find_labels(examples(*given))
    assert labels == Labels(kind, names)
    assert labels.encode(examples(*given), "training").tolist() == encoded


def test_numbers_as_texts_of_a_csv_file_are_numbers_on_request():
    assert find_labels(examples("3.5", "4"), "number").encode(examples("3.5", "4"), "training").tolist() == [
        [3.5],
        [4.0],
    ]


def test_an_order_of_ones_own_is_kept():
    assert find_labels(examples("a", "b"), names=["z", "b", "a"]).names == ("z", "b", "a")


def test_labels_are_saved_in_their_order(tmp_path):
    labels = Labels("one", ("zwölf", "eins"))
    assert labels.save(tmp_path / "adapter").name == "labels.json"
    assert read_labels(tmp_path / "adapter") == labels


def test_a_label_only_in_test_is_named_with_its_line():
    labels = find_labels(examples("card", "cash"))
    with pytest.raises(DataError, match=r'test data has labels.*"cadr" \(line 2\).*Did you mean "card"\?') as caught:
        labels.encode(examples("cash", "cadr"), "test")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "kind", "error", "message"),
    [
        (["a", "b"], "two", ConfigError, r'kind of label "two" is not known; there are one, several, number'),
        (["a", "a"], None, DataError, "has 1 different labels; a classifier needs at least 2"),
        ([("a", "b"), ("a",)], "one", DataError, "Line 1 has 2 labels; give --labels several"),
    ],
)
def test_labels_that_can_not_be_used(given, kind, error, message):
    with pytest.raises(error, match=message):
        find_labels(examples(*given), kind)


def test_names_given_twice():
    with pytest.raises(ConfigError, match="named twice"):
        find_labels(examples("a", "b"), names=["a", "a"])


@pytest.mark.parametrize(
    ("label", "message"), [("high", 'Line 1 has the label "high"; a number'), ("nan", "label nan; a finite number")]
)
def test_no_number(label, message):
    with pytest.raises(DataError, match=message):
        Labels("number", ("value",)).encode(examples(label), "training")


@pytest.mark.parametrize("content", [None, "{", '{"kind": "one"}', "[]"])
def test_a_missing_or_damaged_file(tmp_path, content):
    if content is not None:
        (tmp_path / "labels.json").write_text(content)
    with pytest.raises(DataError, match=r"labels\.json (can't be read|is damaged)"):
        read_labels(tmp_path)


def test_transformers_words():
    assert [Labels(kind, ()).problem_type for kind in ("one", "several", "number")] == [
        "single_label_classification",
        "multi_label_classification",
        "regression",
    ]
    assert torch.is_floating_point(Labels("several", ("a",)).encode(examples(("a",)), "training"))
