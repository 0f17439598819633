"""A part of the examples: even, nested, with a label of each kind."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.errors import DataError
from rankwise.tasks.text.data.examples import Labelled, PlainText
from rankwise.tasks.text.data.subset import drawn


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(1, 50), st.integers(1, 50), st.integers(0, 3))
def test_a_smaller_part_lies_in_a_larger_one_and_labels_stay(labels, few, many, seed):
    examples = [Labelled(i, f"text {i}", f"label {label}") for i, label in enumerate(labels)]
    few, many = sorted((few, many))
    small, large = (drawn(examples, n, seed, "train") for n in (few, many))
    assert set(small) <= set(large)
    for n, part in ((few, small), (many, large)):
        assert part == sorted(set(part))
        assert len(part) == min(n, len(examples))
        assert len({labels[i] for i in part}) == min(n, len(examples), len(set(labels)))


def test_every_example_is_as_likely():
    """400 draws of 5 of 20: each is drawn 100 times, with a standard deviation of sqrt(400 x 1/4 x 3/4) = 8.7."""
    examples = [PlainText(i, f"text {i}") for i in range(20)]
    counts = Counter(i for seed in range(400) for i in drawn(examples, 5, seed, "train"))
    assert all(100 - 5 * 8.7 < counts[i] < 100 + 5 * 8.7 for i in range(20))


def test_each_purpose_has_a_draw_of_its_own():
    examples = [PlainText(i, f"text {i}") for i in range(100)]
    assert drawn(examples, 30, 0, "train") == drawn(examples, 30, 0, "train")
    assert drawn(examples, 30, 0, "train") != drawn(examples, 30, 0, "test")


def test_nothing_is_no_part():
    with pytest.raises(DataError, match="The number of test examples is 0; it must be at least 1"):
        drawn([PlainText(1, "x")], 0, 0, "test")
