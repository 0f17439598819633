"""`rankwise work`."""

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from rankwise.cli.app import EXIT_ANSWERED, EXIT_DIVERGED, EXIT_LATER, EXIT_OK, app
from rankwise.cli.places import pointed_to
from rankwise.cli.recorded import experiment_in, with_experiment
from rankwise.cli.training import RunOptions, train_in
from rankwise.errors import BusyError, ConfigError
from rankwise.remote.store import url_of

if TYPE_CHECKING:
    from rankwise.experiment import ExperimentFactory


@app.command
def work(
    directory: Path,
    /,
    *,
    pack: int | None = None,
    next_: Annotated[bool, Parameter(name="--next", negative="", show_default=False)] = False,
    quiet: Annotated[bool, Parameter(negative="", show_default=False)] = False,
) -> int:
    """Do one unit of work of a sweep made with --prepare: for batch systems, one process a unit.

    Example: rankwise work runs/last --pack 3

    A unit trains a pack of adapters to the sweep's next decision. Repeating it changes nothing; stopped,
    it continues from its last checkpoint. When all units are done, --next decides, and writes the next ones or the
    answer.

    Exit codes: 0 done; 2 a mistake; 10 the answer is written; 75 another process is at work there, or this one was
    stopped: try again later.

    Parameters
    ----------
    directory:
        The run directory, or a URL such as s3://bucket/run.
    pack:
        Train the unit of this number.
    next_:
        Decide what the finished units allow, and print the numbers of the units to do next, such as 4-7.
    quiet:
        Show nothing while training.
    """
    if next_ == (pack is not None):
        raise ConfigError("rankwise work takes one of --pack N and --next.")
    try:
        with _directory(directory, pack) as place:
            return _work(place, pack, quiet=quiet)
    except BusyError as error:
        print(f"rankwise: {error}", file=sys.stderr)
        return EXIT_LATER


def _directory(given: Path, pack: int | None) -> AbstractContextManager[Path]:
    """The run directory, or a local copy of the part that is needed of one on an object store."""
    url = url_of(given)
    if url is None:
        return nullcontext(pointed_to(given))
    from rankwise.sweeps.storage.working_copy import run_copy, unit_copy

    return run_copy(url, continues=True, decides=True) if pack is None else unit_copy(url, pack)


def _work(directory: Path, pack: int | None, *, quiet: bool) -> int:
    from rankwise.sweeps.storage.directory import can_resume
    from rankwise.sweeps.storage.owned import holds_results
    from rankwise.sweeps.storage.working_copy import shown

    if holds_results(directory) and not can_resume(directory):
        print(f"The answer is written: see {shown(directory / 'table.md')}.", file=sys.stderr)
        return EXIT_ANSWERED if pack is None else EXIT_OK
    run_options = RunOptions(resume=directory, quiet=quiet)
    return _decide(directory, run_options) if pack is None else _train(directory, pack, run_options)


def _decide(directory: Path, run_options: RunOptions) -> int:
    def take(command: str, config: str, make: "ExperimentFactory") -> int:
        from rankwise.sweeps.run.units.apart import Apart

        code = train_in(directory, command, config, run_options, make, Apart())
        answered = code in (EXIT_OK, EXIT_DIVERGED) and not can_resume(directory)
        return EXIT_ANSWERED if answered else code

    from rankwise.sweeps.storage.directory import can_resume

    return with_experiment(directory, take)


def _train(directory: Path, number: int, run_options: RunOptions) -> int:
    from rankwise.sweeps.run.units.unit import Units
    from rankwise.sweeps.storage.owned import UNFINISHED, UNITS

    unit = Units(directory / UNFINISHED / UNITS).unit(number)

    def take(command: str, config: str, make: "ExperimentFactory") -> int:
        from rankwise.lora.checks.threads import held_by_thread
        from rankwise.show.live import progress
        from rankwise.sweeps.plan.plan import fingerprints_of
        from rankwise.sweeps.run.units.train import train_unit
        from rankwise.train.events import Message, Observers
        from rankwise.train.machine.interrupts import stop_on_signals

        with Observers([progress("quiet" if run_options.quiet else "plain")]) as observers:
            experiment = experiment_in(directory, make, observers)
            runs = unit.spec.runs_from(experiment.candidates)
            known = fingerprints_of(experiment.model, experiment.problem)
            with held_by_thread(experiment.model, "a sweep"), stop_on_signals() as stop:
                training = train_unit(unit, runs, experiment.model, experiment.problem, known, stop=stop)
                try:
                    for event in training:
                        if isinstance(event, Message):
                            observers.on_event(event)
                except KeyboardInterrupt:
                    print(f"Stopped; unit {number} continues where it is when it is done again.", file=sys.stderr)
                    return EXIT_LATER
        return EXIT_OK

    return EXIT_OK if unit.done else with_experiment(directory, take)
