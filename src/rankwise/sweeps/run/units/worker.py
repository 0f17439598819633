"""A worker that hands out units: what is done is read, and a runner sees to the others."""

from collections.abc import Generator, Iterable
from dataclasses import replace
from itertools import groupby
from typing import final

from rankwise.sweeps.run.units.context import PendingUnit, Runner, StageContext
from rankwise.sweeps.run.units.unit import Unit, UnitResult, Units, UnitSpec, spec_of
from rankwise.sweeps.run.worker import PackJob, PackState
from rankwise.train.events import EpochEnded, Event, Message, RunEnded, Stepped


@final
class UnitsWorker:
    """Trains packs as units of the run directory.

    Args:
        context: Where, and for whom.
        units: Where units lie.
        runner: Sees to those that are not done.
    """

    def __init__(self, context: StageContext, units: Units, runner: Runner) -> None:
        self._context, self._units, self._runner = context, units, runner

    def train(self, jobs: Iterable[PackJob]) -> Generator[Event | PackState]:
        """Train packs, each to its rung; each point is reported once, however often its unit was started."""
        context = self._context
        pending: dict[int, PendingUnit] = {}
        reported = {(point.run, point.step) for point in context.swept.curve}
        for job in jobs:
            unit = self._units.unit_of(self._spec(job), job)
            if (result := unit.result(job.runs)) is None:
                pending[unit.number] = PendingUnit(unit, job.runs)
            else:
                yield from _events_of(unit, result, reported)
        while pending:
            for event in self._runner.run(list(pending.values()), context):
                if isinstance(event, Unit):
                    result = event.result(pending[event.number].runs)
                    if result is not None:  # else its files are damaged, and it is done again
                        del pending[event.number]
                        yield from _events_of(event, result, reported)
                elif isinstance(event, EpochEnded):
                    new = tuple(point for point in event.points if (point.run, point.step) not in reported)
                    reported |= {(point.run, point.step) for point in new}
                    if new:
                        yield EpochEnded(new, event.notes)
                elif isinstance(event, Stepped | Message):
                    yield event

    def _spec(self, job: PackJob) -> UnitSpec:
        context = self._context
        spec = spec_of(job, context.stage, context.sha256, context.model, context.problem)
        # A pack is measured as a whole, and a unit has only what finished in it.
        ended = [context.swept.outcomes[run.name] for run in job.runs if run.name in context.swept.outcomes]
        if any(outcome.status == "finished" for outcome in ended):
            return spec
        return replace(spec, measures="test" if context.tests else "validation")


def _events_of(unit: Unit, result: UnitResult, reported: set[tuple[str, int]]) -> Generator[Event | PackState]:
    """The outcome of a unit: the events that were not reported before, and its state."""
    new = [point for point in result.swept.curve if (point.run, point.step) not in reported]
    notes = tuple(result.swept.notes)
    for _, points in groupby(new, key=lambda point: point.step):
        yield EpochEnded(tuple(points), notes)
    yield from map(RunEnded, result.swept.outcomes.values())
    yield PackState(unit.spec.pack, result.status, result.state, result.swept.scores, notes)
