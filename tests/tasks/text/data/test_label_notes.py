"""Labels that may not be what was meant are said."""

import pytest

from rankwise.tasks.text.data.examples import Labelled
from rankwise.tasks.text.data.label_notes import label_notes
from rankwise.tasks.text.data.labels import find_labels


def notes(*labels: str, kind: str | None = None) -> list[str]:
    train = [Labelled(i, f"text {i}", label) for i, label in enumerate(labels, start=1)]
    return label_notes(find_labels(train, kind), train, kind)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (("Spam", "spam", "ham"), 'The labels "Spam", "spam" are different labels, though'),
        (("caf\u00e9", "cafe\u0301"), r'The labels "cafe\u0301", "caf\u00e9" are different labels, though'),
        (("a  b", "a b"), 'The labels "a  b", "a b" are different labels'),
        (("0,27", "27", "0", "3"), '1 labels, such as "0,27", are taken as one label each;'),
        (("comedy|drama", "drama", "action|comedy", "action"), "2 labels, such as"),
        (("3.9", "3.10"), "The labels are read as numbers to predict, from 3.1 to 3.9; --labels one reads"),
    ],
)
def test_doubtful_labels(labels: tuple[str, ...], said: str) -> None:
    (note,) = notes(*labels)
    assert note.startswith(said)


@pytest.mark.parametrize("labels", [("spam", "ham"), ("Arts, Crafts", "Books"), ("a|", "b", "c"), ("3.9", "x")])
def test_labels_without_a_doubt(labels: tuple[str, ...]) -> None:
    assert notes(*labels) == []


def test_kinds_that_were_asked_for() -> None:
    assert notes("3.9", "3.10", kind="number") == []
    assert notes("3.9", "3.10", kind="one") == []
