"""Packs train in other processes, which someone else starts: a batch system, a shell loop."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from rankwise.sweeps.run.units.context import PendingUnit, StageContext, units_of
from rankwise.sweeps.run.units.unit import Unit
from rankwise.sweeps.run.units.worker import UnitsWorker
from rankwise.sweeps.run.worker import Worker
from rankwise.train.events import Event


class UnitsPending(Exception):  # noqa: N818, it is no error
    """The sweep waits for units that other processes train.

    Args:
        numbers: Those of the units.
    """

    def __init__(self, numbers: Sequence[int]) -> None:
        super().__init__(f"{len(numbers)} units wait to be trained")
        self.numbers = list(numbers)


@final
@dataclass(frozen=True)
class Apart:
    """Writes units and leaves them to other processes (`rankwise work`): the sweep stops at the first that is not done.

    Args:
        at_once: Processes that will train at the same time.
        in_one_memory: Those of them that will share a memory.
    """

    at_once: int = 1
    in_one_memory: int = 1

    def begin(self, directory: Path) -> None:
        """Nothing to check."""

    def close(self) -> None:
        """Nothing to release."""

    def worker(self, context: StageContext, due: Callable[[], bool]) -> Worker:
        """The worker of a stage.

        Raises:
            ConfigError: There is no run directory.
        """
        return UnitsWorker(context, units_of(context), self)

    def run(self, pending: Sequence[PendingUnit], context: StageContext) -> Generator[Event | Unit]:
        """Stop.

        Raises:
            UnitsPending: Always.
        """
        yield from ()
        raise UnitsPending([one.unit.number for one in pending])
