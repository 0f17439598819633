"""Packs train in this process: the setting of a run without workers."""

from collections.abc import Callable, Generator, Sequence
from typing import final

from rankwise.sweeps.run.units.phase import PendingUnit, Phase
from rankwise.sweeps.run.units.train import train_unit
from rankwise.sweeps.run.units.unit import Unit, Units
from rankwise.sweeps.run.units.worker import UnitsWorker
from rankwise.sweeps.run.worker import LocalWorker, Worker
from rankwise.sweeps.storage.owned import UNITS
from rankwise.train.events import Event, Message


@final
class Here:
    """Trains packs in this process; the units of an earlier process that used some are continued."""

    at_once = 1

    def close(self) -> None:
        """Nothing is held."""

    def worker(self, phase: Phase, due: Callable[[], bool]) -> Worker:
        """What trains the packs of a stage."""
        units = None if phase.root is None else Units(phase.root / UNITS)
        if units is None or not units.numbers:
            return LocalWorker(phase.model, phase.problem, lambda: phase.stop.asked or due())
        return UnitsWorker(phase, units, self)

    def run(self, pending: Sequence[PendingUnit], phase: Phase) -> Generator[Event | Unit]:
        """Train units one after another."""
        for one in pending:
            messages: list[str] = []
            known = {key: phase.sha256[key] for key in ("base", "data")}
            training = train_unit(
                one.unit,
                one.runs,
                phase.model,
                phase.problem,
                known,
                stop=phase.stop,
                say=messages.append,
                every=phase.every,
            )
            for event in training:
                yield from map(Message, messages)
                messages.clear()
                yield event
            yield one.unit
