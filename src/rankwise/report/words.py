"""The answer in words."""

from collections.abc import Callable

from rankwise.errors import option
from rankwise.report import numbers
from rankwise.report.adapter.deploy import deployment
from rankwise.report.cut.ship_words import ship_words
from rankwise.report.numbers import configuration_words
from rankwise.results import AnswerResult, ConfigurationResult, Results, Verdict
from rankwise.results.kinds import Interval
from rankwise.results.outcomes import ByLoss
from rankwise.sweeps.choose.wording import floor_words, probability


def headline(results: Results) -> str:
    """Write the verdict, or that there is none, in one or two sentences.

    Returns:
        For example "Shown: r = 4, 4,180 parameters (7.6% of full fine-tuning), reaches 97.9% of its test accuracy (95%
        interval 97.4 to 98.3)."
    """
    answer = results.answer
    if answer is None:
        return _no_answer(results)
    if stands_alone(results):
        return _alone(results)
    return HEADLINES[answer.verdict](results, answer)


def _shown(results: Results, answer: AnswerResult) -> str:
    chosen, reference = results.configuration(answer.name), results.configuration(answer.reference)
    if chosen is None or reference is None:
        return _no_answer(results)
    name = numbers.words(results.metric.name)
    start = f"Shown: {chosen.label}, {numbers.count(answer.trainable_parameters)} parameters"
    if answer.relative_parameters is not None:
        start += f" ({numbers.percent(answer.relative_parameters)} of {configuration_words(reference)})"
    ours, theirs = chosen.mean, reference.mean
    # Shares of a reference of zero or less mean nothing.
    if ours is None or theirs is None or (answer.relative_metric is None and theirs > 0):
        return f"{start}, does as well on validation data; there are no figures on test data."
    higher = results.metric.higher_is_better
    if higher and answer.relative_metric is not None:
        ends = _brackets(_percent_ends, answer.relative_metric_interval)
        return f"{start}, reaches {numbers.percent(answer.relative_metric)} of its test {name}{ends}."
    ends = _brackets(numbers.interval_text, chosen.interval)
    return (
        f"{start}, has a test {name} of {numbers.metric(ours)}{ends}, against "
        f"{numbers.metric(theirs)}{'' if higher else '; lower is better'}."
    )


def _nothing_smaller(results: Results, answer: AnswerResult) -> str:
    return f"Nothing smaller will do: use {_figures_of(results, answer.reference)}."


def _no_gain(results: Results, answer: AnswerResult) -> str:
    metric, base = numbers.words(results.metric.name), results.base.metric
    with_metric = "" if base is None else f" (test {metric} {numbers.metric(base)})"
    if answer.gain is not None and answer.gain.over == "constant":
        over = floor_words("constant", results.metric.name, higher_is_better=results.metric.higher_is_better)
        return f"No gain: fine-tuning is not shown to beat {over}."
    return f"No gain: fine-tuning is not shown to beat the base{with_metric}. Use the base, with 0 parameters."


def _undecided(results: Results, answer: AnswerResult) -> str:
    reference = results.configuration(answer.reference)
    label = configuration_words(reference) if reference else answer.reference
    figures = _figures_of(results, answer.reference)
    if reference is not None and not _smaller(results, reference):
        return f"Undecided: nothing smaller than {label} was tried. Until something is, use {figures}."
    leaning = answer.leaning
    towards = None if leaning is None else results.configuration(leaning.name)
    lean = ""
    if leaning is not None and towards is not None:
        p = "" if leaning.p_within is None else f" ({probability(leaning.p_within)})"
        lean = f" {towards.label} more likely than not does{p}."
    return f"Undecided: nothing smaller than {label} is shown to do as well.{lean} Until it is decided, use {figures}."


HEADLINES: dict[Verdict, Callable[[Results, AnswerResult], str]] = {
    "shown": _shown,
    "nothing_smaller": _nothing_smaller,
    "no_gain": _no_gain,
    "undecided": _undecided,
}
"""Verdict -> its sentence."""


def _figures_of(results: Results, name: str | None) -> str:
    """A configuration with its size and its test metric."""
    c = results.configuration(name)
    if c is None:
        return name or "the reference"
    metric = numbers.words(results.metric.name)
    size = f"{configuration_words(c)}, {numbers.count(c.trainable_parameters)} parameters"
    if c.mean is None:
        return size
    return f"{size}, test {metric} {numbers.metric(c.mean)}{_brackets(numbers.interval_text, c.interval)}"


def _alone(results: Results) -> str:
    """The sentence for a single configuration."""
    base = results.base.metric
    against = "there is nothing to compare it with" if base is None else f"the base has {numbers.metric(base)}"
    figures = _figures_of(results, results.configurations[0].name)
    return f"{figures.replace(', ', ': ', 1)}; {against}."


def after_headline(results: Results) -> list[str]:
    """Return what follows the headline: what to deploy, then `explanation`, then what to ship."""
    advice = None if stands_alone(results) else deployment(results)
    return [*([advice] if advice else []), *explanation(results), *ship_words(results)]


def explanation(results: Results) -> list[str]:
    """Write the reasons, the certainty and the caveats, in sentences, the most important first."""
    sentences: list[str] = []
    answer = results.answer
    if answer is not None:
        if answer.reason and not stands_alone(results):
            sentences.append(sentence(answer.reason))
        if answer.next:
            sentences.append(f"To add seeds, run `{answer.next}`.")
        if not results.complete:
            sentences.append(f"The sweep is not complete ({_progress(results)}), so the answer may still change.")
        sentences += _edges(results, answer)
        if answer.by_loss and results.complete and not stands_alone(results):
            sentences.append(_by_loss(results, answer.by_loss))
    if results.configurations and max(c.n_seeds for c in results.configurations) == 1:
        sentences.append(
            "With one seed the intervals hold only the error of sampling test examples, not the luck of training."
        )
    return sentences


def _by_loss(results: Results, found: ByLoss) -> str:
    """What the loss of the same runs says, in a line that says that it is not the answer."""
    chosen, leaning = results.configuration(found.name), found.leaning
    label = found.name if chosen is None else configuration_words(chosen)
    said = {
        "shown": f"shown, {label}" + ("" if found.p_within is None else f", P = {probability(found.p_within)}"),
        "nothing_smaller": f"nothing smaller than {label} will do",
        "no_gain": "no gain is shown",
        "undecided": "undecided",
    }[found.verdict]
    towards = None if leaning is None else results.configuration(leaning.name)
    if leaning is not None and towards is not None:
        p = "" if leaning.p_within is None else f" ({probability(leaning.p_within)})"
        said += f", leaning to {towards.label}{p}"
    name = "the loss" if found.metric == "loss" else numbers.words(found.metric)
    return f"By {name}, which decides with fewer examples and is not the answer: {said}."


def _edges(results: Results, answer: AnswerResult) -> list[str]:
    """Which of answer and reference may do better at a learning rate that was not tried, and what that would change."""
    sentences: list[str] = []
    reference = results.configuration(answer.reference)
    if reference is not None and reference.lr_at_edge_of_grid:
        end, rates = _rates_to_add(results, reference)
        weak = "; a reference that is too weak makes adapters look good" if answer.verdict in WEAK else ""
        sentences.append(
            f"The best learning rate of {configuration_words(reference)}, {numbers.learning_rate(reference.lr)}, is "
            f"the {end} that was tried, so it may do better than shown here{weak}; give {rates}."
        )
    chosen = None if answer.name == answer.reference else results.configuration(answer.name)
    if chosen is not None and chosen.lr_at_edge_of_grid:
        sentences.append(
            f"The best learning rate of {configuration_words(chosen)} lies at the edge of the grid, so a better one "
            f"may lie outside, which could change the answer; give {_rates_to_add(results, chosen)[1]}."
        )
    return sentences


WEAK: tuple[Verdict, ...] = ("shown", "undecided")
"""Verdicts that a better reference could turn against adapters."""


def trade_off(results: Results) -> list[str]:
    """The metric of each smaller adapter on the Pareto front, in one sentence, for readers who accept less.

    Empty where fine-tuning gains nothing, or where nothing good enough is known for shares to refer to:
    no reference, or an adapter that nothing is decided against.
    """
    relative, answer = results.relative_to, results.answer
    if relative is None or stands_alone(results) or not results.metric.higher_is_better:
        return []
    if answer is not None and answer.verdict in ("no_gain", "undecided"):
        reference = results.configuration(answer.reference)
        of_adapter = reference is not None and reference.method == "lora" and reference.label == relative.label
        if answer.verdict == "no_gain" or of_adapter:
            return []
    front = [c for c in results.configurations if c.method == "lora" and c.on_pareto_front]
    bought = [
        f"{c.label}: {numbers.count(c.trainable_parameters)} parameters "
        f"({numbers.percent(c.relative_parameters)}) reach {numbers.percent(c.relative_metric)}"
        for c in front
        if c.relative_metric is not None and c.relative_parameters is not None and c.relative_parameters < 1
    ]
    return [f"Of {relative.label}, {'; '.join(bought)}."] if bought else []


def _smaller(results: Results, reference: ConfigurationResult) -> list[ConfigurationResult]:
    """The configurations that were compared with the reference and have fewer parameters."""
    tried = [c for c in results.configurations if c.state is not None and c.method in ("lora", "head")]
    return [c for c in tried if c.trainable_parameters < reference.trainable_parameters]


def answer_words(results: Results) -> str:
    """Return `headline`, what to deploy, `explanation`, what to ship and `trade_off` as one paragraph.

    Args:
        results: The content of `results.json`.
    """
    return " ".join([headline(results), *after_headline(results), *trade_off(results)])


def answer_name(results: Results) -> str | None:
    """The name of the configuration that is shown to be the answer; None while nothing is decided."""
    answer = results.answer
    return None if answer is None or answer.verdict == "undecided" else answer.name


def stands_alone(results: Results) -> bool:
    """Whether there is only one configuration, and so nothing to compare it with."""
    only, relative = results.configurations, results.relative_to
    return len(only) == 1 and (relative is None or relative.label == only[0].label)


def sentence(text: str) -> str:
    """End a sentence with a full stop. (No capital: it may begin with a name, such as r4.)

    Examples:
        >>> sentence("r4 is the least that passes")
        'r4 is the least that passes.'
    """
    text = text.strip()
    return text + ("" if text.endswith((".", "!", "?")) else ".")


def _rates_to_add(results: Results, c: ConfigurationResult) -> tuple[str, str]:
    """Which end of those tried the best learning rate is, "lowest" or "highest", and which to try in addition."""
    all_tried = [*results.runs, *(results.grid.search or [])]
    tried = [run.lr for run in all_tried if run.configuration == c.name and run.lr is not None]
    lowest = c.lr is None or c.lr <= min(tried, default=c.lr)
    names = {"full": ("baseline", "baseline-lr"), "head": ("lrs", "head-lr")}
    flag = option(*names.get(c.method, ("lrs", "lr")))
    return ("lowest", f"lower rates with {flag}") if lowest else ("highest", f"higher rates with {flag}")


def _no_answer(results: Results) -> str:
    if not results.complete:
        return f"No answer yet: the sweep is not complete ({_progress(results)})."
    reason = None if results.answer is None else results.answer.reason
    if reason:
        return f"No answer: {sentence(reason)}"
    if not any(run.status == "finished" for run in results.runs):
        return "No answer: no run finished."
    return "No answer: no configuration comes close enough to the reference."


def _progress(results: Results) -> str:
    finished = sum(run.status == "finished" for run in results.runs)
    return f"{finished:,} run{'' if finished == 1 else 's'} finished so far"


def _percent_ends(ends: Interval) -> str:
    return f"{numbers.percent(ends[0], '')} to {numbers.percent(ends[1], '')}"


def _brackets(write: Callable[[Interval], str], ends: Interval | None) -> str:
    return "" if ends is None else f" (95% interval {write(ends)})"
