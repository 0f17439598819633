"""A sweep as the content of `results.json`: chosen learning rates, intervals, the answer. Nothing is written here."""

from collections.abc import Callable, Mapping

import msgspec
import numpy as np
from msgspec import UNSET

from rankwise.results import FORMAT, AnswerResult, ConfigurationResult, Results, RunResult
from rankwise.results.origin import MetricInfo, RelativeTo
from rankwise.results.outcomes import BoundedDifference, ByLoss, Gain, Leaning, MeanInterval
from rankwise.sweeps.choose.answer import BASE_ANSWER, Answer
from rankwise.sweeps.choose.comparison import Comparison
from rankwise.sweeps.choose.configurations import Configuration, signed
from rankwise.sweeps.choose.reason import reason
from rankwise.sweeps.choose.rule import Rule
from rankwise.sweeps.choose.statistics import interval, ratio_interval
from rankwise.sweeps.choose.wording import floor_words
from rankwise.sweeps.judged import Choice, JudgedSweep, finite, interval_of, mean_of
from rankwise.sweeps.plan.plan import run_fingerprint
from rankwise.sweeps.problem import Problem, Run, SweepState
from rankwise.sweeps.provenance import Provenance


def make_results(
    swept: SweepState,
    problem: Problem,
    rule: Rule,
    about: Provenance,
    choice: Choice | None = None,
    *,
    relative_to: RelativeTo | None = None,
    adapters: Mapping[str, str],
) -> Results:
    """Build the results of a sweep.

    Args:
        swept: What the runs gave.
        problem: Its metric.
        rule: Tolerance and confidence of the answer.
        about: Where the results come from.
        choice: What the answer is chosen from; None for all configurations.
        relative_to: What the relative columns are relative to; by default the reference.
        adapters: Run -> folder of its adapter, relative to the run directory.
    """
    found = JudgedSweep(swept, problem, rule, choice or Choice())
    relative_to = relative_to or found.reference_figures
    front = found.pareto_front(about.base.metric)
    return Results(
        format=FORMAT,
        complete=swept.complete,
        task=about.task,
        command=about.command,
        started=about.started,
        config_hash=about.config_hash,
        seconds=about.seconds,
        versions=dict(about.versions),
        device=about.device,
        published=about.published,
        data=about.data,
        plan=None if about.plan is None else dict(about.plan),
        grid=about.grid,
        metric=MetricInfo(name=problem.metric_name, higher_is_better=problem.higher_is_better),
        base=msgspec.structs.replace(about.base, on_pareto_front=BASE_ANSWER in front),
        runs=[_run(run, swept, adapters) for run in swept.runs],
        configurations=[_configuration(c, found, relative_to, c.name in front) for c in found.in_order],
        relative_to=relative_to,
        notes=[*swept.notes, *_notes(swept), *found.untold],
        # An interrupted sweep has not seen all it was to choose from.
        answer=answer_result(found.answer, found, adapters) if found.answer is not None and swept.complete else None,
    )


def add_next(results: Results, n_seeds: int, command: Callable[[int, int], str]) -> None:
    """Add the command that could decide an undecided answer, where more seeds could.

    Args:
        results: Changed.
        n_seeds: The sweep's seeds; of an adaptive plan at most.
        command: (seeds to add, seeds then) -> the command.
    """
    answer = results.answer
    if answer is None or answer.verdict != "undecided" or not answer.more_seeds_needed:
        return
    lean = None if answer.leaning is None else answer.leaning.name
    used = [c.n_seeds for c in results.configurations if c.name == lean or (lean is None and c.state == "open")]
    # An adaptive plan may not have used all of its seeds.
    then = max(max(used, default=n_seeds) + answer.more_seeds_needed, n_seeds + 1)
    answer.next = command(then - n_seeds, then)


def _configuration(
    c: Configuration, found: JudgedSweep, relative_to: RelativeTo | None, on_front: bool
) -> ConfigurationResult:
    answer = found.answer
    comparison = None if answer is None else answer.comparisons.get(c.name)
    mean = found.means.get(c.name)
    return ConfigurationResult(
        name=c.name,
        label=found.labels[c.name],
        method=c.method,
        r=c.r,
        lr=c.lr,
        lr_at_edge_of_grid=c.lr_at_edge_of_grid,
        n_seeds=len(c.runs),
        trainable_parameters=c.trainable_parameters,
        validation_mean=c.validation_mean,
        mean=mean,
        interval=interval_of(found.tests[c.name]) if c.name in found.tests else None,
        validation_difference_to_reference=_validation_difference(comparison),
        difference_to_reference=_test_difference(c, found),
        relative_parameters=_ratio(c.trainable_parameters, relative_to and relative_to.trainable_parameters),
        relative_metric=_ratio(mean, relative_to and relative_to.metric),
        on_pareto_front=on_front,
        is_reference=found.reference is not None and c.name == found.reference.name,
        is_answer=answer is not None and c.name == answer.name and answer.verdict != "undecided",
        p_within=None if comparison is None else comparison.p_within,
        state=None if comparison is None else comparison.state,
        more_seeds_needed=None if comparison is None else comparison.more_seeds_needed,
        other_metrics=found.other_metrics(c),
        runs=[run.name for run in c.runs],
    )


def _ratio(value: float | None, total: float | None) -> float | None:
    # Of nothing, or of less, there are no shares.
    return value / total if value is not None and total is not None and total > 0 else None


def _validation_difference(comparison: Comparison | None) -> BoundedDifference | None:
    if comparison is None:
        return None
    return BoundedDifference(
        mean=comparison.mean, lower_bound=comparison.lower_bound, upper_bound=comparison.upper_bound
    )


def _test_difference(c: Configuration, found: JudgedSweep) -> MeanInterval | None:
    pair = found.paired(c, found.reference) if found.reference is not None and c in found.able else None
    if pair is None:
        return None
    difference = signed(1.0, found.problem.higher_is_better) * (pair[0].astype(np.float64) - pair[1])
    return MeanInterval(mean=float(difference.mean()), interval=interval(difference))


def _run(run: Run, swept: SweepState, adapters: Mapping[str, str]) -> RunResult:
    outcome, scores = swept.outcomes.get(run.name), swept.scores.get(run.name)
    lora, training = run.member.lora, run.training
    left_out = ("lr", "horizon")
    config: dict[str, object] = {key: value for key, value in training.record().items() if key not in left_out}
    config |= {"betas": list(training.record()["betas"]), "data": run.data}
    if lora is not None:
        config |= {"init": lora.init, "scaling": lora.scaling, "dropout": lora.dropout}
    return RunResult(
        name=run.name,
        configuration=run.configuration,
        method=run.method,
        r=run.r,
        alpha=None if lora is None else lora.alpha,
        lr=training.lr,
        seed=run.member.seed,
        config=config,
        trainable_parameters=swept.parameters[run.name],
        validation_metric=None if scores is None else mean_of(scores.validation),
        validation_loss=None if scores is None else finite(scores.validation_loss),
        metric=None if scores is None else mean_of(scores.test),
        other_metrics={} if scores is None else {name: mean_of(v) for name, v in scores.other.items()},
        best_step=None if outcome is None else outcome.best_step,
        steps=None if outcome is None else outcome.steps,
        epochs=None if outcome is None else outcome.epochs,
        seconds=None if outcome is None else outcome.seconds,
        peak_memory_bytes=swept.memory.get(run.name),
        pack=swept.packs[run.name],
        status="stopped" if outcome is None else outcome.status,
        reason="interrupted" if outcome is None else outcome.reason,
        adapter=adapters.get(run.name),
        settings=run_fingerprint(run),
    )


def _notes(swept: SweepState) -> list[str]:
    diverged = [name for name, outcome in swept.outcomes.items() if outcome.status == "diverged"]
    notes = [f"Diverged, and left out: {', '.join(diverged)}."] if diverged else []
    failed: dict[str, list[str]] = {}
    for name, outcome in swept.outcomes.items():
        if outcome.status == "failed":
            failed.setdefault(outcome.reason or "", []).append(name)
    return [*notes, *(f"Failed, and left out: {', '.join(names)}: {reason}." for reason, names in failed.items())]


def recommended_adapter(
    answer: Answer,
    configurations: Mapping[str, Configuration],
    adapters: Mapping[str, str],
    higher_is_better: bool,
) -> str | None:
    """The folder of the recommended adapter: the answer's best seed."""
    c = configurations.get(answer.name)
    if c is None or not c.runs:
        return None
    best = max(c.runs, key=lambda run: (signed(float(run.validation.mean()), higher_is_better), -run.seed))
    return adapters.get(best.name)


def answer_result(answer: Answer, found: JudgedSweep, adapters: Mapping[str, str]) -> AnswerResult:
    """The recommendation as the content of `results.json`.

    Args:
        answer: The verdict.
        found: The sweep that it is of.
        adapters: Run -> folder of its adapter, relative to the run directory.
    """
    rule, labels, higher_is_better = found.rule, found.labels, found.problem.higher_is_better
    metric = found.problem.metric_name
    floor = floor_words(answer.floor, metric, higher_is_better=higher_is_better)
    tolerance_words = rule.tolerance.words(labels[answer.reference], metric, floor)
    leaning = None if answer.leaning is None else answer.comparisons[answer.leaning]
    relative, relative_interval = _relative_metric(answer, found)
    return AnswerResult(
        verdict=answer.verdict,
        name=answer.name,
        r=answer.r,
        adapter=recommended_adapter(answer, found.by_name, adapters, higher_is_better),
        reference=answer.reference,
        tolerance=answer.tolerance,
        tolerance_words=tolerance_words,
        confidence=answer.confidence,
        leaning=None if leaning is None else Leaning(name=leaning.name, p_within=leaning.p_within),
        trainable_parameters=answer.trainable_parameters,
        relative_parameters=answer.relative_parameters,
        relative_metric=relative,
        relative_metric_interval=relative_interval,
        gain=None if answer.gain is None else Gain(over=answer.floor, mean=answer.gain[0], lower_bound=answer.gain[1]),
        validation_rows=answer.rows,
        rows_needed=answer.rows_needed,
        rotated=answer.rotated,
        detectable_difference=answer.detectable_difference,
        separable=answer.verdict == "shown",
        more_seeds_needed=answer.more_seeds_needed,
        reason=reason(
            answer,
            labels,
            answer.smaller,
            tolerance_words,
            floor,
            strict=rule.strict,
            adaptive=found.choice.path is not None,
        ),
        by_loss=UNSET if found.by_loss is None else _by_loss(found.by_loss, found.problem.loss_name),
    )


def _by_loss(answer: Answer, name: str) -> ByLoss:
    chosen, leaning = (
        None if one is None else answer.comparisons.get(one)
        for one in (answer.name if answer.verdict == "shown" else None, answer.leaning)
    )
    return ByLoss(
        metric=name,
        verdict=answer.verdict,
        name=answer.name,
        p_within=None if chosen is None else chosen.p_within,
        leaning=None if leaning is None else Leaning(name=leaning.name, p_within=leaning.p_within),
        tolerance=answer.tolerance,
    )


def _relative_metric(answer: Answer, found: JudgedSweep) -> tuple[float | None, tuple[float, float] | None]:
    """The answer's test metric over the reference's, with its interval; None where there are no shares."""
    c, reference = found.by_name.get(answer.name), found.by_name[answer.reference]
    # Of nothing, of less, or of what is no number, there are no shares.
    known = c is not None and {c.name, reference.name} <= found.tests.keys()
    if c is None or not known or float(found.tests[reference.name].mean()) <= 0:
        return None, None
    if (pair := found.paired(c, reference)) is None:
        return None, None
    # Of the seeds that both have, as its interval is: an adaptive plan gives some configurations more than others.
    ours, theirs = pair
    return float(ours.mean() / theirs.mean()) if theirs.mean() > 0 else None, ratio_interval(ours, theirs)
