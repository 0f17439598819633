"""A sweep with its learning rates chosen and its verdict: what its results are made from."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from rankwise.results.origin import RelativeTo
from rankwise.results.outcomes import MeanInterval
from rankwise.sweeps.choose.answer import BASE_ANSWER, Answer, decide, reference_of
from rankwise.sweeps.choose.comparison import Floors
from rankwise.sweeps.choose.configurations import Configuration, RunScore, choose_learning_rates, pareto_front
from rankwise.sweeps.choose.rule import Rule, default_tolerance
from rankwise.sweeps.choose.statistics import interval
from rankwise.sweeps.problem import Problem, Run, SweepState


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The candidates for the answer, and the choices of an adaptive plan.

    Args:
        comparable: Configurations that solve the very problem, and so can be reference or answer; None for all.
        floors: What fine-tuning must beat.
        path: Configurations that an adaptive plan decided on its way, the only ones that can be shown; None for all.
        reference: What an adaptive plan held them against; None, or one without results, for that of `reference_of`.
        rates: The learning rate that an adaptive plan settled on, by configuration; None chooses the best.
        loss_floors: As `floors`, by the loss; None where it is not to be told what that says.
    """

    comparable: Sequence[str] | None = None
    floors: Floors | None = None
    path: Sequence[str] | None = None
    reference: str | None = None
    rates: Mapping[str, float] | None = None
    loss_floors: Floors | None = None


class JudgedSweep:
    """A sweep with its learning rates chosen and its verdict: what all parts of the results are made from."""

    def __init__(self, swept: SweepState, problem: Problem, rule: Rule, choice: Choice) -> None:
        self.swept, self.problem, self.rule, self.choice = swept, problem, rule, choice
        self.chosen = choose_learning_rates(
            [swept.score(run) for run in _at(swept.runs, choice.rates)], problem.higher_is_better
        )
        self.by_name = {c.name: c for c in self.chosen}
        self.labels = {run.configuration: run.label for run in swept.runs}
        self.able = [c for c in self.chosen if c.runs and (choice.comparable is None or c.name in choice.comparable)]
        self.tests, self.untold = _tested(self.chosen, swept)
        self.means = {name: float(values.mean()) for name, values in self.tests.items()}

    @cached_property
    def reference(self) -> Configuration | None:
        """The reference; None without a finished run."""
        known = next((c for c in self.able if c.name == self.choice.reference), None)
        return known or (reference_of(self.able, self.problem.higher_is_better) if self.able else None)

    @cached_property
    def answer(self) -> Answer | None:
        """The verdict."""
        if self.reference is None:
            return None
        return decide(self.able, self.reference, self.rule, self.choice.floors, self.choice.path)

    @cached_property
    def by_loss(self) -> Answer | None:
        """What the rule says by the loss of the same runs, with the weights that are saved; None where the loss is the
        metric, is not known for each row, or has no floor that a gain could be over."""
        floors, by_loss = self.choice.loss_floors, self.problem.by_loss
        runs = {run.name: run for run in self.swept.runs}
        scores = {run.name: self.swept.scores[run.name].losses for c in self.able for run in c.runs}
        if floors is None or self.reference is None or not all(v is not None for v in scores.values()):
            return None

        def judged(run: RunScore) -> RunScore:
            losses = scores[run.name]
            return run if losses is None else replace(run, validation=losses, rows=by_loss.cut_rows(runs[run.name]))

        able = [replace(c, runs=tuple(map(judged, c.runs))) for c in self.able]
        reference = next(c for c in able if c.name == self.reference.name)
        known = floors.better([run.rows for run in reference.runs], higher_is_better=False)
        if known is None or not all(run.counts for c in able for run in c.runs):
            return None
        rule = Rule(default_tolerance(False), False, self.rule.confidence, self.rule.strict)
        return decide(able, reference, rule, floors, self.choice.path)

    @property
    def reference_figures(self) -> RelativeTo | None:
        """The reference, where its test metric is known."""
        c = self.reference
        if c is None or c.name not in self.means:
            return None
        return RelativeTo(
            label=self.labels[c.name], metric=self.means[c.name], trainable_parameters=c.trainable_parameters
        )

    @property
    def in_order(self) -> list[Configuration]:
        """The configurations in the order of their runs."""
        order = list(dict.fromkeys(run.configuration for run in self.swept.runs))
        return sorted(self.chosen, key=lambda c: order.index(c.name))

    def pareto_front(self, base_metric: float | None) -> set[str]:
        """Names of the configurations, or of the base, that nothing with as few parameters beats."""
        points = {c.name: (c.trainable_parameters, self.means[c.name]) for c in self.able if c.name in self.means}
        if base_metric is not None:
            points[BASE_ANSWER] = (0, base_metric)
        return {*pareto_front(points, self.problem.higher_is_better)}

    def other_metrics(self, c: Configuration) -> dict[str, MeanInterval]:
        """Further metrics of a configuration by name."""
        if not c.runs:
            return {}
        values = {
            name: np.stack([self.swept.scores[run.name].other[name] for run in c.runs])
            for name in self.problem.other_tests
        }
        return {name: MeanInterval(mean=mean_of(each), interval=interval_of(each)) for name, each in values.items()}

    def paired(self, c: Configuration, reference: Configuration) -> tuple[np.ndarray, np.ndarray] | None:
        """Test metrics of a configuration and of the reference on the seeds both have; None where there are none, or
        where a value is no number."""
        ours, theirs = ({run.seed: self.swept.scores[run.name].test for run in x.runs} for x in (c, reference))
        seeds = sorted(ours.keys() & theirs.keys())
        if not seeds:
            return None
        pair = np.stack([ours[s] for s in seeds]), np.stack([theirs[s] for s in seeds])
        return pair if np.isfinite(pair).all() else None


def finite(value: float | None) -> float | None:
    """The number, or None in place of one that JSON has no word for."""
    return None if value is None or not math.isfinite(value) else float(value)


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


def mean_of(values: np.ndarray) -> float | None:
    """The mean; None where it is not finite."""
    return finite(float(values.mean()))


def interval_of(values: np.ndarray) -> tuple[float, float] | None:
    """The interval of a mean; of hits and misses, whose mean is a share, within 0 and 1."""
    if not np.isfinite(values).all():
        return None
    low, high = interval(values)
    share = bool(np.isin(values, (0, 1)).all())
    return (max(0.0, low), min(1.0, high)) if share else (low, high)
