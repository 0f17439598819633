"""Run a sweep: packs of runs over one base, then one evaluation of everything that finished."""

from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from rankwise.errors import CheckpointError, ConfigError
from rankwise.pack.resolved import resolve
from rankwise.sweeps.measure import measure
from rankwise.sweeps.plan.fitting import Probes
from rankwise.sweeps.plan.plan import (
    Plan,
    check_plan,
    fingerprints,
    fingerprints_of,
    make_plan,
    read_plan,
    surroundings,
    write_plan,
)
from rankwise.sweeps.problem import Problem, Run, SweepState
from rankwise.sweeps.run.scheduler import Scheduler
from rankwise.sweeps.run.stage import BestBefore
from rankwise.sweeps.run.units.context import StageContext, Workers
from rankwise.sweeps.run.units.here import Here
from rankwise.sweeps.storage.checkpoints import Keeper
from rankwise.train.checkpoints import CheckpointInterval, Checkpoints
from rankwise.train.events import Message, Observer, RunInfo, Started
from rankwise.train.machine.interrupts import stop_on_signals


@dataclass(frozen=True)
class WithinSweep:
    """The part of its sweep that a stage uses.

    Args:
        root: The folder of the whole run; None where it is that of the stage.
        probes: What steps take in memory, as far as it was measured before.
        tests: Whether finished runs are measured on test data too.
        memory: Bytes that a pack may need on top of the base; what doesn't fit trains in packs one after another. By
            default nine tenths of what the device has free. An unfinished run keeps the packs of its plan.
        best_before: As in `Phase`.
        known: The fingerprints of the base and the data, which its first stage fills in.
    """

    root: Path | None = None
    probes: Probes | None = None
    tests: bool = True
    memory: int | None = None
    best_before: BestBefore | None = None
    known: dict[str, str] = field(default_factory=dict[str, str])


def run_sweep(
    model: nn.Module,
    runs: Sequence[Run],
    problem: Problem,
    observer: Observer,
    *,
    rungs: Sequence[int] = (),
    checkpoints: Path | None = None,
    every: CheckpointInterval | None = None,
    resume: bool = False,
    workers: Workers | None = None,
    within: WithinSweep | None = None,
) -> SweepState:
    """Train every run and measure those that finished.

    An interrupt (Ctrl-C, or SIGTERM where checkpoints are kept) while training ends the training only: what had
    finished is measured and returned, with `complete` false.

    Args:
        model: The base; its weights are the same, bit for bit, afterwards.
        runs: What to train.
        problem: Data, loss and metric.
        observer: Hears what happens.
        rungs: Epochs, rising, after which the worst configurations leave (`sweeps.choose.rungs`); none by default.
        checkpoints: A folder for the plan and the checkpoints; the caller removes it when the results are safe. None
            to keep nothing.
        every: How often a checkpoint is written.
        resume: Resume the unfinished run in `checkpoints` from its last complete checkpoint, by its plan.
        workers: Train the packs; None trains them in this process.
        within: The sweep of which this is a stage; None where it is all there is.

    Raises:
        CheckpointError: The run can't be resumed: none was found, or its runs, data or base differ.
        ConfigError: The rungs don't rise, or there is no folder to resume from.
        OutputError: The plan can't be written.
        PackError: Some runs can't be trained in a pack.
        TargetError: A target pattern matches nothing.
    """
    if list(rungs) != sorted({*rungs}) or any(rung < 1 for rung in rungs):
        raise ConfigError(f"The rungs are {list(rungs)}; give rising numbers of epochs, such as 4, 12.")
    workers, within = workers or Here(), within or WithinSweep()
    parameters = {run.name: resolve(model, run.member).parameter_count() for run in runs}
    swept = SweepState(runs, parameters)
    if not within.known:
        within.known.update(fingerprints_of(model, problem))
    if resume:
        plan = _resumed(checkpoints, rungs)
        if within.probes is not None:
            within.probes.update(plan.probes)
        sha256 = fingerprints(model, runs, problem, within.known)
        swept.notes += check_plan(plan, sha256, surroundings(model), checkpoints or Path())
    else:
        plan = _new_plan(model, runs, problem, rungs, checkpoints, workers, within)
    swept.note(plan.notes)
    by_name = {run.name: run for run in runs}
    packs = [[by_name[name] for name in pack] for pack in plan.packs]
    observer.on_event(
        Started(tuple(_info(run, parameters[run.name], problem) for run in runs), problem.each_epoch.metric_name)
    )
    kept = None
    if checkpoints is not None:
        kept = Checkpoints(checkpoints, lambda text: observer.on_event(Message(text)), every)
    keeper = None if kept is None else Keeper(kept, swept)
    with stop_on_signals(heard=kept is not None) as stop:
        root = within.root or checkpoints
        context = StageContext(model, problem, checkpoints, root, plan.sha256, swept, stop, every, within.tests)
        worker = workers.worker(context, lambda: kept is not None and kept.due())
        scheduler = Scheduler(
            model, packs, problem.each_epoch, plan.rungs, swept, observer, keeper, stop, within.best_before
        )
        with suppress(KeyboardInterrupt):
            if resume:
                scheduler.resume()
            for jobs in scheduler.rounds():
                with closing(worker.train(jobs)) as events:
                    for event in events:
                        scheduler.take(event)
    # Packs that train at the same time end in any order.
    order = {run.name: i for i, run in enumerate(runs)}
    swept.curve.sort(key=lambda point: (order[point.run], point.step))
    swept.complete = len(swept.outcomes) == len(runs)
    for _ in _measured(model, problem, swept, scheduler.packs, plan, observer, tests=within.tests):
        if swept.complete:  # a run that is resumed later does not measure this again
            scheduler.keep()
    return swept


def _new_plan(
    model: nn.Module,
    runs: Sequence[Run],
    problem: Problem,
    rungs: Sequence[int],
    checkpoints: Path | None,
    workers: Workers,
    within: WithinSweep,
) -> Plan:
    """The plan of a run that begins; it is in its folder before anything trains."""
    plan = make_plan(
        model,
        runs,
        problem,
        rungs,
        within.memory,
        within.probes,
        workers.at_once,
        workers.in_one_memory,
        known=within.known,
    )
    if checkpoints is not None:
        write_plan(checkpoints, plan)
    return plan


def _resumed(checkpoints: Path | None, rungs: Sequence[int]) -> Plan:
    """The plan of the unfinished run."""
    if checkpoints is None:
        raise ConfigError("resume needs the folder of the checkpoints.")
    plan = read_plan(checkpoints)
    if list(rungs) != plan.rungs:
        raise CheckpointError(
            f"The run in {checkpoints} can't be resumed with the rungs {list(rungs)}; it began with {plan.rungs}."
        )
    return plan


def _measured(
    model: nn.Module,
    problem: Problem,
    swept: SweepState,
    packs: Sequence[Sequence[Run]],
    plan: Plan,
    observer: Observer,
    *,
    tests: bool,
) -> Iterator[Sequence[Run]]:
    """Measure what finished and no worker has measured, and note which pack each run was in: packs that were too large
    have been split.

    Yields:
        The runs of each pack once they have been measured.
    """
    finished = {name for name, outcome in swept.outcomes.items() if outcome.status == "finished"}
    # A pack is measured as a whole: which runs pass at once can change last bits.
    missing = [pack for pack in packs if not finished & {run.name for run in pack} <= swept.scores.keys()]
    n = sum(run.name in finished for pack in missing for run in pack)
    if tests and n:
        measuring = f"Measuring {n:,} finished run{'' if n == 1 else 's'} on test data"
        if problem.model_metric is not None:
            measuring = measuring.replace("on test", f"by {problem.metric_name} on validation and test")
        observer.on_event(Message(measuring))
    for i, pack in enumerate(packs):
        peak = plan.base_bytes + sum(plan.memory[run.name] for run in pack)
        swept.packs |= {run.name: i for run in pack}
        swept.memory |= {run.name: peak for run in pack}
        if pack in missing:
            measure(model, pack, problem if tests else problem.each_epoch, swept, tests=tests)
            yield pack


def _info(run: Run, parameters: int, problem: Problem) -> RunInfo:
    return RunInfo(
        name=run.name,
        configuration=run.configuration,
        label=run.label,
        method=run.method,
        r=run.r,
        lr=run.training.lr,
        seed=run.member.seed,
        parameters=parameters,
        steps=run.training.epochs * -(-problem.train_rows(run.data) // run.training.batch_size),
    )
