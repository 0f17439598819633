"""Figures of generated texts."""

import math

import pytest

from rankwise.errors import DataError
from rankwise.tasks.text.score.generated import bleu, exact_match, rouge, score_texts


def test_exact_match_of_any_reference():
    assert exact_match(["a", "b ", "c"], [["x", "a"], ["b"], ["C"]]) == pytest.approx(2 / 3)


def test_bleu_by_hand_and_with_several_references():
    pytest.importorskip("sacrebleu")
    text, reference = "the cat sat on a mat", "the cat sat on the mat"
    assert bleu([reference], [[reference]]) == pytest.approx(100)
    # 5 of 6 words, 3 of 5 pairs, 2 of 4 threes, 1 of 3 fours; no penalty as the lengths are equal.
    assert bleu([text], [[reference]]) == pytest.approx(100 * math.prod((5 / 6, 3 / 5, 2 / 4, 1 / 3)) ** 0.25)
    assert bleu([text, "a dog"], [["x", text], ["a dog ran away", "a dog", "dogs"]]) == pytest.approx(100)


def test_rouge_by_hand():
    pytest.importorskip("rouge_score")
    scores = rouge(["the cat sat"], [["no", "the cat ran"]])
    assert scores == pytest.approx({"rouge1": 2 / 3, "rouge2": 1 / 2, "rougeL": 2 / 3})


def test_all_figures():
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    scores = score_texts(["one two three four"], [["one two three four"]])
    assert {name: round(value, 6) for name, value in scores.items()} == {
        "exact_match": 1, "bleu": 100, "rouge1": 1, "rouge2": 1, "rougeL": 1,
    }  # fmt: skip


@pytest.mark.parametrize(("texts", "references"), [([], []), (["a"], []), (["a"], [[]])])
def test_without_references(texts, references):
    with pytest.raises(DataError, match="each text needs a list of at least one"):
        score_texts(texts, references)
