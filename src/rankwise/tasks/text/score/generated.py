"""Figures of generated texts against references: exact match, BLEU, ROUGE. Several references a text are allowed."""

from collections.abc import Callable, Sequence
from importlib import import_module

from rankwise.errors import DataError
from rankwise.tasks.text.data.examples import SftExample
from rankwise.tasks.text.extra import requires_extra

References = Sequence[Sequence[str]]
"""For each text the answers that are right."""


def group_references(
    examples: Sequence[SftExample], texts: Sequence[str] | None = None
) -> tuple[list[SftExample], list[list[str]]]:
    """Merge examples with the same input into one with all their answers: a generated text is compared with all.

    Args:
        examples: The examples.
        texts: Their answers as a model writes them; None takes their own.

    Returns:
        The first example of each input, in their order, and the answers of each.

    Examples:
        >>> from rankwise.tasks.text.data.examples import PromptPair
        >>> group_references([PromptPair(1, "a", "one"), PromptPair(2, "b", "two"), PromptPair(3, "a", "1")])[1]
        [['one', '1'], ['two']]
    """
    answers: dict[str, list[str]] = {}
    first: dict[str, SftExample] = {}
    for example, text in zip(examples, [e.answer for e in examples] if texts is None else texts, strict=True):
        first.setdefault(example.source, example)
        answers.setdefault(example.source, []).append(text)
    return list(first.values()), list(answers.values())


def exact_match(texts: Sequence[str], references: References) -> float:
    """Share of texts that equal one of their references, white space at the ends aside.

    Examples:
        >>> exact_match(["yes ", "no"], [["yes"], ["maybe", "No"]])
        0.5
    """
    hits = [text.strip() in {r.strip() for r in own} for text, own in zip(texts, references, strict=True)]
    return sum(hits) / len(hits)


def bleu(texts: Sequence[str], references: References) -> float:
    """Corpus BLEU by sacrebleu with its default tokenisation: 0 to 100.

    References:
        Post, A Call for Clarity in Reporting BLEU Scores, 2018. https://arxiv.org/abs/1804.08771
    """
    with requires_extra("BLEU scores"):
        from sacrebleu.metrics.bleu import BLEU

    # sacrebleu takes the i-th reference of every text together; None where a text has fewer.
    most = max(map(len, references))
    columns = [[own[i] if i < len(own) else None for own in references] for i in range(most)]
    # Nothing is tokenised beforehand, so a warning of texts that look so is a false alarm.
    score = BLEU(force=True).corpus_score(list(texts), columns)  # pyright: ignore[reportArgumentType]
    return score.score


def rouge(texts: Sequence[str], references: References) -> dict[str, float]:
    """ROUGE-1, -2 and -L by rouge-score, with stemming: mean F over the texts, the best of its references for each.

    References:
        Lin, ROUGE: A Package for Automatic Evaluation of Summaries, 2004.
    """
    with requires_extra("ROUGE scores"):
        from rouge_score.rouge_scorer import RougeScorer

    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(kinds, use_stemmer=True)
    scores = [scorer.score_multi(list(own), text) for text, own in zip(texts, references, strict=True)]
    return {kind: sum(score[kind].fmeasure for score in scores) / len(scores) for kind in kinds}


def check_scorers() -> None:
    """Refuse to begin where a package that `score_texts` needs is not installed.

    Raises:
        ConfigError: One is not.
    """
    with requires_extra("scores of generated texts"):
        import_module("sacrebleu")
        import_module("rouge_score")


SCORES: dict[str, Callable[[Sequence[str], References], dict[str, float]]] = {
    "exact match": lambda texts, references: {"exact_match": exact_match(texts, references)},
    "BLEU": lambda texts, references: {"bleu": bleu(texts, references)},
    "ROUGE": rouge,
}


def score_texts(texts: Sequence[str], references: References) -> dict[str, float]:
    """All figures of generated texts.

    Raises:
        DataError: There is no text, or not one list of references for each, or an empty one.
    """
    if not texts or len(texts) != len(references) or not all(references):
        raise DataError(
            f"There are {len(texts)} generated texts and {len(references)} lists of references; "
            "each text needs a list of at least one."
        )
    return {name: value for score in SCORES.values() for name, value in score(texts, references).items()}
