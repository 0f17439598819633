"""The stages of a sweep: looking for learning rates, training at them, trying further ones.

Each stage is a sweep of its own with its own plan and checkpoints, and follows from what those before it found, so a
run that is gone on with comes to the same stages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from rankwise.sweeps.configurations import RunScore, by_configuration, choose_learning_rates
from rankwise.sweeps.grid import Candidate, runs_of, wider
from rankwise.sweeps.plan import FILE as PLAN
from rankwise.sweeps.problem import Problem, Run, Swept
from rankwise.sweeps.record import finite
from rankwise.sweeps.run import run_sweep
from rankwise.train.checkpoints import Every
from rankwise.train.data import count_rows
from rankwise.train.live import Progress

MOST_WIDENINGS = 3
"""How often the grid is widened where the best rate goes on lying at its edge."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """Learning rates are looked for on less data and fewer seeds before the runs that count.

    The schedule is that of the runs that count, as far as the search comes: a short schedule of its own would find
    rates that are too high for them.

    Args:
        data: The problem's splits that are used for it.
        seeds: Its seeds.
        rungs: Epochs after which the worse half of the learning rates leaves.
    """

    data: str
    seeds: tuple[int, ...] = (0,)
    rungs: tuple[int, ...] = ()


@dataclass(frozen=True)
class Expected:
    """A stage as it is known beforehand.

    Args:
        title: What it is for.
        runs: What it trains.
        rungs: Epochs after which the worst configurations leave.
    """

    title: str
    runs: Sequence[Run]
    rungs: Sequence[int]


@dataclass
class Found:
    """What the stages gave.

    Args:
        swept: The runs that count, of all stages together.
        edges: Configuration -> whether the search chose a learning rate at the edge of its grid.
        searched: What the search tried, for `results.json`.
    """

    swept: Swept
    edges: dict[str, bool] = field(default_factory=dict[str, bool])
    searched: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])


@dataclass(kw_only=True)
class Stages:
    """Runs the stages of one sweep.

    Args:
        model: The base.
        problem: Data, loss and metric.
        candidates: What is tried.
        seeds: Of the runs that count.
        progress: Where it is shown.
        rungs: Epochs after which the worst configurations leave.
        search: How learning rates are looked for beforehand; None trains all of the grid.
        widen: Whether learning rates beyond the grid are tried where the best one lies at its edge.
        checkpoints: A folder for plans and checkpoints; None to keep nothing.
        every: How often a checkpoint is written.
        resume: Whether to go on with what is in the folder.
    """

    model: nn.Module
    problem: Problem
    candidates: Sequence[Candidate]
    seeds: Sequence[int]
    progress: Progress
    rungs: Sequence[int] = ()
    search: Search | None = None
    widen: bool = False
    checkpoints: Path | None = None
    every: Every | None = None
    resume: bool = False
    _stage: int = 0

    def run(self) -> Found:
        """Train everything.

        Raises:
            KeyboardInterrupt: Interrupted while learning rates were looked for.
        """
        if self.search is None:
            return Found(self._grid(runs_of(self.candidates, self.seeds), self.rungs, self.seeds, None))
        tried = self._searching(self.search)
        searched = self._grid(tried, self.search.rungs, self.search.seeds, self.search.data)
        if not searched.complete:
            raise KeyboardInterrupt
        higher = self.problem.higher_is_better
        chosen = {c.name: c for c in choose_learning_rates(scores_of(searched), higher)}
        rates = {name: c.lr if c.runs else _last_left(searched, name) for name, c in chosen.items()}
        runs = [c.run(rates[c.name] or c.lrs[0], seed) for c in self.candidates for seed in self.seeds]
        edges = {name: c.lr_at_edge_of_grid for name, c in chosen.items()}
        return Found(self._train(runs, self.rungs, tests=True), edges, _told(searched))

    def expected(self) -> list[Expected]:
        """The stages, as far as they are known before any has run: at rates yet to be found the first stands for it.

        Raises:
            ConfigError: The grid is empty.
        """
        if self.search is None:
            return [Expected("training", runs_of(self.candidates, self.seeds), self.rungs)]
        runs = [c.run(c.lrs[0], seed) for c in self.candidates for seed in self.seeds]
        return [
            Expected("search", self._searching(self.search), self.search.rungs),
            Expected("training", runs, self.rungs),
        ]

    def _searching(self, search: Search) -> list[Run]:
        return [self._standing_in(run) for run in runs_of(self.candidates, search.seeds, search.data)]

    def _standing_in(self, run: Run) -> Run:
        """A run of the search, with the schedule of the run that counts."""
        candidate = next(c for c in self.candidates if c.name == run.configuration)
        counting = candidate.run(run.training.lr, run.member.seed)
        rows = count_rows(self.problem.splits[counting.data].train, "training")
        steps = run.training.epochs * -(-rows // run.training.batch_size)
        return replace(run, training=replace(run.training, horizon=steps))

    def _grid(self, runs: Sequence[Run], rungs: Sequence[int], seeds: Sequence[int], data: str | None) -> Swept:
        """Train a grid, and what widens it."""
        swept = self._train(runs, rungs, tests=data is None)
        for _ in range(MOST_WIDENINGS if self.widen else 0):
            more = self._beyond(swept, seeds, data) if swept.complete else []
            if not more:
                break
            swept.add(self._train(more, (), tests=data is None))
        return swept

    def _beyond(self, swept: Swept, seeds: Sequence[int], data: str | None) -> list[Run]:
        runs: list[Run] = []
        by_name = {c.name: c for c in self.candidates}
        scores = scores_of(swept)
        tried = {name: [run.lr or 0.0 for run in group] for name, group in by_configuration(scores).items()}
        for c in choose_learning_rates(scores, self.problem.higher_is_better):
            lr = wider(by_name[c.name], c.lr, tried[c.name]) if c.runs and c.lr is not None else None
            if lr is not None:
                runs += [by_name[c.name].run(lr, seed, data) for seed in seeds]
        return runs if data is None else [self._standing_in(run) for run in runs]

    def _train(self, runs: Sequence[Run], rungs: Sequence[int], *, tests: bool) -> Swept:
        folder = self.checkpoints
        if folder is not None and self._stage:
            folder = folder / f"stage-{self._stage}"
        self._stage += 1
        return run_sweep(
            self.model,
            runs,
            self.problem,
            self.progress,
            rungs=rungs,
            checkpoints=folder,
            every=self.every,
            # A later stage may not have begun.
            resume=self.resume and folder is not None and (self._stage == 1 or (folder / PLAN).exists()),
            tests=tests,
        )


def scores_of(swept: Swept) -> list[RunScore]:
    """What the rule of the answer needs to know of all runs."""
    return [swept.score(run) for run in swept.runs]


def _last_left(swept: Swept, configuration: str) -> float | None:
    """The learning rate that stayed longest, where none came to its end."""
    steps = {
        run.training.lr: swept.outcomes[run.name].steps for run in swept.runs if run.configuration == configuration
    }
    return max(steps, key=lambda lr: (steps[lr], -lr))


def _told(swept: Swept) -> list[dict[str, Any]]:
    def told(run: Run) -> dict[str, Any]:
        scores, outcome = swept.scores.get(run.name), swept.outcomes[run.name]
        return {
            "configuration": run.configuration,
            "lr": run.training.lr,
            "seed": run.member.seed,
            "validation_metric": None if scores is None else finite(float(scores.decisive.mean())),
            "steps": outcome.steps,
            "status": outcome.status,
        }

    return [told(run) for run in swept.runs]


def merged_edges(found: Mapping[str, bool], configurations: Sequence[dict[str, Any]]) -> None:
    """Say in configurations of `results.json` whether the search chose at the edge of its grid."""
    for configuration in configurations:
        if found.get(configuration["name"]):
            configuration["lr_at_edge_of_grid"] = True
