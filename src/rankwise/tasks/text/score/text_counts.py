r"""Figures of generated texts as what each text adds to sums, so that they can decide a sweep.

Corpus BLEU is a function of sums over the texts: matched n-grams $m_n$, n-grams $t_n$ (n = 1 to 4), tokens written
$c$, and tokens of the nearest reference $r$:

$$\text{BLEU} = 100 \cdot \min\left(1, e^{1 - r/c}\right) \prod_{n=1}^4 p_n^{1/4}, \qquad p_n = m_n / t_n$$

References:
    Papineni et al., BLEU: a Method for Automatic Evaluation of Machine Translation, 2002.
    Post, A Call for Clarity in Reporting BLEU Scores, 2018 (sacrebleu).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rankwise.errors import ConfigError, suggest
from rankwise.tasks.text.extra import requires_extra
from rankwise.tasks.text.score.generated import References

ORDERS = 4
"""BLEU's longest n-grams."""


def bleu_counts(texts: Sequence[str], references: References) -> Float[Tensor, "rows 10"]:
    """Sacrebleu's statistics of each text: tokens, tokens of the nearest reference, matches and totals of n-grams."""
    with requires_extra("BLEU scores"):
        from sacrebleu.metrics.bleu import BLEU

    # The order changes no statistic; without it a warning about sentences comes with each.
    scorer = BLEU(effective_order=True, force=True)
    scores: list[Any] = [scorer.sentence_score(text, list(own)) for text, own in zip(texts, references, strict=True)]
    return torch.tensor([[s.sys_len, s.ref_len, *s.counts, *s.totals] for s in scores], dtype=torch.float64)


def bleu_of_counts(sums: Float[Tensor, "*lead 10"]) -> Float[Tensor, "*lead"]:
    """Corpus BLEU of summed `bleu_counts`, 0 to 100, as sacrebleu computes it.

    An order without a match counts half a match, the next such one a quarter, ... (smoothing "exp", sacrebleu's
    default); without any match, or where no text has four tokens, BLEU is 0.

    Examples:
        >>> bleu_of_counts(torch.tensor([4.0, 4, 4, 3, 2, 1, 4, 3, 2, 1]))
        tensor(100., dtype=torch.float64)
    """
    written, nearest, counts = sums.double().split([1, 1, 2 * ORDERS], dim=-1)
    matches, totals = counts.split(ORDERS, dim=-1)
    missed = matches == 0
    smoothed = torch.where(missed, 0.5 ** missed.cumsum(-1), matches)
    mean_log = (smoothed / totals.clamp_min(1)).log().mean(-1)
    brevity = (1 - nearest / written.clamp_min(1)).clamp_max(0).squeeze(-1)
    none = missed.all(-1) | (totals == 0).any(-1)
    return torch.where(none, 0.0, 100 * (mean_log + brevity).exp())


def exact_rows(texts: Sequence[str], references: References) -> Float[Tensor, " rows"]:
    """1 for each text that equals one of its references, white space at the ends aside."""
    return torch.tensor(
        [float(text.strip() in {r.strip() for r in own}) for text, own in zip(texts, references, strict=True)]
    )


def rouge_l_rows(texts: Sequence[str], references: References) -> Float[Tensor, " rows"]:
    """ROUGE-L's F of each text with the best of its references, by rouge-score, with stemming."""
    with requires_extra("ROUGE scores"):
        from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    pairs = zip(texts, references, strict=True)
    return torch.tensor([scorer.score_multi(list(own), text)["rougeL"].fmeasure for text, own in pairs])


@dataclass(frozen=True)
class TextMetric:
    """A figure of generated texts; more is better.

    Args:
        name: As in results.
        measure: (texts, references) -> a value for each text; with `of_sums` what each adds to the sums.
        of_sums: From sums to the figure; None where it is the mean.
    """

    name: str
    measure: Callable[[Sequence[str], References], Tensor]
    of_sums: Callable[[Tensor], Tensor] | None = None


LOSS = "loss"
"""The metric of texts to imitate that needs none to be written: the default."""

TEXT_METRICS = {
    "bleu": TextMetric("BLEU", bleu_counts, bleu_of_counts),
    "rouge_l": TextMetric("ROUGE-L", rouge_l_rows),
    "exact_match": TextMetric("exact match", exact_rows),
}
"""What written answers can be judged by."""


def text_metric_of(name: str | None) -> TextMetric | None:
    """The metric by the name that `--metric` gives it; None for the loss, the default.

    Raises:
        ConfigError: There is none of this name.
    """
    if name is None or name == LOSS:
        return None
    if name not in TEXT_METRICS:
        known = ", ".join([LOSS, *TEXT_METRICS])
        raise ConfigError(
            f'--metric is "{name}"; texts to imitate can be judged by {known}.{suggest(name, [LOSS, *TEXT_METRICS])}'
        )
    return TEXT_METRICS[name]
