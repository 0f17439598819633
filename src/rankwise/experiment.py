"""From runs and a problem to results: a sweep with everything around it, in memory or in a run directory.

A task (or a user's own code) says what is trained on what; here is what all of them share: the place is checked
before anything is computed, the run can be gone on with, the base is shown to be untouched, results are put together,
written and drawn.
"""

import hashlib
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.errors import ConfigError, DataError, OutputError
from rankwise.pack.resolved import resolve
from rankwise.report import write_report
from rankwise.sweeps.adapters import Adapters
from rankwise.sweeps.directory import (
    UNFINISHED,
    begin_run,
    check_directory,
    checked_place,
    end_run,
    read_begun,
    write_run,
)
from rankwise.sweeps.grid import Candidate, runs_of
from rankwise.sweeps.measure import measure_base
from rankwise.sweeps.plan import fingerprint
from rankwise.sweeps.problem import DATA, Problem, Run, Swept
from rankwise.sweeps.record import Results, make_results
from rankwise.sweeps.stages import Search, Stages, merged_edges
from rankwise.train.checkpoints import Every
from rankwise.train.data import count_rows, tensors_of
from rankwise.train.live import Progress
from rankwise.train.precheck import check_training
from rankwise.writing import interrupts_ignored


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the results of a run go, and how it is kept while it is under way.

    Args:
        directory: The run directory.
        config: The complete configuration as YAML, to be kept beside the results.
        command: The command line, likewise.
        how_to_resume: A command that goes on with the run, for messages.
        overwrite: Whether earlier results may be replaced.
        resume: Whether to go on with the unfinished run in the directory.
        every: How often a checkpoint is written.
    """

    directory: Path
    config: str
    command: str
    how_to_resume: str
    overwrite: bool = False
    resume: bool = False
    every: Every | None = None

    @property
    def kept(self) -> Path:
        """Where the run is kept while it is under way."""
        return self.directory / UNFINISHED

    def check(self) -> None:
        """Refuse a directory that can't be used; to be called before anything costly.

        Raises:
            OutputError: Results can't be written there.
        """
        if self.resume:
            checked_place(self.directory)
        else:
            check_directory(self.directory, self.overwrite)


@dataclass(frozen=True)
class Beginning:
    """What is known of a run's beginning, kept for a later resumption.

    Args:
        about: The command and the time.
        base: The base's weights, where the task makes the base itself and the run is gone on with.
    """

    about: dict[str, str]
    base: dict[str, Tensor] | None = None


def now(command: str) -> Beginning:
    """A run that begins now."""
    return Beginning({"command": command, "started": datetime.now(UTC).isoformat(timespec="seconds")})


def take_up(place: Place) -> Beginning:
    """The beginning of the unfinished run in a place.

    Raises:
        CheckpointError: A file of it is missing or damaged.
    """
    return Beginning(*read_begun(place.directory))


def begin(place: Place, base: Mapping[str, Tensor] | None = None) -> Beginning:
    """Begin a run in its place; it can be gone on with from here.

    Args:
        place: Where.
        base: The base's weights, where the task has made the base itself.

    Raises:
        OutputError: The directory can't be written.
    """
    beginning = now(place.command)
    begin_run(place.directory, place.config, beginning.about, base)
    return beginning


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
        tolerance: The user's own, in the metric's unit.
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
    tolerance: float | None = None
    notes: Sequence[str] = ()
    beside: Callable[[Path, Run, Results, Swept], object] | None = None

    def check(self) -> None:
        """Find what each candidate trains in the model, and whether there can be intervals; to be called before
        anything is written.

        Raises:
            ConfigError: The grid is empty.
            DataError: There is one row to validate or to test on.
            PackError: An adapter is of a kind that a pack can't train.
            TargetError: A target pattern matches nothing.
        """
        for run in runs_of([replace(c, lrs=c.lrs[:1]) for c in self.candidates], self.seeds[:1]):
            resolve(self.model, run.member)
        for splits in self.problem.splits.values():
            for what, data in {"validation": splits.validation, "test": splits.test}.items():
                if count_rows(data, what) < 2:
                    raise DataError(f"The {what} data has 1 row; give two or more, as there is no interval of one.")
        one = next((c for c in self.candidates if c.method == "lora"), self.candidates[0])
        data, feed = self.problem.splits[one.data], self.problem.feed
        problem, member = self.problem, one.run(one.lrs[0], self.seeds[0]).member
        check_training(self.model, member, data.train, data.validation, problem.loss, problem.metric, feed)

    def stages(self, progress: Progress, place: Place | None = None) -> Stages:
        """How it is trained: in a place, or in memory alone."""
        return Stages(
            model=self.model,
            problem=self.problem,
            candidates=self.candidates,
            seeds=self.seeds,
            progress=progress,
            rungs=self.rungs,
            search=self.search,
            widen=self.widen,
            checkpoints=None if place is None else place.kept,
            every=None if place is None else place.every,
            resume=place is not None and place.resume,
        )


Maker = Callable[[Progress, Mapping[str, Tensor] | None], Experiment]
"""Makes an experiment: told where to show what is done meanwhile, and, where a run is gone on with, the base's weights
as they were kept (none where the task doesn't make the base)."""


def run_in(place: Place, make: Maker, progress: Progress) -> tuple[Results, list[Path]]:
    """Make an experiment, run it in its place from the beginning or from where it was, and write the run directory.

    Returns:
        The content of `results.json`, and the files of the report.

    Raises:
        RankwiseError: Something in the settings, the data or the place can't be used.
        KeyboardInterrupt: Interrupted before any run had finished; there are no results yet.
    """
    place.check()
    begun = take_up(place) if place.resume else None
    experiment = make(progress, None if begun is None else begun.base or {})
    experiment.check()
    begun = begun or begin(place, experiment.model.state_dict() if experiment.keep_base else None)
    results, _, files = carry_out(experiment, begun, place, progress)
    return results, files


BASE_IN_DIRECTORY = "../../base"
"""What an adapter calls a base that lies beside `adapters/` in the run directory."""


def carry_out(
    experiment: Experiment, beginning: Beginning, place: Place | None, progress: Progress
) -> tuple[Results, Swept, list[Path]]:
    """Train, measure, decide, and write results and report.

    Args:
        experiment: What.
        beginning: From `begin`, `take_up` or `now`.
        place: Where the results go; None keeps them in memory alone.
        progress: Where training is shown.

    Returns:
        The content of `results.json`, what the runs gave, and the files of the report.

    Raises:
        RankwiseError: Something in the runs, the data or the place can't be used.
        KeyboardInterrupt: Interrupted before any run had finished; there are no results yet.
    """
    model, problem = experiment.model, experiment.problem
    clock = time.perf_counter()
    which = DATA if DATA in problem.splits else experiment.candidates[0].data
    splits = problem.splits[which]
    tests = {problem.metric_name: splits.test, **problem.other_tests}
    base_metrics = {name: measure_base(model, problem, data) for name, data in tests.items()}
    on_validation = measure_base(model, problem, splits.validation)
    if not all(map(math.isfinite, [*base_metrics.values(), on_validation])):
        raise ConfigError(
            f"The {problem.metric_name} is not finite on the base: {[*base_metrics.values(), on_validation]}. It must "
            "be a number on every row of the validation and test data."
        )
    before = fingerprint(model.state_dict())
    found = experiment.stages(progress, place).run()
    swept, runs = found.swept, found.swept.runs
    progress.close()
    if not (swept.complete or swept.scores):
        raise KeyboardInterrupt  # nothing worth writing; earlier results stay as they are
    after = fingerprint(model.state_dict())
    again = {name: measure_base(model, problem, data) for name, data in tests.items()}
    swept.notes[:0] = experiment.notes
    swept.notes.append(_untouched(before == after and base_metrics == again))
    folders = {
        run.name: f"adapters/{run.name}"
        for run in runs
        if run.method == "lora" and run.name in swept.outcomes and swept.outcomes[run.name].status == "finished"
    }
    known = base_metrics if experiment.base_has_metric else {}
    results = make_results(
        swept,
        problem,
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
            "seconds": time.perf_counter() - clock,
            "versions": versions(),
            "device": str(next(model.parameters()).device),
            "data": data_of(problem, which),
            "published": None,
            **experiment.about,
            "grid": {**grid_of(runs), **({"search": found.searched} if found.searched else {}), **experiment.grid},
        },
        comparable=experiment.comparable,
        relative_to=experiment.relative_to,
        tolerance=experiment.tolerance,
        adapters=folders if place else {},
    )
    merged_edges(found.edges, results["configurations"])
    if place is None:
        return results, swept, []
    with interrupts_ignored():
        try:
            base_name = BASE_IN_DIRECTORY if experiment.keep_base else experiment.base_name
            beside = experiment.beside or (lambda folder, run, results, swept: None)
            adapters = Adapters(model, folders, base_name, lambda folder, run: beside(folder, run, results, swept))
            write_run(place.directory, results, place.config, swept, adapters, keep_base=experiment.keep_base)
            files = write_report(results, place.directory)
        except OutputError as error:
            raise OutputError(
                f"{error} What has been trained is kept in {place.kept}; make room and go on with: "
                f"{place.how_to_resume}"
            ) from error
        if results["complete"]:
            end_run(place.directory)
    return results, swept, files


def _untouched(same: bool) -> str:
    if same:
        return "With the adapter off the base is what it was, bit for bit."
    return "The base has changed in training: this is a fault of the program, please report it."


def data_of(problem: Problem, which: str) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of each split, as `results.json` has them."""
    splits = problem.splits[which]
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    return {
        name: {
            "n": count_rows(data, name),
            "sha256": fingerprint({str(i): tensor for i, tensor in enumerate(tensors_of(data))}),
        }
        for name, data in parts.items()
    }


def grid_of(runs: Sequence[Run]) -> dict[str, Any]:
    """What is tried, as `results.json` tells it."""
    rates = {method: sorted({run.training.lr for run in runs if run.method == method}) for method in ("lora", "full")}
    return {
        "ranks": sorted({run.r for run in runs if run.r is not None}),
        "lrs": rates["lora"],
        "baseline_lrs": rates["full"],
        "seeds": sorted({run.member.seed for run in runs}),
    }


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of a configuration, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    packages = {name: metadata.version(name) for name in ("rankwise", "torch", "numpy", "safetensors")}
    return {"python": platform.python_version(), "platform": sys.platform, **packages}


def find_device(name: str) -> torch.device:
    """The device by its name.

    Raises:
        ConfigError: There is no such device here.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError):
        known = "cpu, cuda" if torch.cuda.is_available() else "cpu"
        raise ConfigError(f'There is no device "{name}" here; there is {known}.') from None
    return device
