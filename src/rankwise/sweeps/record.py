"""A sweep as the content of `results.json`: chosen learning rates, intervals, the answer. Nothing is written here."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rankwise.sweeps.choose.answer import BASE, Answer, Comparison, Floors, decide, reference_of
from rankwise.sweeps.choose.configurations import Configuration, choose_learning_rates, pareto_front, signed
from rankwise.sweeps.choose.reason import reason
from rankwise.sweeps.choose.rule import Rule
from rankwise.sweeps.choose.statistics import interval, ratio_interval
from rankwise.sweeps.choose.wording import floor_words
from rankwise.sweeps.plan.plan import run_fingerprint
from rankwise.sweeps.problem import Problem, Run, SweepState

FORMAT = "rankwise-results-2"

Results = dict[str, Any]


def finite(value: float | None) -> float | None:
    """The number, or None in place of one that JSON has no word for."""
    return None if value is None or not math.isfinite(value) else float(value)


def make_results(
    swept: SweepState,
    problem: Problem,
    rule: Rule,
    *,
    base: Mapping[str, Any],
    about: Mapping[str, Any],
    comparable: Sequence[str] | None = None,
    relative_to: Mapping[str, Any] | None = None,
    floors: Floors | None = None,
    path: Sequence[str] | None = None,
    reference: str | None = None,
    rates: Mapping[str, float] | None = None,
    adapters: Mapping[str, str],
) -> Results:
    """Put a sweep's findings together.

    Args:
        swept: What the runs gave.
        problem: Its metric.
        rule: Tolerance and confidence of the answer.
        base: Of the base: "name", "sha256", "parameters", "metric".
        about: The fields that say where the results come from: "task", "command", "versions", ...
        comparable: Configurations that solve the very problem, and so can be reference or answer; None for all.
        relative_to: What the relative columns are relative to; by default the reference.
        floors: What fine-tuning must beat.
        path: Configurations that an adaptive plan decided on its way, the only ones that can be shown; None for all.
        reference: What an adaptive plan held them against; None, or one without results, for that of `reference_of`.
        rates: The learning rate that an adaptive plan settled on, by configuration; None chooses the best.
        adapters: Run -> folder of its adapter, relative to the run directory.
    """
    up = problem.higher_is_better
    chosen = choose_learning_rates([swept.score(run) for run in _at(swept.runs, rates)], up)
    labels = {run.configuration: run.label for run in swept.runs}
    able = [c for c in chosen if c.runs and (comparable is None or c.name in comparable)]
    held_against = next((c for c in able if c.name == reference), None) or (reference_of(able, up) if able else None)
    answer = None if held_against is None else decide(able, held_against, rule, floors, path)
    tests, untold = _tested(chosen, swept)
    means = {name: float(values.mean()) for name, values in tests.items()}
    if relative_to is None and held_against is not None and held_against.name in means:
        relative_to = {
            "label": labels[held_against.name],
            "metric": means[held_against.name],
            "trainable_parameters": held_against.trainable_parameters,
        }
    points = {c.name: (c.trainable_parameters, means[c.name]) for c in able if c.name in means}
    if base.get("metric") is not None:
        points[BASE] = (0, base["metric"])
    front = pareto_front(points, up)
    configurations = [
        {
            "name": c.name,
            "label": labels[c.name],
            "method": c.method,
            "r": c.r,
            "lr": c.lr,
            "lr_at_edge_of_grid": c.lr_at_edge_of_grid,
            "n_seeds": len(c.runs),
            "trainable_parameters": c.trainable_parameters,
            "validation_mean": c.validation_mean,
            "mean": means.get(c.name),
            "interval": _interval(tests[c.name]) if c.name in tests else None,
            "validation_difference_to_reference": _validation_difference(c, answer),
            "difference_to_reference": _test_difference(c, held_against, swept, up) if c in able else None,
            "relative_parameters": _ratio(c.trainable_parameters, relative_to, "trainable_parameters"),
            "relative_metric": _ratio(means.get(c.name), relative_to, "metric"),
            "on_pareto_front": c.name in front,
            "is_reference": held_against is not None and c.name == held_against.name,
            "is_answer": answer is not None and c.name == answer.name and answer.verdict != "undecided",
            **_shown(c, answer),
            "other_metrics": {
                name: {"mean": _mean(values), "interval": _interval(values)}
                for name in problem.other_tests
                if c.runs
                for values in [np.stack([swept.scores[run.name].other[name] for run in c.runs])]
            },
            "runs": [run.name for run in c.runs],
        }
        for c in _in_order(chosen, swept.runs)
    ]
    return {
        "format": FORMAT,
        "complete": swept.complete,
        **about,
        "metric": {"name": problem.metric_name, "higher_is_better": up},
        "base": {**base, "on_pareto_front": BASE in front},
        "runs": [_run(run, swept, adapters) for run in swept.runs],
        "configurations": configurations,
        "relative_to": None if relative_to is None else dict(relative_to),
        "notes": [*swept.notes, *_notes(swept), *untold],
        # An interrupted sweep has not seen all it was to choose from.
        "answer": _answer(answer, rule, path, chosen, tests, swept, adapters, problem, labels)
        if answer and swept.complete
        else None,
    }


def add_next(results: Results, n_seeds: int, command: Callable[[int, int], str]) -> None:
    """Add the command that could decide an undecided answer, where more seeds could.

    Args:
        results: The content of `results.json`; changed.
        n_seeds: The sweep's seeds; of an adaptive plan at the most.
        command: (seeds to add, seeds then) -> the command.
    """
    answer = results["answer"]
    if answer is None or answer["verdict"] != "undecided" or not answer["more_seeds_needed"]:
        return
    lean = (answer["leaning"] or {}).get("name")
    used = [
        c["n_seeds"] for c in results["configurations"] if c["name"] == lean or (lean is None and c["state"] == "open")
    ]
    # An adaptive plan may not have used all of its seeds.
    then = max(max(used, default=n_seeds) + answer["more_seeds_needed"], n_seeds + 1)
    answer["next"] = command(then - n_seeds, then)


def _at(runs: Sequence[Run], rates: Mapping[str, float] | None) -> list[Run]:
    """The runs at these learning rates."""
    return [run for run in runs if rates is None or run.training.lr == rates.get(run.configuration, run.training.lr)]


def _tested(chosen: Sequence[Configuration], swept: SweepState) -> tuple[dict[str, np.ndarray], list[str]]:
    """The test metric of every configuration's runs, where all of it is finite, and a word on the others."""
    tests: dict[str, np.ndarray] = {}
    notes: list[str] = []
    for c in (c for c in chosen if c.runs):
        values = np.stack([swept.scores[run.name].test for run in c.runs])
        if np.isfinite(values).all():
            tests[c.name] = values
        else:
            wrong = int((~np.isfinite(values)).sum())
            notes.append(
                f"{c.name} has no figures on test data: {wrong:,} of its {values.size:,} values are not finite."
            )
    return tests, notes


def _mean(values: np.ndarray) -> float | None:
    return finite(float(values.mean()))


def _interval(values: np.ndarray) -> list[float] | None:
    """The interval of a mean; of hits and misses, whose mean is a share, within 0 and 1."""
    if not np.isfinite(values).all():
        return None
    low, high = interval(values)
    share = bool(np.isin(values, (0, 1)).all())
    return [max(0.0, low), min(1.0, high)] if share else [low, high]


def _in_order(configurations: Sequence[Configuration], runs: Sequence[Run]) -> list[Configuration]:
    order = list(dict.fromkeys(run.configuration for run in runs))
    return sorted(configurations, key=lambda c: order.index(c.name))


def _ratio(value: float | None, relative_to: Mapping[str, Any] | None, key: str) -> float | None:
    whole = None if relative_to is None else relative_to[key]
    # Of nothing, or of less, there are no shares.
    return value / whole if value is not None and whole is not None and whole > 0 else None


def _comparison(c: Configuration, answer: Answer | None) -> Comparison | None:
    return None if answer is None else answer.comparisons.get(c.name)


def _validation_difference(c: Configuration, answer: Answer | None) -> dict[str, float | None] | None:
    found = _comparison(c, answer)
    if found is None:
        return None
    return {"mean": found.mean, "lower_bound": found.lower_bound, "upper_bound": found.upper_bound}


def _shown(c: Configuration, answer: Answer | None) -> dict[str, Any]:
    """The probability that a configuration lies within the tolerance, and what follows from it."""
    found = _comparison(c, answer)
    return {
        "p_within": None if found is None else found.p_within,
        "state": None if found is None else found.state,
        "more_seeds_needed": None if found is None else found.more_seeds_needed,
    }


def _paired(c: Configuration, reference: Configuration, swept: SweepState) -> tuple[np.ndarray, np.ndarray] | None:
    """Test metrics of a configuration and of the reference on the seeds both have; None where there are none, or where
    a value is no number."""
    ours, theirs = ({run.seed: swept.scores[run.name].test for run in x.runs} for x in (c, reference))
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    pair = np.stack([ours[s] for s in seeds]), np.stack([theirs[s] for s in seeds])
    return pair if np.isfinite(pair).all() else None


def _test_difference(
    c: Configuration, reference: Configuration | None, swept: SweepState, higher_is_better: bool
) -> dict[str, Any] | None:
    pair = None if reference is None else _paired(c, reference, swept)
    if pair is None:
        return None
    difference = signed(1.0, higher_is_better) * (pair[0].astype(np.float64) - pair[1])
    return {"mean": float(difference.mean()), "interval": list(interval(difference))}


def _run(run: Run, swept: SweepState, adapters: Mapping[str, str]) -> dict[str, Any]:
    outcome, scores = swept.outcomes.get(run.name), swept.scores.get(run.name)
    lora, training = run.member.lora, run.training
    config: dict[str, Any] = {
        "weight_decay": training.weight_decay,
        "optimiser": training.optimiser,
        "betas": list(training.betas),
        "eps": training.eps,
        "momentum": training.momentum,
        "nesterov": training.nesterov,
        "clip": training.clip,
        "batch_size": training.batch_size,
        "epochs": training.epochs,
        "schedule": training.schedule,
        "warmup": training.warmup,
        "patience": training.patience,
        "weights": training.weights,
        "data": run.data,
    }
    if lora is not None:
        config |= {"init": lora.init, "scaling": lora.scaling, "dropout": lora.dropout}
    return {
        "name": run.name,
        "configuration": run.configuration,
        "method": run.method,
        "r": run.r,
        "alpha": None if lora is None else lora.alpha,
        "lr": training.lr,
        "seed": run.member.seed,
        "config": config,
        "trainable_parameters": swept.parameters[run.name],
        "validation_metric": None if scores is None else _mean(scores.validation),
        "validation_loss": None if scores is None else finite(scores.validation_loss),
        "metric": None if scores is None else _mean(scores.test),
        "other_metrics": {} if scores is None else {name: _mean(v) for name, v in scores.other.items()},
        "best_step": None if outcome is None else outcome.best_step,
        "steps": None if outcome is None else outcome.steps,
        "epochs": None if outcome is None else outcome.epochs,
        "seconds": None if outcome is None else outcome.seconds,
        "peak_memory_bytes": swept.memory.get(run.name),
        "pack": swept.packs[run.name],
        "status": "stopped" if outcome is None else outcome.status,
        "reason": "interrupted" if outcome is None else outcome.reason,
        "adapter": adapters.get(run.name),
        "settings": run_fingerprint(run),
    }


def _notes(swept: SweepState) -> list[str]:
    diverged = [name for name, outcome in swept.outcomes.items() if outcome.status == "diverged"]
    return [f"Diverged, and left out: {', '.join(diverged)}."] if diverged else []


def _adapter(
    answer: Answer, by_name: Mapping[str, Configuration], adapters: Mapping[str, str], higher_is_better: bool
) -> str | None:
    """The folder of the recommended adapter: the answer's best seed. A head alone is no adapter and has no folder; then
    it is the smallest adapter that is shown."""
    shown = [name for name in answer.smaller if answer.comparisons[name].state == "shown"]
    for name in [answer.name, *(shown if answer.verdict == "shown" else [])]:
        c = by_name.get(name)
        if c is None or not c.runs:
            continue
        best = max(c.runs, key=lambda run: (signed(float(run.validation.mean()), higher_is_better), -run.seed))
        if best.name in adapters:
            return adapters[best.name]
    return None


def _answer(
    answer: Answer,
    rule: Rule,
    path: Sequence[str] | None,
    chosen: Sequence[Configuration],
    tests: Mapping[str, np.ndarray],
    swept: SweepState,
    adapters: Mapping[str, str],
    problem: Problem,
    labels: Mapping[str, str],
) -> dict[str, Any]:
    higher_is_better = problem.higher_is_better
    tolerance_words = rule.tolerance.words(
        labels[answer.reference],
        problem.metric_name,
        floor_words(answer.floor, higher_is_better=problem.higher_is_better),
    )
    by_name = {c.name: c for c in chosen}
    c, reference = by_name.get(answer.name), by_name[answer.reference]
    # Of nothing, of less, or of what is no number, there are no shares.
    known = c is not None and {c.name, reference.name} <= tests.keys()
    of = float(tests[reference.name].mean()) if known else 0.0
    pair = _paired(c, reference, swept) if c is not None and of > 0 else None
    leaning = None if answer.leaning is None else answer.comparisons[answer.leaning]
    return {
        "verdict": answer.verdict,
        "name": answer.name,
        "r": answer.r,
        "adapter": _adapter(answer, by_name, adapters, higher_is_better),
        "reference": answer.reference,
        "tolerance": answer.tolerance,
        "tolerance_words": tolerance_words,
        "confidence": answer.confidence,
        "leaning": None if leaning is None else {"name": leaning.name, "p_within": leaning.p_within},
        "trainable_parameters": answer.trainable_parameters,
        "relative_parameters": answer.relative_parameters,
        # Of the seeds that both have, as its interval is: an adaptive plan gives some configurations more than others.
        "relative_metric": float(pair[0].mean() / pair[1].mean()) if pair is not None and pair[1].mean() > 0 else None,
        "relative_metric_interval": list(ratio_interval(*pair)) if pair is not None else None,
        "gain": None
        if answer.gain is None
        else {"over": answer.floor, "mean": answer.gain[0], "lower_bound": answer.gain[1]},
        "validation_rows": answer.rows,
        "rows_needed": answer.rows_needed,
        "rotated": answer.rotated,
        "detectable_difference": answer.detectable_difference,
        "separable": answer.verdict == "shown",
        "more_seeds_needed": answer.more_seeds_needed,
        "reason": reason(
            answer, labels, answer.smaller, tolerance_words, strict=rule.strict, adaptive=path is not None
        ),
    }
