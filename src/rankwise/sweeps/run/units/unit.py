"""A unit of work in a run directory: one pack to its next rung, with where it begins and, at the end, its result.

A unit is a folder: the checkpoints of its pack (the first is where it begins, the last is its result), `unit.json`
with what is to be trained, and `done.json`, which is written last. So a unit can be stopped, continued and repeated
anywhere; what is done is never done again.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from torch import nn

from rankwise.errors import CheckpointError, OutputError
from rankwise.locking import locked
from rankwise.sweeps.candidates.grid import Candidate
from rankwise.sweeps.plan.plan import fingerprints, surroundings
from rankwise.sweeps.problem import Problem, Run, SweepState
from rankwise.sweeps.provenance import versions
from rankwise.sweeps.run.worker import PackJob
from rankwise.sweeps.storage.checkpoints import Keeper
from rankwise.sweeps.storage.owned import DONE, UNIT
from rankwise.train.checkpoints import Checkpoints
from rankwise.train.state import TrainingState
from rankwise.writing import read_checked, sha256_of, write_checked

FORMAT, DONE_FORMAT = "rankwise-unit-1", "rankwise-done-1"


@runtime_checkable
class ExperimentFacts(Protocol):
    """The parts of an experiment that a worker needs."""

    @property
    def model(self) -> nn.Module: ...
    @property
    def problem(self) -> Problem: ...
    @property
    def candidates(self) -> Sequence[Candidate]: ...


@dataclass(frozen=True)
class UnitSpec:
    """The description of a unit, as plain data.

    Args:
        stage: The folder of its stage; empty for the first one.
        pack: Its pack's number in the stage.
        runs: What rebuilds each run of the pack: its candidate's name, learning rate, seed, data, and horizon.
        until: The epoch at which it stops; None to train every run to its end.
        names: The runs that are in training when it begins.
        steps: Steps that they have taken by then.
        sha256: Fingerprints of runs, base, data and cuts, as a plan has them.
        made_with: What the last bits of the results depend on, as the driver has it.
        measures: The data on which its worker measures runs that finish, if all of the pack's runs have ended with it;
            None leaves that to the driver.
    """

    stage: str
    pack: int
    runs: list[dict[str, Any]]
    until: int | None
    names: list[str]
    steps: int
    sha256: dict[str, str]
    made_with: dict[str, str]
    measures: Literal["validation", "test"] | None = None

    @property
    def key(self) -> dict[str, Any]:
        """The fields that identify a unit of a sweep."""
        return {name: value for name, value in asdict(self).items() if name not in ("sha256", "made_with", "measures")}

    def runs_from(self, candidates: Sequence[Candidate]) -> list[Run]:
        """Make the unit's runs from the candidates of its experiment.

        Raises:
            CheckpointError: There is no such candidate.
        """
        by_name = {c.name: c for c in candidates}
        runs: list[Run] = []
        for one in self.runs:
            if one["configuration"] not in by_name:
                raise CheckpointError(
                    f'A unit trains the configuration "{one["configuration"]}"; the run has {", ".join(by_name)}.'
                )
            run = by_name[one["configuration"]].run(one["lr"], one["seed"], one["data"])
            runs.append(replace(run, training=replace(run.training, horizon=one["horizon"])))
        return runs


def spec_of(job: PackJob, stage: str, sha256: Mapping[str, str], model: nn.Module, problem: Problem) -> UnitSpec:
    """Describe a job, so that another process can rebuild it.

    Args:
        job: The job.
        stage: The folder of its stage.
        sha256: Fingerprints of the stage's plan, of which base and data are taken.
        model: The base.
        problem: Data, loss and metric.
    """
    return UnitSpec(
        stage=stage,
        pack=job.pack,
        runs=[
            {
                "configuration": run.configuration,
                "lr": run.training.lr,
                "seed": run.member.seed,
                "data": run.data,
                "horizon": run.training.horizon,
            }
            for run in job.runs
        ],
        until=job.until,
        names=[run.name for run in job.runs] if job.state is None else job.state.names,
        steps=0 if job.state is None else job.state.plain["steps"],
        sha256=fingerprints(model, job.runs, problem, {key: sha256[key] for key in ("base", "data")}),
        made_with=made_with(model),
    )


def made_with(model: nn.Module) -> dict[str, str]:
    """The software and hardware that the last bits of a unit's result depend on."""
    return {**surroundings(model), "rankwise": versions()["rankwise"]}


@dataclass(frozen=True)
class UnitResult:
    """The outcome of a unit.

    Args:
        status: "over", or "too large" where a step did not fit into memory.
        swept: Points, outcomes and notes since its beginning.
        state: Of the runs that have not ended; None where all have.
    """

    status: Literal["over", "too large"]
    swept: SweepState
    state: TrainingState | None


@dataclass(frozen=True)
class Unit:
    """One unit in its folder.

    Args:
        number: Its number in the run directory, from 0.
        folder: Where it lies.
        spec: What it trains.
    """

    number: int
    folder: Path
    spec: UnitSpec

    @property
    def done(self) -> bool:
        """Whether its result is written."""
        return (self.folder / DONE).exists()

    def held(self) -> AbstractContextManager[None]:
        """Lock the unit for this process.

        Raises:
            BusyError: Another process trains it.
        """
        return locked(self.folder)

    def finish(self, result: UnitResult) -> None:
        """Mark the unit as done, now that its last checkpoint is the result.

        Raises:
            OutputError: It can't be written.
        """
        write_checked(self.folder / DONE, DONE_FORMAT, {"status": result.status, **_counts(result)})

    def result(self, runs: Sequence[Run]) -> UnitResult | None:
        """Read the outcome of the unit; None where it is not done, or damaged, in which case it is to be done again.

        Args:
            runs: Its runs.
        """
        if not self.done:
            return None
        swept = SweepState(runs, {})
        waiting, _ = Keeper(Checkpoints(self.folder, lambda text: None), swept).read()
        try:
            done = read_checked(self.folder / DONE, DONE_FORMAT)
        except CheckpointError:
            done = {}
        result = UnitResult(done.get("status", "over"), swept, waiting.get(self.spec.pack))
        if done != {"status": result.status, **_counts(result)}:
            (self.folder / DONE).unlink(missing_ok=True)
            return None
        return result


def _counts(result: UnitResult) -> dict[str, int]:
    swept = result.swept
    return {"outcomes": len(swept.outcomes), "points": len(swept.curve), "scores": len(swept.scores)}


class Units:
    """The units of a run directory.

    Args:
        folder: Where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._by_key: dict[str, int] | None = None

    @property
    def numbers(self) -> list[int]:
        """Numbers of all units."""
        found = (re.fullmatch(r"\d+", path.name) for path in self.folder.glob("*") if (path / UNIT).exists())
        return sorted(int(match[0]) for match in found if match)

    def unit(self, number: int) -> Unit:
        """Read a unit.

        Raises:
            CheckpointError: There is none of this number, or it is damaged.
        """
        folder = self.folder / f"{number:06}"
        if not (folder / UNIT).exists():
            known = ranges(self.numbers) or "none"
            raise CheckpointError(f"There is no unit {number} in {self.folder}; the units there are {known}.")
        return Unit(number, folder, UnitSpec(**read_checked(folder / UNIT, FORMAT)))

    def unit_of(self, spec: UnitSpec, job: PackJob) -> Unit:
        """Find the unit of a job, or write it.

        Raises:
            OutputError: It can't be written.
        """
        if self._by_key is None:
            self._by_key = {sha256_of(unit.spec.key): unit.number for unit in map(self.unit, self.numbers)}
        key = sha256_of(spec.key)
        if key in self._by_key:
            return self.unit(self._by_key[key])
        number = self._by_key[key] = max(self._by_key.values(), default=-1) + 1
        unit = Unit(number, self.folder / f"{number:06}", spec)
        if job.state is not None:
            begin(unit, job.runs, job.state)
        write_checked(unit.folder / UNIT, FORMAT, asdict(spec))
        return unit


def begin(unit: Unit, runs: Sequence[Run], state: TrainingState) -> None:
    """Write the state from which a unit starts.

    Raises:
        OutputError: It can't be written.
    """
    keep(Keeper(Checkpoints(unit.folder, lambda text: None), SweepState(runs, {})), unit, state)


def keep(keeper: Keeper, unit: Unit, state: TrainingState | None, *, surely: bool = True) -> None:
    """Write a unit's state.

    Args:
        keeper: Writes it.
        unit: Which.
        state: Of the runs that have not ended.
        surely: False where the last one is good enough, as training continues.

    Raises:
        OutputError: It can't be written, and must be.
    """
    written = keeper.write({} if state is None else {unit.spec.pack: state}, 0)
    if surely and not written:
        raise OutputError(f"The state of unit {unit.number} can't be written to {unit.folder}; make room there.")


def ranges(numbers: Sequence[int]) -> str:
    """Numbers as Slurm's --array takes them.

    Examples:
        >>> ranges([4, 5, 6]), ranges([0, 2, 3]), ranges([7]), ranges([])
        ('4-6', '0,2-3', '7', '')
    """
    groups: list[list[int]] = []
    for number in sorted(numbers):
        if groups and groups[-1][-1] == number - 1:
            groups[-1].append(number)
        else:
            groups.append([number])
    return ",".join(f"{group[0]}-{group[-1]}" if len(group) > 1 else str(group[0]) for group in groups)
