"""The interface between a sweep and its workers: the context of a stage's packs, and what trains them."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import nn

from rankwise.errors import ConfigError, option
from rankwise.sweeps.problem import Problem, Run, SweepState
from rankwise.sweeps.run.units.unit import Unit, Units
from rankwise.sweeps.run.worker import Worker
from rankwise.sweeps.storage.owned import UNITS
from rankwise.train.checkpoints import CheckpointInterval
from rankwise.train.events import Event
from rankwise.train.machine.interrupts import Stop


@dataclass(frozen=True)
class StageContext:
    """The context in which packs are trained.

    Args:
        model: The base.
        problem: Data, loss and metric.
        folder: Plan and checkpoints of the stage; None where nothing is kept.
        root: The same of the whole run.
        sha256: Fingerprints of the stage's plan.
        swept: What the stage has found so far.
        stop: Whether someone has asked training to stop.
        every: How often a checkpoint is written.
        tests: Whether finished runs are measured on test data too.
    """

    model: nn.Module
    problem: Problem
    folder: Path | None
    root: Path | None
    sha256: Mapping[str, str]
    swept: SweepState
    stop: Stop
    every: CheckpointInterval | None = None
    tests: bool = True

    @property
    def stage(self) -> str:
        """The name of the stage's folder; empty for that of the run."""
        return "" if self.folder is None or self.folder == self.root else self.folder.name


@dataclass(frozen=True)
class PendingUnit:
    """A unit that is not done, with its runs."""

    unit: Unit
    runs: Sequence[Run]


@runtime_checkable
class Runner(Protocol):
    """Sees to it that units are trained."""

    def run(self, pending: Sequence[PendingUnit], context: StageContext) -> Generator[Event | Unit]:
        """Train units.

        Yields:
            What happens, as far as it is heard of, some of it perhaps again; each unit when it is done.
        """
        ...


@runtime_checkable
class Workers(Protocol):
    """The setting of a run that decides who trains its packs."""

    @property
    def at_once(self) -> int:
        """Packs that train at the same time, at most."""
        ...

    @property
    def in_one_memory(self) -> int:
        """Packs that train at the same time in the memory of one device."""
        ...

    def begin(self, directory: Path) -> None:
        """Find out whether workers can take part in a run, before anything costly.

        Raises:
            ConfigError: They can't be reached, or can't work on the run directory.
        """
        ...

    def close(self) -> None:
        """Release the resources of the run."""
        ...

    def worker(self, context: StageContext, due: Callable[[], bool]) -> Worker:
        """The worker of a stage; `due` returns whether a checkpoint is due."""
        ...


def units_of(context: StageContext) -> Units:
    """The units of a context.

    Raises:
        ConfigError: There is no run directory.
    """
    if context.root is None:
        raise ConfigError(f"Workers need a run directory; give one with {option('out')}.")
    return Units(context.root / UNITS)
