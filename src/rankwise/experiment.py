"""From runs and a problem to results: a complete sweep, in memory or in a run directory.

A task (or a user's own code) says what to train on which data; all share the steps here. The directory is checked
before anything is computed; results are put together, written and drawn.
"""

import hashlib
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET
from torch import Tensor, nn

from rankwise.errors import ConfigError, OutputError
from rankwise.lora.checks.threads import held_by_thread
from rankwise.pack.resolved import resolve
from rankwise.report import answer_words, write_report
from rankwise.results import Results, plain
from rankwise.results.origin import DataInfo, Published, RelativeTo, SearchedRate
from rankwise.sweeps.base_figures import BaseFigures, measure_figures
from rankwise.sweeps.candidates.grid import Candidate, runs_of
from rankwise.sweeps.candidates.init_data import with_data_starts
from rankwise.sweeps.choose.comparison import Floors
from rankwise.sweeps.choose.deciding import Deciding
from rankwise.sweeps.choose.power import power_words
from rankwise.sweeps.choose.rule import AT_MOST_ONE, Rule, accuracy_tolerance
from rankwise.sweeps.floors import measured_floors
from rankwise.sweeps.judged import Choice, JudgedSweep
from rankwise.sweeps.measure import measure_base
from rankwise.sweeps.plan.doubts import rank_doubts
from rankwise.sweeps.plan.fitting import Probes
from rankwise.sweeps.problem import DEFAULT_DATA, Problem, Run, SweepState
from rankwise.sweeps.provenance import Provenance, data_info, grid_of, versions
from rankwise.sweeps.record import add_next, make_results
from rankwise.sweeps.run.auto import Auto
from rankwise.sweeps.run.checks import check_data
from rankwise.sweeps.run.extend import plan_of
from rankwise.sweeps.run.location import RunLocation, RunStart, beginning_of, start_run, starting_now
from rankwise.sweeps.run.stage import Finished, Search, StageResult
from rankwise.sweeps.run.stages import Stages, mark_edges
from rankwise.sweeps.squeezing.after_training import SavedAdapters, squeeze_after_training
from rankwise.sweeps.squeezing.record import shipped_folder
from rankwise.sweeps.storage.adapters import BASE_IN_DIRECTORY, Adapters, adapter_folders
from rankwise.sweeps.storage.directory import end_run, write_run
from rankwise.sweeps.storage.owned import BASE_FILE
from rankwise.sweeps.storage.same_problem import LOSS, check_measured, first_loss, write_measured
from rankwise.train.data.tensors import count_rows
from rankwise.train.events import Ended, Observers
from rankwise.writing import interrupts_ignored


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What to train, on which data, and how to report it.

    Args:
        task: Its name.
        model: The base; unchanged, bit for bit, afterwards.
        candidates: The configurations to try.
        seeds: Seeds of the runs that count.
        problem: Data, loss and metric.
        base_name: The base's name in results and in the adapters' files.
        keep_base: Whether the base is written into the run directory, and adapters name it there.
        base_has_metric: False where the base can't do the task yet, having an untrained head.
        rungs: Epochs after which the worst configurations stop.
        search: How to search for learning rates first; None trains the whole grid.
        widen: Whether to try learning rates beyond the grid where the best one is at its edge.
        config_hash: Hash of the settings; None takes the hash of the written configuration.
        data_info: Description of the data; None for sizes and checksums.
        published: Published figures to show with the results.
        grid: Further settings of the grid, for `results.json`.
        comparable: Configurations that can be reference or answer; None for all.
        relative_to: Configuration that the relative columns refer to; None for the reference.
        deciding: The rule for the answer, and how runs are planned.
        notes: Notes for the user.
        beside: Writes an adapter's further files: (its folder, its run, the results, the sweep's state).
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
    config_hash: str | None = None
    data_info: DataInfo | None = None
    published: Published | None = None
    grid: Mapping[str, Any] = field(default_factory=dict[str, Any])
    comparable: Sequence[str] | None = None
    relative_to: RelativeTo | None = None
    deciding: Deciding = field(default_factory=lambda: Deciding(plan="grid"))
    notes: Sequence[str] = ()
    beside: Callable[[Path, Run, Results, SweepState], object] | None = None
    probes: Probes = field(default_factory=Probes)
    """The memory of steps, measured once: for a forecast, or for the run itself."""

    def __post_init__(self) -> None:
        rotate = self.can_rotate and self.deciding.rotates(len(self.seeds))
        object.__setattr__(self, "problem", replace(self.problem, rotate=rotate))
        object.__setattr__(self, "candidates", with_data_starts(self.candidates, self.model, self.problem))

    @property
    def can_rotate(self) -> bool:
        """Whether seeds can cut their own validation rows: there is no fixed validation data."""
        return any(splits.rotation is not None for splits in self.problem.splits.values())

    def check(self) -> None:
        """Check what each candidate trains in the model, and whether there can be intervals. Call it before
        writing anything.

        Raises:
            ConfigError: The grid is empty, the tolerance is above what the metric can be, the runs allowed are too
                few to compare anything, or seeds are to cut validation rows of their own and can't.
            DataError: There is one row to validate or to test on.
            PackError: An adapter is of a kind that a pack can't train.
            TargetError: A target pattern matches nothing.
        """
        if self.deciding.max_runs is not None and self.candidates and self.seeds:
            self.stages(Observers()).check_budget()
        if self.problem.higher_is_better and any(word in self.problem.metric_name for word in AT_MOST_ONE):
            accuracy_tolerance(self.deciding.tolerance)
        for run in runs_of([replace(c, lrs=c.lrs[:1]) for c in self.candidates], self.seeds[:1]):
            resolve(self.model, run.member)
        if self.deciding.rotate and not self.can_rotate:
            raise ConfigError(
                "rotate is True and the validation data is fixed; each seed can validate on its own rows only where "
                "they are cut off the training data. Leave out the validation data, or rotate."
            )
        check_data(self.model, self.problem, self.candidates, self.seeds[0])

    @property
    def rule(self) -> Rule:
        """The rule for the answer."""
        return self.deciding.rule(self.problem.higher_is_better)

    def power(self) -> list[str]:
        """What the validation data can show, in words; empty for metrics that aren't shares, and without a choice."""
        problem = self.problem
        if len(self.candidates) < 2 or not problem.higher_is_better or "accuracy" not in problem.metric_name:
            return []
        which = DEFAULT_DATA if DEFAULT_DATA in problem.splits else self.candidates[0].data
        rows = count_rows(problem.splits[which].validation, "validation")
        rotated = problem.rotation_of(which) is not None
        return [power_words(rows, len(self.seeds), rotated, self.rule, 1.0)]

    def doubts(self) -> list[str]:
        """Warnings about settings that work and are probably mistakes."""
        return rank_doubts(self.model, runs_of([replace(c, lrs=c.lrs[:1]) for c in self.candidates], self.seeds[:1]))

    @property
    def data_name(self) -> str:
        """The splits that the answer is about."""
        return DEFAULT_DATA if DEFAULT_DATA in self.problem.splits else self.candidates[0].data

    def data(self) -> DataInfo:
        """What the data are that the answer is about."""
        return self.data_info or data_info(self.problem, self.data_name)

    def floors(self) -> Floors:
        """What fine-tuning must beat."""
        return self._floors(self.problem)

    def loss_floors(self) -> Floors | None:
        """The same by the loss; None where that is the metric, or a bad base could make a gain over it look large."""
        one = self.problem
        told = one.model_metric is not None or (one.metric is not one.loss and one.loss_constant is not None)
        return self._floors(one.by_loss) if told else None

    def _floors(self, problem: Problem) -> Floors:
        return measured_floors(self.model, problem, self.data_name, with_base=self.base_has_metric)

    def measured(self) -> dict[str, float]:
        """The base's loss on the first rows and what is read after every epoch on the validation data."""
        splits = self.problem.splits[self.data_name]
        return {
            LOSS: first_loss(self.model, self.problem, splits),
            "validation metric": measure_base(self.model, self.problem.each_epoch, splits.validation),
        }

    def plan(self, measured: Mapping[str, float]) -> dict[str, Any]:
        """The plan, for comparison with a longer sweep."""
        settings = {**asdict(self.deciding), "rungs": list(self.rungs), "widen": self.widen}
        return plan_of(self.candidates, self.seeds, {**settings, "rotate": self.problem.rotate}, measured)

    def finished(self, beginning: RunStart) -> Finished | None:
        """The checked runs of the finished sweep that this one extends; None where it extends none."""
        if beginning.earlier is None:
            return None
        measured = self.measured()
        told = {"data": plain(self.data()), "plan": self.plan(measured), "measured": measured}
        return beginning.earlier.finished(self.model, self.problem, self.candidates, **told)

    def stages(
        self,
        observers: Observers,
        place: RunLocation | None = None,
        floors: Floors | None = None,
        finished: Finished | None = None,
    ) -> Stages:
        """How to train it: in a directory, or in memory; from the beginning, or from finished runs."""
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
            checkpoints=None if place is None else place.unfinished,
            every=None if place is None else place.every,
            resume=place is not None and place.resume,
            probes=self.probes,
            finished=finished,
            workers=None if place is None else place.workers,
        )


ExperimentFactory = Callable[[Observers, Mapping[str, Tensor] | None], Experiment]
"""(observers, the base's weights of a resumed run) -> the experiment; no weights where the task doesn't
make the base."""


def run_experiment(
    make: ExperimentFactory, place: RunLocation | None, observers: Observers
) -> tuple[Results, SweepState, list[Path]]:
    """Make an experiment, train, measure, decide, and write results and report.

    Args:
        make: Makes it, once its directory is locked.
        place: The run directory, to write, resume or extend; None keeps results in memory.
        observers: Receive the events.

    Returns:
        The results, the sweep's state, and the files of the report.

    Raises:
        RankwiseError: Something in the settings, the runs, the data or the place can't be used, or the directory
            belongs to another run.
        KeyboardInterrupt: Interrupted before there were results.
    """
    with _begun(make, place, observers) as (experiment, beginning, finished):
        clock = time.perf_counter()
        model, problem = experiment.model, experiment.problem
        figures = measure_figures(model, problem, experiment.data_name)
        if place is not None:
            (check_measured if place.resume else write_measured)(place.unfinished, model, figures.all)
        doubts = experiment.doubts()
        for line in [*experiment.power(), *doubts]:
            observers.message(line)
        floors = experiment.floors()
        stages = experiment.stages(observers, place, floors, finished)
        found = stages.run()
        swept = found.swept
        if not swept.complete and (finished is not None or not swept.scores):
            raise KeyboardInterrupt  # nothing worth writing; earlier results stay as they are
        swept.notes[:0] = [*experiment.notes, *doubts]
        earlier = set[str]() if finished is None else {run.name for run in finished.swept.runs}
        folders = {} if place is None else adapter_folders(swept, place.directory, earlier)
        choice = Choice(
            comparable=experiment.comparable,
            floors=floors,
            path=found.path,
            reference=found.reference,
            rates=found.rates,
            loss_floors=experiment.loss_floors(),
        )
        judged = JudgedSweep(swept, problem, experiment.rule, choice)
        saved = SavedAdapters(None if place is None else place.directory, folders)
        compressed = squeeze_after_training(model, judged, experiment.candidates, experiment.deciding, saved, observers)
        swept.notes.append(figures.untouched(model, problem, experiment.data_name))
        seconds = time.perf_counter() - clock + stages.seconds_before
        results = make_results(
            swept,
            problem,
            experiment.rule,
            _provenance(experiment, beginning, place, figures, found, seconds),
            choice,
            relative_to=experiment.relative_to,
            adapters=folders,
        )
        results.compressed = UNSET if compressed is None else compressed
        mark_edges(found.edges, experiment.candidates, results.configurations)
        if place is not None and place.extend_command is not None:
            add_next(results, len(experiment.seeds), place.extend_command)
        observers.on_event(Ended(results.answer and results.answer.verdict, answer_words(results)))
        if place is None:
            return results, swept, []
        new = {name: folder for name, folder in folders.items() if name not in earlier} | shipped_folder(compressed)
        return results, swept, _write(experiment, place, results, swept, new, extends=finished is not None)


@contextmanager
def _begun(
    make: ExperimentFactory, place: RunLocation | None, observers: Observers
) -> Generator[tuple[Experiment, RunStart, Finished | None]]:
    """Make an experiment, and start, resume or extend it in its directory, which stays locked inside the block.

    Yields:
        The experiment, its start, and the runs of the finished sweep that it extends.
    """
    with nullcontext() if place is None else place.held():
        beginning = None if place is None else beginning_of(place)
        base = None if place is None or beginning is None else beginning.base if place.extend else beginning.base or {}
        experiment = make(observers, base)
        experiment.check()
        with held_by_thread(experiment.model, "a sweep"):
            finished = None if beginning is None else experiment.finished(beginning)
            if place is None:
                beginning = starting_now("rankwise.sweep(...)")
            elif beginning is None or place.extend:
                earlier = None if beginning is None else beginning.earlier
                beginning = start_run(place, experiment.model.state_dict() if experiment.keep_base else None, earlier)
            yield experiment, beginning, finished


def _provenance(
    experiment: Experiment,
    beginning: RunStart,
    place: RunLocation | None,
    figures: BaseFigures,
    found: StageResult,
    seconds: float,
) -> Provenance:
    """The origin of an experiment's results."""
    config = place.config if place else ""
    searched = [msgspec.convert(one, SearchedRate) for one in found.searched]
    metric_name, has_metric = experiment.problem.metric_name, experiment.base_has_metric
    return Provenance(
        task=experiment.task,
        command=beginning.about["command"],
        started=beginning.about["started"],
        config_hash=experiment.config_hash or hashlib.sha256(config.encode()).hexdigest(),
        seconds=seconds + beginning.seconds_before,
        versions=versions(),
        device=str(next(experiment.model.parameters()).device),
        data=experiment.data(),
        grid=grid_of(found.swept.runs, searched, experiment.grid),
        base=figures.info(experiment.base_name, metric_name, has_metric=has_metric),
        published=experiment.published,
        plan={**experiment.plan(figures.planned), "search": found.search_rates, "price": found.price},
    )


def _write(
    experiment: Experiment,
    place: RunLocation,
    results: Results,
    swept: SweepState,
    folders: Mapping[str, str],
    *,
    extends: bool,
) -> list[Path]:
    """Write results, adapters (run -> folder) and report; return the files of the report."""
    base_name = BASE_IN_DIRECTORY if experiment.keep_base else experiment.base_name
    beside = experiment.beside or (lambda folder, run, results, swept: None)
    adapters = Adapters(experiment.model, folders, base_name, lambda folder, run: beside(folder, run, results, swept))
    try:
        with interrupts_ignored():
            keep_base = experiment.keep_base and not (extends and (place.directory / BASE_FILE).exists())
            write_run(place.directory, results, place.config, swept, adapters, keep_base, extends=extends)
        try:
            files = write_report(results, place.directory)
        except KeyboardInterrupt:
            if results.complete:
                end_run(place.directory)  # `rankwise report` can draw it later
            raise
    except OutputError as error:
        raise OutputError(
            f"{error} What has been trained is kept in {place.unfinished}; make room and resume with: "
            f"{place.resume_command}"
        ) from error
    with interrupts_ignored():
        if results.complete:
            end_run(place.directory)
    return files
