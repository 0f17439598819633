"""What to deploy, by the verdict: what a headline leaves open, and a sentence for the card of each adapter."""

from collections.abc import Callable

from rankwise.report.numbers import configuration_words
from rankwise.results import AnswerResult, Results, RunResult, Verdict


def deployment(results: Results) -> str | None:
    """What to deploy, as far as the headline does not say it; None where it does, or while the sweep is not complete.

    Returns:
        For example "Deploy r = 4 (adapters/r4-lr0.003-s0), as an adapter or merged into the base."
    """
    answer = results.answer
    if answer is None or not results.complete or results.configuration(answer.reference) is None:
        return None
    return _DEPLOY[answer.verdict](results, answer)


def _shown(results: Results, answer: AnswerResult) -> str:
    chosen = results.configuration(answer.name)
    where = f" ({answer.adapter})" if answer.adapter else ""
    if chosen is not None and chosen.method == "head":
        return f"Deploy the base with its trained head{where}; A and B of that adapter add nothing."
    label = answer.name if chosen is None else configuration_words(chosen)
    return f"Deploy {label}{where}, as an adapter or merged into the base."


def _no_gain(results: Results, answer: AnswerResult) -> str | None:
    if answer.gain is not None and answer.gain.over == "constant":
        return "Deploy none of these: look at data, labels and learning rates first."
    return None


def _nothing_smaller(results: Results, answer: AnswerResult) -> str | None:
    """Where the reference's weights are: those of full fine-tuning are not saved."""
    reference = results.configuration(answer.reference)
    if reference is None or reference.method != "full":
        saved = None if reference is None else _adapter_of(results, reference.runs)
        return f"Deploy {saved}." if saved else None
    rate = "" if reference.lr is None else f" at learning rate {reference.lr:g}"
    return f"The weights of full fine-tuning are not saved: train it again with your own trainer{rate}."


def _undecided(results: Results, answer: AnswerResult) -> str | None:
    reference = _nothing_smaller(results, answer)
    saved = any(run.adapter for run in results.runs)
    if reference is None or not saved:
        return reference
    return f"{reference.removesuffix('.')}, or deploy an adapter whose figures are enough for you, from adapters/."


_DEPLOY: dict[Verdict, Callable[[Results, AnswerResult], str | None]] = {
    "shown": _shown,
    "nothing_smaller": _nothing_smaller,
    "no_gain": _no_gain,
    "undecided": _undecided,
}


def _adapter_of(results: Results, runs: list[str]) -> str | None:
    return next((run.adapter for run in results.runs if run.name in runs and run.adapter), None)


def adapter_role(results: Results, run: RunResult) -> str:
    """What the sweep says about one of its adapters, in a sentence for its card.

    Args:
        results: The content of `results.json`.
        run: What trained the adapter.
    """
    answer = results.answer
    if answer is None or len(results.configurations) < 2:
        return "It was trained alone, so nothing says how another size would do."
    if not results.complete:
        return "The sweep that trained it is not complete and recommends nothing yet."
    if answer.verdict == "shown" and run.adapter is not None and run.adapter == answer.adapter:
        return "The sweep recommends this adapter."
    own = next((c for c in results.configurations if run.name in c.runs), None)
    size = "" if own is None else _SIZES.get(own.state or "", "")
    return f"The sweep does not recommend this adapter{size}."


_SIZES = {
    "shown": "; its size is shown to be enough",
    "open": "; its size is not shown to be enough",
    "not": "; its size is shown to be worse than the reference by more than the tolerance",
}
"""State of an adapter's configuration -> what it means."""
