"""A worker on Ray: an actor that makes the experiment once, and trains units of the run one at a time."""

import os
import socket
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from pickle import PickleError
from typing import Any

from rankwise.errors import ConfigError, RankwiseError, option
from rankwise.sweeps.plan.plan import fingerprints_of
from rankwise.sweeps.run.units.train import TOLD, train_unit
from rankwise.sweeps.run.units.unit import ExperimentFacts, Units
from rankwise.train.checkpoints import CheckpointInterval
from rankwise.train.events import Event
from rankwise.train.machine.interrupts import Stop
from rankwise.writing import replacing


@dataclass(frozen=True)
class WorkerContext:
    """The parts of an experiment that workers need."""

    model: Any
    problem: Any
    candidates: Any


@dataclass(frozen=True)
class FromFile:
    """Makes an experiment that was begun from Python: from its file in the run directory.

    Args:
        path: The file, of `write_experiment`.
    """

    path: Path

    def __call__(self) -> ExperimentFacts:
        """Read it; its tensors are mapped into memory, so workers on one machine share what they don't change."""
        import torch

        return torch.load(self.path, weights_only=False, mmap=True)


def write_experiment(path: Path, context: WorkerContext) -> None:
    """Write the parts of an experiment for `FromFile`: tensors as they lie in memory, the rest pickled.

    Raises:
        ConfigError: Something in it can't be pickled.
        OutputError: The file can't be written.
    """
    import torch
    from ray import cloudpickle  # pyright: ignore[reportMissingImports]

    try:
        with replacing(path, durably=True) as temporary:
            torch.save(context, temporary, pickle_module=cloudpickle)
    except (TypeError, ValueError, AttributeError, PickleError) as error:
        if isinstance(error, RankwiseError):
            raise
        raise ConfigError(
            f"The model, the data or a function can't be pickled for workers ({' '.join(str(error).split())[:200]}); "
            "keep open files, locks and connections out of them."
        ) from error


class UnitActor:
    """A worker: trains units of one run, one at a time.

    Args:
        make: Makes the experiment.
        units: The folder of the units.
        threads: Of torch.
        place: The driver's working folder, for paths in the settings.
    """

    def __init__(self, make: Callable[[], ExperimentFacts], units: Path, threads: int, place: Path) -> None:
        import torch

        torch.set_num_threads(threads)
        if place.is_dir():
            os.chdir(place)
        self._make, self._units = make, Units(units)
        self._made: ExperimentFacts | None = None
        self._known: dict[str, str] = {}

    def ready(self) -> bool:
        """Whether it has started."""
        return True

    def run(self, number: int, every: CheckpointInterval | None) -> Generator[Event]:
        """Train a unit; yields what a display shows of it.

        Raises:
            ConfigError: The run directory can't be reached from here.
        """
        if not self._units.folder.is_dir():
            raise ConfigError(
                f"{self._units.folder} can't be reached from {socket.gethostname()}, where a worker runs; give "
                f"{option('out')} on a file system that all machines share, under the same path."
            )
        if self._made is None:
            self._made = self._make()
            self._known = fingerprints_of(self._made.model, self._made.problem)
        unit, made = self._units.unit(number), self._made
        runs = unit.spec.runs_from(made.candidates)
        for event in train_unit(unit, runs, made.model, made.problem, self._known, stop=Stop(), every=every):
            if isinstance(event, TOLD):
                yield event
