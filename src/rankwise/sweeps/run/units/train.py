"""Train one unit, wherever this process runs."""

from collections.abc import Generator, Mapping, Sequence

from torch import nn

from rankwise.errors import CheckpointError
from rankwise.sweeps.measure import measure
from rankwise.sweeps.plan.fitting import pack_training
from rankwise.sweeps.plan.plan import check_plan, fingerprints
from rankwise.sweeps.problem import Problem, Run, SweepState
from rankwise.sweeps.run.units.unit import Unit, UnitResult, keep, made_with
from rankwise.sweeps.run.worker import LocalWorker, PackJob, PackState
from rankwise.sweeps.storage.checkpoints import Keeper
from rankwise.train.checkpoints import CheckpointInterval, Checkpoints
from rankwise.train.events import EpochEnded, Event, Message, Stepped
from rankwise.train.machine.interrupts import Stop

TOLD = (Stepped, EpochEnded, Message)
"""Events of a unit that a display shows while it trains elsewhere; the others are read from its result."""


def train_unit(
    unit: Unit,
    runs: Sequence[Run],
    model: nn.Module,
    problem: Problem,
    known: Mapping[str, str],
    *,
    stop: Stop,
    every: CheckpointInterval | None = None,
) -> Generator[Event]:
    """Train a unit from its last checkpoint to its end, and measure what finished in it; nothing happens where it is
    done.

    Args:
        unit: Which.
        runs: Its runs, rebuilt.
        model: The base.
        problem: Data, loss and metric.
        known: Fingerprints of base and data (`fingerprints_of`).
        stop: Asked after every step; the unit is left where it is then.
        every: How often a checkpoint is written.

    Yields:
        What happens; after an interruption from the last checkpoint on.

    Raises:
        BusyError: Another process trains it.
        CheckpointError: The unit is of other runs, another base or other data, or its beginning is damaged.
        OutputError: Its result can't be written.
        KeyboardInterrupt: Asked to stop; the unit can be continued.
    """
    with unit.held():
        if unit.done:
            return
        sha256 = fingerprints(model, runs, problem, known)
        notes = check_plan(unit.spec, sha256, made_with(model), unit.folder)
        swept, messages = SweepState(runs, {}), list[str]()
        checkpoints = Checkpoints(unit.folder, messages.append, every)
        keeper = Keeper(checkpoints, swept)
        waiting, _ = keeper.read()
        swept.note(notes)
        if unit.spec.steps and not waiting and not swept.outcomes:
            raise CheckpointError(
                f"Unit {unit.number} has no whole checkpoint left in {unit.folder}; remove that folder, and the next "
                "`rankwise work --next` writes the unit again."
            )
        state = waiting.pop(unit.spec.pack, None)
        if state is not None or not swept.outcomes:
            job = PackJob(unit.spec.pack, tuple(runs), state, unit.spec.until)
            del state, waiting
            worker = LocalWorker(model, problem, lambda: stop.asked or checkpoints.due())
            for event in worker.train([job]):
                if isinstance(event, PackState):
                    _take_state(unit, event, swept, model, problem, keeper)
                    if event.status == "under way" and stop.asked:
                        raise KeyboardInterrupt
                else:
                    swept.on_event(event)
                    keeper.on_event(event)
                    yield event
                yield from map(Message, messages)
                messages.clear()
        else:
            _finish(unit, UnitResult("over", swept, None), model, problem, keeper)


def _take_state(
    unit: Unit, pack: PackState, swept: SweepState, model: nn.Module, problem: Problem, keeper: Keeper
) -> None:
    """Write the state of a unit's pack, and what follows from it where no more of the unit is to be trained."""
    keep(keeper, unit, pack.state, surely=pack.status != "under way")
    if pack.status != "under way":
        _finish(unit, UnitResult(pack.status, swept, pack.state), model, problem, keeper)


def _finish(unit: Unit, result: UnitResult, model: nn.Module, problem: Problem, keeper: Keeper) -> None:
    """Measure what has finished, where no run of the pack is left, and mark the unit as done."""
    swept, data = result.swept, unit.spec.measures
    if result.state is None and data is not None and not swept.scores:
        tests = data == "test"
        measure(model, swept.runs, problem if tests else problem.each_epoch, swept, tests=tests)
        keep(keeper, unit, None)
    unit.finish(result)


def give_up(unit: Unit, runs: Sequence[Run], model: nn.Module, problem: Problem) -> None:
    """Mark a unit as too large for the memory of the workers, so that its pack is split from its last checkpoint.

    Raises:
        BusyError: Another process trains it.
        OutputError: It can't be written.
    """
    with unit.held():
        swept = SweepState(runs, {})
        keeper = Keeper(Checkpoints(unit.folder, lambda text: None), swept)
        waiting, _ = keeper.read()
        state = waiting.get(unit.spec.pack)
        if state is None and not swept.outcomes:
            state = pack_training(model, runs, problem).state()
        keep(keeper, unit, state)
        unit.finish(UnitResult("too large" if state is not None else "over", swept, state))
