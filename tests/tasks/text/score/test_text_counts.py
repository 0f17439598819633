"""Figures of generated texts as sums over texts, against sacrebleu, rouge-score and the paired bootstrap."""

import random

import numpy as np
import pytest
import torch

pytest.importorskip("sacrebleu")
pytest.importorskip("rouge_score")

from rankwise.errors import ConfigError
from rankwise.pack.counts import CountMetric
from rankwise.tasks.text.score.generated import bleu, score_texts
from rankwise.tasks.text.score.text_counts import (
    TEXT_METRICS,
    bleu_counts,
    bleu_of_counts,
    text_metric_of,
)

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "mat", "here", "now", ",", "."]


def corpus(n: int, seed: int, longest: int = 12) -> tuple[list[str], list[list[str]]]:
    """Random texts, some of them empty, with one to three references of random length."""
    draw = random.Random(seed)

    def text(least: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(least, longest)))

    return [text(0) for _ in range(n)], [[text(1) for _ in range(draw.randint(1, 3))] for _ in range(n)]


@pytest.mark.parametrize(("n", "longest"), [(1, 3), (2, 12), (30, 6), (60, 14)])
def test_bleu_of_counts_is_that_of_sacrebleu(n: int, longest: int):
    for seed in range(8):
        texts, references = corpus(n, seed, longest)
        counts = bleu_counts(texts, references)
        assert float(bleu_of_counts(counts.sum(0))) == pytest.approx(bleu(texts, references), abs=1e-9)
        both = torch.stack([counts, counts.flip(0)]).sum(1)
        assert bleu_of_counts(both).shape == (2,)


def test_the_mean_of_the_rows_is_the_figure_of_the_corpus():
    texts, references = corpus(40, 0)
    texts[:10] = [own[0] for own in references[:10]]
    whole = score_texts(texts, references)
    for name, figure in (("bleu", "bleu"), ("rouge_l", "rougeL"), ("exact_match", "exact_match")):
        metric = TEXT_METRICS[name]
        values = metric.measure(texts, references)
        rows = values if metric.of_sums is None else CountMetric(lambda o, b: o, metric.of_sums).rows(values)
        assert rows.shape == (40,)
        assert float(rows.double().mean()) == pytest.approx(whole[figure], rel=1e-5)


def worse(reference: str, share: float, draw: random.Random) -> str:
    """A reference with some of its words replaced or left out."""
    said = [w if draw.random() > share else draw.choice([*WORDS, ""]) for w in reference.split()]
    return " ".join(w for w in said if w)


def test_pseudo_values_have_the_error_of_the_paired_bootstrap():
    """Koehn 2004: draw texts with replacement, the same for both systems, and look at the spread of the difference."""
    draw, n = random.Random(1), 120
    _, references = corpus(n, 2, longest=14)
    one, other = (
        bleu_counts([worse(own[0], share, draw) for own in references], references).double() for share in (0.3, 0.4)
    )
    metric = CountMetric(lambda outputs, batch: outputs, bleu_of_counts)
    difference = metric.rows(one).double() - metric.rows(other).double()
    error = float(difference.std(correction=1)) / n**0.5
    picks = torch.from_numpy(np.random.default_rng(0).integers(n, size=(2000, n)))
    spread = (bleu_of_counts(one[picks].sum(1)) - bleu_of_counts(other[picks].sum(1))).std(correction=1)
    assert error == pytest.approx(float(spread), rel=0.08)
    as_one_by_one = torch.stack([bleu_of_counts(c) for c in (one, other)]).diff(dim=0).std() / n**0.5
    assert abs(float(as_one_by_one) / float(spread) - 1) > 0.15, "BLEU of single texts has another spread"


def test_the_names_of_the_command_line():
    assert text_metric_of(None) is text_metric_of("loss") is None
    with pytest.raises(ConfigError, match='"blue"; texts to imitate can be judged by loss, bleu, rouge_l, exact_match'):
        text_metric_of("blue")
