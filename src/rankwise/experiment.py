"""From runs and a problem to results: a sweep with everything around it, in memory or in a run directory.

A task (or a user's own code) says what is trained on what; here is what all of them share: the place is checked
before anything is computed, the run can be gone on with, the base is shown to be untouched, results are put together,
written and drawn.
"""

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rankwise.errors import ConfigError, DataError, OutputError
from rankwise.lora.checks.threads import held_by_thread
from rankwise.pack.resolved import resolve
from rankwise.report import answer_words, write_report
from rankwise.sweeps.candidates.grid import Candidate, runs_of
from rankwise.sweeps.choose.answer import Floors
from rankwise.sweeps.choose.deciding import Deciding
from rankwise.sweeps.choose.power import power_words
from rankwise.sweeps.choose.rule import Rule, accuracy_tolerance
from rankwise.sweeps.floors import measured_floors
from rankwise.sweeps.measure import measure_base
from rankwise.sweeps.plan.doubts import rank_doubts
from rankwise.sweeps.plan.fitting import Probes
from rankwise.sweeps.plan.plan import fingerprint
from rankwise.sweeps.problem import DATA, Problem, Run, SweepState
from rankwise.sweeps.provenance import data_of, grid_of, versions
from rankwise.sweeps.record import Results, add_next, make_results
from rankwise.sweeps.run.auto import Auto
from rankwise.sweeps.run.extend import plan_of
from rankwise.sweeps.run.location import RunLocation, RunStart, beginning_of, start_run
from rankwise.sweeps.run.stage import Finished, Search
from rankwise.sweeps.run.stages import Stages, mark_edges
from rankwise.sweeps.storage.adapters import Adapters
from rankwise.sweeps.storage.directory import end_run, write_run
from rankwise.sweeps.storage.owned import BASE_FILE
from rankwise.sweeps.storage.same_problem import LOSS, check_measured, first_loss, write_measured
from rankwise.train.data.tensors import count_rows
from rankwise.train.events import Ended, Observers
from rankwise.train.precheck import check_training
from rankwise.writing import interrupts_ignored


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What is trained on what, and how it is told.

    Args:
        task: Its name.
        model: The base; the same, bit for bit, afterwards.
        candidates: What is tried.
        seeds: Of the runs that count.
        problem: Data, loss and metric.
        base_name: What the base is called, in results and in the adapters' files.
        keep_base: Whether the base is written into the run directory, and adapters name it there.
        base_has_metric: False where the base as it is can't do the task, having a head that is not trained yet.
        rungs: Epochs after which the worst configurations leave.
        search: How learning rates are looked for beforehand; None trains all of the grid.
        widen: Whether learning rates beyond the grid are tried where the best one lies at its edge.
        about: More fields of `results.json`: "data", "published", "config_hash".
        grid: More of what is tried, for `results.json`.
        comparable: Configurations that can be reference or answer; None for all.
        relative_to: What the relative columns are relative to; None for the reference.
        deciding: What is asked of the answer, and how runs are planned.
        notes: What the user should know.
        beside: Writes what belongs beside an adapter: (its folder, its run, the results, what the runs gave).
    """

    task: str
    model: nn.Module
    candidates: Sequence[Candidate]
    seeds: Sequence[int]
    problem: Problem
    base_name: str
    keep_base: bool = False
    base_has_metric: bool = True
    rungs: Sequence[int] = ()
    search: Search | None = None
    widen: bool = False
    about: Mapping[str, Any] = field(default_factory=dict[str, Any])
    grid: Mapping[str, Any] = field(default_factory=dict[str, Any])
    comparable: Sequence[str] | None = None
    relative_to: Mapping[str, Any] | None = None
    deciding: Deciding = field(default_factory=lambda: Deciding(plan="grid"))
    notes: Sequence[str] = ()
    beside: Callable[[Path, Run, Results, SweepState], object] | None = None
    probes: Probes = field(default_factory=Probes)
    """What steps take in memory, once it is measured: for a forecast, or for the run itself."""

    def __post_init__(self) -> None:
        rotate = self.can_rotate and self.deciding.rotates(len(self.seeds))
        object.__setattr__(self, "problem", replace(self.problem, rotate=rotate))

    @property
    def can_rotate(self) -> bool:
        """Whether seeds can cut their own validation rows: some data was not given as validation data."""
        return any(splits.rotation is not None for splits in self.problem.splits.values())

    def check(self) -> None:
        """Find what each candidate trains in the model, and whether there can be intervals; to be called before
        anything is written.

        Raises:
            ConfigError: The grid is empty, the tolerance is above what an accuracy can be, the runs allowed are too
                few to compare anything, or seeds are to cut validation rows of their own and can't.
            DataError: There is one row to validate or to test on.
            PackError: An adapter is of a kind that a pack can't train.
            TargetError: A target pattern matches nothing.
        """
        if self.deciding.max_runs is not None and self.candidates and self.seeds:
            self.stages(Observers()).check_budget()
        if self.problem.higher_is_better and "accuracy" in self.problem.metric_name:
            accuracy_tolerance(self.deciding.tolerance)
        for run in runs_of([replace(c, lrs=c.lrs[:1]) for c in self.candidates], self.seeds[:1]):
            resolve(self.model, run.member)
        if self.deciding.rotate and not self.can_rotate:
            raise ConfigError(
                "rotate is True and the validation data is fixed; each seed can validate on rows of its own only where "
                "they are cut off the training data. Leave the validation data out, or rotate."
            )
        for splits in self.problem.splits.values():
            for what, data in {"validation": splits.validation, "test": splits.test}.items():
                if count_rows(data, what) < 2:
                    raise DataError(f"The {what} data has 1 row; give two or more, as there is no interval of one.")
        one = next((c for c in self.candidates if c.method == "lora"), self.candidates[0])
        data, feed = self.problem.splits[one.data], self.problem.feed
        problem, member = self.problem, one.run(one.lrs[0], self.seeds[0]).member
        check_training(self.model, member, data.train, data.validation, problem.loss, problem.metric, feed)

    @property
    def rule(self) -> Rule:
        """What is asked of the answer."""
        return self.deciding.rule(self.problem.higher_is_better)

    def power(self) -> list[str]:
        """What the validation data can show, in words; nothing for metrics that are no shares, and without a choice."""
        problem = self.problem
        if len(self.candidates) < 2 or not problem.higher_is_better or "accuracy" not in problem.metric_name:
            return []
        which = DATA if DATA in problem.splits else self.candidates[0].data
        rows = count_rows(problem.splits[which].validation, "validation")
        rotated = problem.rotation_of(which) is not None
        return [power_words(rows, len(self.seeds), rotated, self.rule, 1.0)]

    def doubts(self) -> list[str]:
        """Settings that can be used and that no one can have meant, in words."""
        return rank_doubts(self.model, runs_of([replace(c, lrs=c.lrs[:1]) for c in self.candidates], self.seeds[:1]))

    @property
    def data_name(self) -> str:
        """The splits that the answer is about."""
        return DATA if DATA in self.problem.splits else self.candidates[0].data

    def data(self) -> Mapping[str, Any]:
        return self.about.get("data") or data_of(self.problem, self.data_name)

    def measured(self) -> dict[str, float]:
        """The base's loss on the first rows and its metric on the validation data."""
        splits = self.problem.splits[self.data_name]
        return {
            LOSS: first_loss(self.model, self.problem, splits),
            "validation metric": measure_base(self.model, self.problem, splits.validation),
        }

    def plan(self, measured: Mapping[str, float]) -> dict[str, Any]:
        """What is planned, for a longer sweep to be held against."""
        settings = {**asdict(self.deciding), "rungs": list(self.rungs), "widen": self.widen}
        return plan_of(self.candidates, self.seeds, {**settings, "rotate": self.problem.rotate}, measured)

    def finished(self, beginning: RunStart) -> Finished | None:
        """The runs of the finished sweep that this one extends, held against it; None where it extends none."""
        if beginning.earlier is None:
            return None
        measured = self.measured()
        return beginning.earlier.finished(
            self.model, self.problem, self.candidates, data=self.data(), plan=self.plan(measured), measured=measured
        )

    def stages(
        self,
        observers: Observers,
        place: RunLocation | None = None,
        floors: Floors | None = None,
        finished: Finished | None = None,
    ) -> Stages:
        """How it is trained: in a place, or in memory alone; from the beginning, or from what has finished."""
        deciding, auto = self.deciding, None
        if deciding.plan == "auto":
            auto = Auto(
                rule=self.rule,
                floors=floors or Floors(),
                comparable=self.comparable,
                curve=deciding.curve,
                max_runs=deciding.max_runs,
                max_minutes=deciding.max_minutes,
                max_parameters=deciding.max_parameters,
            )
        return Stages(
            model=self.model,
            problem=self.problem,
            candidates=self.candidates,
            seeds=self.seeds,
            observers=observers,
            rungs=self.rungs,
            search=self.search,
            widen=self.widen,
            auto=auto,
            checkpoints=None if place is None else place.kept,
            every=None if place is None else place.every,
            resume=place is not None and place.resume,
            probes=self.probes,
            finished=finished,
            workers=None if place is None else place.workers,
        )


ExperimentFactory = Callable[[Observers, Mapping[str, Tensor] | None], Experiment]
"""Makes an experiment: given who hears what is done meanwhile, and, where a run is gone on with, the base's weights
as they were kept (none where the task doesn't make the base)."""


def run_in_directory(place: RunLocation, make: ExperimentFactory, observers: Observers) -> tuple[Results, list[Path]]:
    """Make an experiment, run it in its place from the beginning or from where it was, and write the run directory.

    Returns:
        The content of `results.json`, and the files of the report.

    Raises:
        RankwiseError: Something in the settings, the data or the place can't be used.
        KeyboardInterrupt: Interrupted before any run had finished.
    """
    with place.held():
        begun = beginning_of(place)
        base = None if begun is None else begun.base if place.extend else begun.base or {}
        experiment = make(observers, base)
        experiment.check()
        with held_by_thread(experiment.model, "a sweep"):
            results, _, files = run_in_place(experiment, place, begun, observers)
        return results, files


def run_in_place(
    experiment: Experiment, place: RunLocation, begun: RunStart | None, observers: Observers
) -> tuple[Results, SweepState, list[Path]]:
    """Run an experiment in a place that is held, from the beginning or from what lies there (`beginning_of`).

    Raises:
        RankwiseError: What lies in the place is of another run, or something can't be used.
    """
    finished = None if begun is None else experiment.finished(begun)
    if begun is None or place.extend:
        earlier = None if begun is None else begun.earlier
        begun = start_run(place, experiment.model.state_dict() if experiment.keep_base else None, earlier)
    return run_experiment(experiment, begun, place, observers, finished)


BASE_IN_DIRECTORY = "../../base"
"""What an adapter calls a base that lies beside `adapters/` in the run directory."""


def run_experiment(
    experiment: Experiment,
    beginning: RunStart,
    place: RunLocation | None,
    observers: Observers,
    finished: Finished | None = None,
) -> tuple[Results, SweepState, list[Path]]:
    """Train, measure, decide, and write results and report.

    Args:
        experiment: What.
        beginning: From `begin`, `resume_run` or `now`.
        place: Where the results go; None keeps them in memory alone.
        observers: Hear what happens.
        finished: The runs of the finished sweep that this one extends.

    Returns:
        The content of `results.json`, what the runs gave, and the files of the report.

    Raises:
        RankwiseError: Something in the runs, the data or the place can't be used.
        KeyboardInterrupt: Interrupted before any run had finished; there are no results yet.
    """
    model, problem = experiment.model, experiment.problem
    clock = time.perf_counter()
    which = experiment.data_name
    splits = problem.splits[which]
    tests = {problem.metric_name: splits.test, **problem.other_tests}
    base_metrics = {name: measure_base(model, problem, data) for name, data in tests.items()}
    floors = measured_floors(model, problem, which)
    if not experiment.base_has_metric:
        floors = replace(floors, base=lambda rows: None)
    on_validation = measure_base(model, problem, splits.validation)
    if not all(map(math.isfinite, [*base_metrics.values(), on_validation])):
        raise ConfigError(
            f"The {problem.metric_name} is not finite on the base: {[*base_metrics.values(), on_validation]}. It must "
            "be a number on every row of the validation and test data."
        )
    first = {LOSS: first_loss(model, problem, splits), "validation metric": on_validation}
    if place is not None:
        measured = dict(first)
        measured |= {f"test {name}": value for name, value in base_metrics.items()}
        (check_measured if place.resume else write_measured)(place.kept, model, measured)
    doubts = experiment.doubts()
    for line in [*experiment.power(), *doubts]:
        observers.message(line)
    before = fingerprint(model.state_dict())
    found = experiment.stages(observers, place, floors, finished).run()
    swept, runs = found.swept, found.swept.runs
    if not swept.complete and (finished is not None or not swept.scores):
        raise KeyboardInterrupt  # nothing worth writing; earlier results stay as they are
    after = fingerprint(model.state_dict())
    again = {name: measure_base(model, problem, data) for name, data in tests.items()}
    swept.notes[:0] = [*experiment.notes, *doubts]
    swept.notes.append(_untouched(before == after and base_metrics == again))
    folders = {
        run.name: f"adapters/{run.name}"
        for run in runs
        if run.method == "lora" and run.name in swept.outcomes and swept.outcomes[run.name].status == "finished"
    }
    earlier = {} if finished is None or place is None else {run.name for run in finished.swept.runs}
    if place is not None:  # the adapter of an earlier run may have been removed
        folders = {
            n: folder for n, folder in folders.items() if n not in earlier or (place.directory / folder).is_dir()
        }
    known = base_metrics if experiment.base_has_metric else {}
    results = make_results(
        swept,
        problem,
        experiment.rule,
        base={
            "name": experiment.base_name,
            "sha256": before,
            "parameters": sum(p.numel() for p in model.parameters()),
            "metric": known.get(problem.metric_name),
            "validation_metric": on_validation,
            **{name: value for name, value in known.items() if name != problem.metric_name},
        },
        about={
            "task": experiment.task,
            **beginning.about,
            "config_hash": hashlib.sha256((place.config if place else "").encode()).hexdigest(),
            "seconds": time.perf_counter() - clock + beginning.seconds_before,
            "versions": versions(),
            "device": str(next(model.parameters()).device),
            "published": None,
            **experiment.about,
            "data": experiment.data(),
            "plan": {**experiment.plan(first), "search": found.search_rates, "price": found.price},
            "grid": {**grid_of(runs), **({"search": found.searched} if found.searched else {}), **experiment.grid},
        },
        comparable=experiment.comparable,
        relative_to=experiment.relative_to,
        floors=floors,
        path=found.path,
        reference=found.reference,
        rates=found.rates,
        adapters=folders if place else {},
    )
    mark_edges(found.edges, experiment.candidates, results["configurations"])
    if place is not None and place.how_to_extend is not None:
        add_next(results, len(experiment.seeds), place.how_to_extend)
    answer = results["answer"]
    observers.on_event(Ended(answer and answer["verdict"], answer_words(results)))
    if place is None:
        return results, swept, []
    base_name = BASE_IN_DIRECTORY if experiment.keep_base else experiment.base_name
    beside = experiment.beside or (lambda folder, run, results, swept: None)
    new = {name: folder for name, folder in folders.items() if name not in earlier}
    adapters = Adapters(model, new, base_name, lambda folder, run: beside(folder, run, results, swept))
    try:
        with interrupts_ignored():
            keep_base = experiment.keep_base and (finished is None or not (place.directory / BASE_FILE).exists())
            write_run(place.directory, results, place.config, swept, adapters, keep_base, extends=finished is not None)
        try:
            files = write_report(results, place.directory)
        except KeyboardInterrupt:
            if results["complete"]:
                end_run(place.directory)  # the report can be drawn from the results at any time
            raise
    except OutputError as error:
        raise OutputError(
            f"{error} What has been trained is kept in {place.kept}; make room and go on with: {place.how_to_resume}"
        ) from error
    with interrupts_ignored():
        if results["complete"]:
            end_run(place.directory)
    return results, swept, files


def _untouched(same: bool) -> str:
    if same:
        return "With the adapter off the base is what it was, bit for bit."
    return "The base has changed in training: this is a fault of the program, please report it."
