"""Packs train in this process: the setting of a run without workers."""

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from rankwise.errors import BusyError
from rankwise.sweeps.run.units.context import PendingUnit, StageContext
from rankwise.sweeps.run.units.train import train_unit
from rankwise.sweeps.run.units.unit import Unit, Units
from rankwise.sweeps.run.units.worker import UnitsWorker
from rankwise.sweeps.run.worker import LocalWorker, Worker, WorkerFactory
from rankwise.sweeps.storage.owned import UNITS
from rankwise.train.events import Event

ENDS_IN = 30.0
"""Seconds within which workers end whose driver was killed; until then they hold their units."""


@final
@dataclass(frozen=True)
class Here:
    """Trains packs in this process; the units of an earlier process that used some are continued.

    Args:
        worker_of: Makes the worker.
    """

    worker_of: WorkerFactory = LocalWorker

    @property
    def at_once(self) -> int:
        """One after another."""
        return 1

    @property
    def in_one_memory(self) -> int:
        """One after another."""
        return 1

    def begin(self, directory: Path) -> None:
        """Nothing to check."""

    def close(self) -> None:
        """Nothing to release."""

    def worker(self, context: StageContext, due: Callable[[], bool]) -> Worker:
        """The worker of a stage."""
        units = None if context.root is None else Units(context.root / UNITS)
        if units is None or not units.numbers:
            return self.worker_of(context.model, context.problem, lambda: context.stop.asked or due())
        return UnitsWorker(context, units, self)

    def run(self, pending: Sequence[PendingUnit], context: StageContext) -> Generator[Event | Unit]:
        """Train units one after another.

        Raises:
            BusyError: Another process trains one, and not only for as long as workers take to end without their driver.
            KeyboardInterrupt: Asked to stop; units continue from their last checkpoints.
        """
        for one in pending:
            end = time.monotonic() + ENDS_IN
            while True:
                try:
                    yield from trained_here(one, context)
                except BusyError:
                    if time.monotonic() > end:
                        raise
                    if context.stop.asked:
                        raise KeyboardInterrupt from None
                    time.sleep(0.5)
                else:
                    break
            yield one.unit


def trained_here(one: PendingUnit, context: StageContext) -> Generator[Event]:
    """Train a unit in this process.

    Raises:
        BusyError: Another process trains it.
        KeyboardInterrupt: Asked to stop; the unit continues from its last checkpoint.
    """
    known = {key: context.sha256[key] for key in ("base", "data")}
    model, problem = context.model, context.problem
    yield from train_unit(one.unit, one.runs, model, problem, known, stop=context.stop, every=context.every)
