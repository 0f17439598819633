"""The stages of a sweep: looking for learning rates, training at them, trying further ones.

Each stage is its own sweep with its own plan and checkpoints, and follows from what those before it found, so a
resumed run comes to the same stages.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from rankwise.errors import ConfigError, option
from rankwise.results import ConfigurationResult
from rankwise.sweeps.candidates.grid import Candidate, runs_of, wider
from rankwise.sweeps.choose.configurations import RunScore, by_configuration, choose_learning_rates
from rankwise.sweeps.judged import finite
from rankwise.sweeps.plan.fitting import Probes, pack_training
from rankwise.sweeps.plan.plan import FILE as PLAN
from rankwise.sweeps.plan.plan import run_fingerprint
from rankwise.sweeps.plan.probing import probe
from rankwise.sweeps.problem import Problem, Run, SweepState
from rankwise.sweeps.run.auto import Auto, Walk
from rankwise.sweeps.run.run import WithinSweep, run_sweep
from rankwise.sweeps.run.stage import (
    BestBefore,
    Decisions,
    Finished,
    Phase,
    Phases,
    PlannedStage,
    Search,
    StageResult,
)
from rankwise.sweeps.run.units.context import Workers
from rankwise.sweeps.storage.owned import PRICE
from rankwise.train.checkpoints import CheckpointInterval
from rankwise.train.data.tensors import count_rows
from rankwise.train.events import Observers
from rankwise.writing import read_checked, write_checked

PRICE_FORMAT = "rankwise-price-1"

MOST_WIDENINGS = 3
"""How often the grid is widened while the best rate lies at its edge."""


@dataclass(kw_only=True)
class Stages:
    """Runs the stages of one sweep.

    Args:
        model: The base.
        problem: Data, loss and metric.
        candidates: What is tried.
        seeds: Of the runs that count.
        observers: Hear what happens.
        rungs: Epochs after which the worst configurations leave; in an adaptive plan only learning rates leave, in the
            search for them.
        search: How learning rates are looked for beforehand; None trains all of the grid.
        widen: Whether learning rates beyond the grid are tried where the best one lies at its edge.
        auto: Settings of the adaptive plan; None trains the grid.
        checkpoints: A folder for plans and checkpoints; None to keep nothing.
        every: How often a checkpoint is written.
        resume: Whether to resume what is in the folder.
        probes: What steps take in memory, as far as it was measured before.
        finished: Runs of an earlier sweep; those that are asked for again are taken from it.
        workers: Train the packs; None trains them in this process.
    """

    model: nn.Module
    problem: Problem
    candidates: Sequence[Candidate]
    seeds: Sequence[int]
    observers: Observers
    rungs: Sequence[int] = ()
    search: Search | None = None
    widen: bool = False
    auto: Auto | None = None
    checkpoints: Path | None = None
    every: CheckpointInterval | None = None
    resume: bool = False
    probes: Probes = field(default_factory=Probes)
    finished: Finished | None = None
    workers: Workers | None = None
    seconds_before: float = 0.0
    """Training time of the interrupted run that this one resumes, as far as it has come to it."""
    _rates: dict[str, tuple[float, bool]] = field(default_factory=dict[str, tuple[float, bool]])
    _price: float | None = None
    _known: dict[str, str] = field(default_factory=dict[str, str])

    def run(self) -> StageResult:
        """Train everything.

        Raises:
            KeyboardInterrupt: Interrupted while learning rates were looked for.
        """
        phases = Decisions(self._phases())
        for i, phase in enumerate(phases):
            folder = self.checkpoints if i == 0 or self.checkpoints is None else self.checkpoints / f"stage-{i}"
            came = run_sweep(
                self.model,
                phase.runs,
                self.problem,
                self.observers,
                rungs=phase.rungs,
                checkpoints=folder,
                every=self.every,
                # A later stage may not have begun.
                resume=self.resume and folder is not None and (i == 0 or (folder / PLAN).exists()),
                workers=self.workers,
                within=WithinSweep(
                    self.checkpoints, self.probes, phase.tests, best_before=phase.best_before, known=self._known
                ),
            )
            self.seconds_before += came.seconds_before
            phases.take(came)
        result = phases.result
        result.search_rates, result.price = self._rates, self._price
        if self.finished is not None:
            _complete(result.swept, self.finished.swept, [c.name for c in self.candidates])
            n = len(self.finished.swept.runs)
            result.swept.note([f"{n:,} of the runs were trained by an earlier sweep, which this one extends."])
            if self.rungs:
                result.swept.note(["At the rungs the runs that were added were compared with one another only."])
        return result

    def _phases(self) -> Phases[StageResult]:
        if self.auto is not None:
            return (yield from Walk(self, self.auto).phases())
        if self.search is None:
            runs = runs_of(self.candidates, self.seeds)
            return StageResult((yield from self._grid(runs, self.rungs, self.seeds, None)))
        rates, edges, search_row = yield from self.search_rates(self.candidates, self.search.seeds[0])
        runs = [c.run(rates.get(c.name, c.lrs[0]), seed) for c in self.candidates for seed in self.seeds]
        return StageResult((yield from self._train(runs, self.rungs, tests=True)), edges, search_row)

    def search_rates(
        self, candidates: Sequence[Candidate], seed: int, further: Collection[str] = ()
    ) -> Phases[tuple[dict[str, float], dict[str, bool], list[dict[str, Any]]]]:
        """Find learning rates of some candidates with one seed. The worse half leaves after a quarter of the epochs, or
        after as many as a run waits for a lower validation loss.

        Args:
            candidates: Those with several rates.
            seed: Where the search has no data of its own.
            further: Names of those for which one rate beyond the grid is tried, where the best one lies at its edge,
                even if the grid is not to be widened.

        Returns:
            The best rate of each, whether it lies at the edge of its grid, and what was tried, for `results.json`.

        Raises:
            KeyboardInterrupt: Interrupted.
        """
        known = {} if self.finished is None else self.finished.rates
        self._rates |= {c.name: known[c.name] for c in candidates if c.name in known}
        search_row = [] if self.finished is None else [*self.finished.searched]
        candidates = [c for c in candidates if c.name not in known]
        if candidates:
            search_row += yield from self._search(candidates, seed, further)
        return (
            {n: lr for n, (lr, _) in self._rates.items()},
            {n: edge for n, (_, edge) in self._rates.items()},
            search_row,
        )

    def _search(
        self, candidates: Sequence[Candidate], seed: int, further: Collection[str]
    ) -> Phases[list[dict[str, Any]]]:
        runs, rungs = self.searching(candidates, seed)
        seeds, data = ((seed,), None) if self.search is None else (self.search.seeds, self.search.data)
        searched = yield from self._grid(runs, rungs, seeds, data, tests=False, further=further)
        if not searched.complete:
            raise KeyboardInterrupt
        rates, edges = self._best_rates(searched)
        self._rates |= {name: (lr, edges[name]) for name, lr in rates.items()}
        return _search_rows(searched)

    def searching(self, candidates: Sequence[Candidate], seed: int) -> tuple[list[Run], tuple[int, ...]]:
        """The runs and rungs of a search for learning rates."""
        if self.search is not None:
            runs = runs_of(candidates, self.search.seeds, self.search.data)
            return [self._standing_in(run) for run in runs], self.search.rungs
        settings = [c.training for c in candidates if c.training.epochs > 3]
        # Runs that stop early are not expected to last for all epochs.
        early = [min(t.epochs // 4, t.patience or t.epochs) for t in settings]
        return runs_of(candidates, (seed,)), tuple(self.rungs) or ((min(early),) if early else ())

    def _best_rates(self, searched: SweepState) -> tuple[dict[str, float], dict[str, bool]]:
        chosen = choose_learning_rates(scores_of(searched), self.problem.each_epoch.higher_is_better)
        rates = {c.name: c.lr if c.runs else _last_left(searched, c.name) for c in chosen}
        known = {name: lr for name, lr in rates.items() if lr is not None}
        return known, {c.name: c.lr_at_edge_of_grid for c in chosen}

    def train(self, runs: Sequence[Run]) -> Phases[SweepState]:
        """Train runs of the adaptive plan to their end, and measure what finished."""
        return self._train(runs, (), tests=True)

    def measured_price(self, runs: Sequence[Run]) -> float:
        """The cost of a further run in a pack, as a share of the first: measured once, and stored for resuming."""
        path = None if self.checkpoints is None else self.checkpoints / PRICE
        if self.finished is not None and self.finished.price is not None:
            self._price = self.finished.price
            return self._price
        if path is not None and path.exists():
            self._price = float(read_checked(path, PRICE_FORMAT)["price"])
            return self._price
        one, all_ = (self._seconds_of(part) for part in (runs[:1], runs))
        self._price = price = max(0.0, (all_ / one - 1) / (len(runs) - 1))
        if path is not None:
            write_checked(path, PRICE_FORMAT, {"price": price})
        return price

    def _seconds_of(self, runs: Sequence[Run]) -> float:
        """The seconds of a pack's training."""
        epochs, rows = runs[0].training.epochs, self.problem.train_rows(runs[0].data)
        steps = epochs * -(-rows // runs[0].training.batch_size)
        device = next(self.model.parameters()).device
        cost = probe(lambda: pack_training(self.model, runs, self.problem), device, steps)
        return steps * cost.step + epochs * self.problem.validation_rows(runs[0].data) * cost.row

    def expected(self) -> list[PlannedStage]:
        """The stages, as far as they are known before any has run: at rates yet to be found the first stands for it.

        Raises:
            ConfigError: The grid is empty.
        """
        if self.auto is not None:
            return Walk(self, self.auto).expected()
        if self.search is None:
            return [PlannedStage("training", runs_of(self.candidates, self.seeds), self.rungs)]
        runs = [c.run(c.lrs[0], seed) for c in self.candidates for seed in self.seeds]
        return [
            PlannedStage("search", self._searching(self.search), self.search.rungs, tests=False),
            PlannedStage("training", runs, self.rungs),
        ]

    def check_budget(self) -> None:
        """Refuse an adaptive plan that is allowed fewer runs than its first comparison takes.

        Raises:
            ConfigError: It is.
        """
        limit, needed = (
            (None, 0) if self.auto is None else (self.auto.max_runs, sum(len(s.runs) for s in self.expected()))
        )
        if limit is not None and needed > limit:
            raise ConfigError(
                f"{option('max_runs')} is {limit}; to look for learning rates and to compare one size with the "
                f"reference takes {needed} runs. Give {needed} or more, or fewer learning rates."
            )

    def _searching(self, search: Search) -> list[Run]:
        return [self._standing_in(run) for run in runs_of(self.candidates, search.seeds, search.data)]

    def _standing_in(self, run: Run) -> Run:
        """A run of the search, with the schedule of the run that counts."""
        candidate = next(c for c in self.candidates if c.name == run.configuration)
        counting = candidate.run(run.training.lr, run.member.seed)
        rows = count_rows(self.problem.splits[counting.data].train, "training")
        steps = run.training.epochs * -(-rows // run.training.batch_size)
        return replace(run, training=replace(run.training, horizon=steps))

    def _grid(
        self,
        runs: Sequence[Run],
        rungs: Sequence[int],
        seeds: Sequence[int],
        data: str | None,
        tests: bool | None = None,
        further: Collection[str] = (),
    ) -> Phases[SweepState]:
        """Train a grid, and what widens it; that of `further` by one rate in any case."""
        tests = data is None if tests is None else tests
        swept = yield from self._train(runs, rungs, tests=tests)
        each_epoch = self.problem.each_epoch.higher_is_better
        higher = self.problem.higher_is_better if tests else each_epoch
        for _ in range(MOST_WIDENINGS if self.widen else 1 if further else 0):
            names = None if self.widen else further
            more = self._beyond(swept, seeds, data, higher, names) if swept.complete else []
            if not more:
                break
            # With several seeds a rate is judged by their mean, which no run of them knows.
            passed = rungs if len(seeds) == 1 else ()
            swept.add((yield from self._train(more, passed, tests=tests, best_before=_best_so_far(swept, each_epoch))))
        return swept

    def _beyond(
        self,
        swept: SweepState,
        seeds: Sequence[int],
        data: str | None,
        higher_is_better: bool,
        names: Collection[str] | None,
    ) -> list[Run]:
        """Runs at a rate beyond those tried, of configurations (of these names; None for all) whose best is at the
        edge."""
        runs: list[Run] = []
        by_name = {c.name: c for c in self.candidates}
        scores = scores_of(swept)
        tried = {name: [run.lr or 0.0 for run in group] for name, group in by_configuration(scores).items()}
        for c in choose_learning_rates(scores, higher_is_better):
            if names is not None and c.name not in names:
                continue
            lr = wider(by_name[c.name], c.lr, tried[c.name]) if c.runs and c.lr is not None else None
            if lr is not None:
                runs += [by_name[c.name].run(lr, seed, data) for seed in seeds]
        return runs if data is None else [self._standing_in(run) for run in runs]

    def _train(
        self, runs: Sequence[Run], rungs: Sequence[int], *, tests: bool, best_before: BestBefore | None = None
    ) -> Phases[SweepState]:
        """Train runs, but for those that an earlier sweep has finished."""
        earlier = self.finished
        known = (
            []
            if earlier is None
            else [run.name for run in runs if earlier.fingerprints.get(run.name) == run_fingerprint(run)]
        )
        if earlier is None or not known:
            return (yield Phase(runs, rungs, tests, best_before))
        swept = earlier.swept.select(known)
        missing = [run for run in runs if run.name not in swept.outcomes]
        if missing:
            swept.add((yield Phase(missing, rungs, tests, best_before)))
        swept.runs = list(runs)
        return swept


def _complete(swept: SweepState, earlier: SweepState, order: Sequence[str]) -> None:
    """Add the runs of an earlier sweep that the longer one did not ask for, and number packs after the earlier ones."""
    missing = [run.name for run in earlier.runs if run.name not in swept.parameters]
    if missing:
        swept.add(earlier.select(missing))
    first = max(earlier.packs.values(), default=-1) + 1
    numbers = dict.fromkeys(pack for name, pack in swept.packs.items() if name not in earlier.packs)
    packs = {pack: first + i for i, pack in enumerate(numbers)}
    swept.packs = {
        name: earlier.packs[name] if name in earlier.packs else packs[pack] for name, pack in swept.packs.items()
    }
    swept.runs = sorted(swept.runs, key=lambda run: order.index(run.configuration))


def _best_so_far(swept: SweepState, higher_is_better: bool) -> dict[str, dict[int, float]]:
    """Configuration -> step -> the best metric that a run of it had there."""
    configurations = {run.name: run.configuration for run in swept.runs}
    better, best = max if higher_is_better else min, dict[str, dict[int, float]]()
    for point in swept.curve:
        if math.isfinite(point.metric):
            own = best.setdefault(configurations[point.run], {})
            own[point.step] = better(own.get(point.step, point.metric), point.metric)
    return best


def scores_of(swept: SweepState) -> list[RunScore]:
    """All runs, as the rule of the answer uses them."""
    return [swept.score(run) for run in swept.runs]


def _last_left(swept: SweepState, configuration: str) -> float | None:
    """The learning rate that stayed longest, where none came to its end."""
    steps = {
        run.training.lr: swept.outcomes[run.name].steps for run in swept.runs if run.configuration == configuration
    }
    return max(steps, key=lambda lr: (steps[lr], -lr))


def _search_rows(swept: SweepState) -> list[dict[str, Any]]:
    def search_row(run: Run) -> dict[str, Any]:
        scores, outcome = swept.scores.get(run.name), swept.outcomes[run.name]
        return {
            "configuration": run.configuration,
            "lr": run.training.lr,
            "seed": run.member.seed,
            "validation_metric": None if scores is None else finite(float(scores.decisive.mean())),
            "steps": outcome.steps,
            "status": outcome.status,
        }

    return [search_row(run) for run in swept.runs]


def mark_edges(
    found: Mapping[str, bool], candidates: Sequence[Candidate], configurations: Sequence[ConfigurationResult]
) -> None:
    """Mark in configurations of `results.json` whether their learning rate lies at the edge of what was tried, by the
    search too; a rate with untried neighbours in the grid is not at its edge."""
    grids = {c.name: c.lrs for c in candidates}
    for configuration in configurations:
        grid, lr = grids.get(configuration.name, ()), configuration.lr
        if found.get(configuration.name):
            configuration.lr_at_edge_of_grid = True
        elif lr is not None and len(grid) > 1 and min(grid) < lr < max(grid):
            configuration.lr_at_edge_of_grid = False
