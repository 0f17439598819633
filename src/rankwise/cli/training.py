"""The common parts of commands that train: flags, resuming, the live table, exit codes."""

import json
import shlex
import sys
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from rankwise.cli.app import EXIT_DIVERGED, EXIT_INTERRUPTED, EXIT_OK
from rankwise.cli.continuing import CHANGEABLE, settings_of
from rankwise.cli.forecast import print_forecast, with_forecast
from rankwise.cli.places import name_of, new_run, pointed_to
from rankwise.cli.processes import started_together
from rankwise.cli.recorded import wanted
from rankwise.cli.workers import check_workers, idle_gpus, processes_of, workers_of
from rankwise.errors import ConfigError
from rankwise.remote.store import url_of
from rankwise.tasks.flags import HOW, MAIN, listed
from rankwise.tasks.reading import parse_numbers, parts

if TYPE_CHECKING:
    from rankwise.experiment import ExperimentFactory
    from rankwise.results import Results
    from rankwise.sweeps.run.location import RunLocation
    from rankwise.sweeps.run.units.context import Workers
    from rankwise.train.events import Observers


NEXT = {
    "classify": 'rankwise predict {} --text "..."',
    "sft": 'rankwise generate {} --prompt "..."',
    "images": "rankwise predict {} --file IMAGE",
    "digits": "rankwise inspect {}",
}
"""Task -> the command that uses its recommended adapter."""


@Parameter(name="*", group=HOW)
@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a command runs.

    Attributes
    ----------
    out:
        Directory for the results, or a URL such as s3://bucket/run. [default: a new one in runs/, named after day and
        data; runs/last points to it]
    overwrite:
        Replace results, or an unfinished run, in --out.
    resume:
        Resume the unfinished run in this directory with the options it started with, or extend a finished one with
        --more-seeds or --more-ranks.
    more_seeds:
        Add this many seeds to the finished run in --resume; an adaptive plan may then take that many more. 0, with a
        larger --max-minutes or --max-runs, continues a plan that one of these has ended.
    more_ranks:
        Add ranks to the finished run in --resume: 3,6.
    checkpoint_epochs:
        Write a checkpoint every N epochs.
    checkpoint_seconds:
        Write a checkpoint every N seconds. [default: 20, or more, so that writing takes 2% of the time]
    config:
        Read settings from a YAML file, such as a run's config.yaml; flags override it.
    print_config:
        Print the complete configuration as YAML and stop.
    dry_run:
        Print what would be trained, in which packs, in how much memory and time (from a few probing steps), and stop;
        nothing is written.
    log_to:
        Loggers of the losses, metrics and rates of every run: csv, tensorboard, wandb, trackio, mlflow; files go to
        logs/ in --out.
    quiet:
        Show nothing while training.
    json:
        Print the answer as JSON on standard output; everything else goes to standard error.
    prepare:
        Write the run to --out with its first units of work, print their numbers, and stop; `rankwise work` trains them.
    processes:
        Processes of this machine that train packs at the same time, each with one thread: faster for a model that is
        too small to use several. [default: for digits on a CPU the threads of torch, 8 at most; else 1]
    ray:
        Train packs on a Ray cluster: local (this machine, all of its GPUs), auto, or the head's host:port.
    max_workers:
        Packs that train at the same time; large packs are split where workers would be idle.
    cpus_per_worker:
        CPUs, and threads, of a worker on Ray. [default: half of a machine's, or its share for each GPU]
    gpus_per_worker:
        GPUs of a worker on Ray. [default: 1 where there are some]
    """

    out: Annotated[Path | None, Parameter(group=MAIN)] = None
    overwrite: Annotated[bool, Parameter(negative="", show_default=False)] = False
    resume: Path | None = None
    more_seeds: int | None = None
    more_ranks: Annotated[tuple[int, ...] | None, listed(parse_numbers, spaces=False)] = None
    checkpoint_epochs: int | None = None
    checkpoint_seconds: float | None = None
    config: Path | None = None
    print_config: Annotated[
        bool, Parameter(name=["--print-config", "--print_config"], negative="", show_default=False)
    ] = False
    dry_run: Annotated[bool, Parameter(negative="", show_default=False)] = False
    log_to: Annotated[tuple[str, ...], listed(parts)] = ()
    quiet: Annotated[bool, Parameter(negative="", show_default=False)] = False
    json: Annotated[bool, Parameter(negative="", show_default=False)] = False
    prepare: Annotated[bool, Parameter(negative="", show_default=False)] = False
    processes: int | None = None
    ray: str | None = None
    max_workers: int | None = None
    cpus_per_worker: int | None = None
    gpus_per_worker: float | None = None

    @property
    def extends(self) -> bool:
        """Whether a finished run is extended."""
        return self.more_seeds is not None or self.more_ranks is not None


def run_command(
    command: str,
    settings: dict[str, Any],
    run_options: RunOptions,
    make: "ExperimentFactory",
    *,
    forecast: bool = False,
) -> int:
    """Run a command that trains.

    Args:
        command: Its name.
        settings: Its complete configuration, flag -> value, plain.
        run_options: How it runs.
        make: Makes the experiment.
        forecast: Whether to print a forecast of memory and time before training.

    Returns:
        The exit code.

    Raises:
        ConfigError: Flags that don't go together.
    """
    import yaml

    config = yaml.safe_dump({command: settings}, sort_keys=False)
    if (take := wanted()) is not None:
        return take(command, config, make)
    run_options = _checked(command, settings, run_options)
    if run_options.print_config:
        print(config, end="")
        return EXIT_OK
    processes = processes_of(run_options, command, settings)
    if run_options.dry_run:
        print_forecast(make, processes, quiet=run_options.quiet, as_json=run_options.json)
        return EXIT_OK
    check_workers(run_options, settings)
    if command != "train" and started_together():
        raise ConfigError(
            f"torchrun has started several processes, and rankwise {command} is one that trains many adapters; run it "
            "without torchrun, and give it more GPUs with --ray local."
        )
    advice = None if run_options.quiet or command == "train" else idle_gpus(run_options, settings)
    if advice is not None:
        print(advice, file=sys.stderr)
    from rankwise.experiment import run_experiment

    given = run_options.resume or run_options.out
    with _directory(given, name_of(command, settings.get("data"))) as directory:
        if forecast and not run_options.quiet:
            make = with_forecast(make, processes)
        workers = workers_of(run_options, directory, processes)
        with _session(directory, command, config, run_options, workers) as session:
            session.results, _, session.files = run_experiment(make, session.place, session.observers)
        return session.code


def _directory(given: Path | None, name: str) -> AbstractContextManager[Path]:
    """The run directory: a new one, the one that was given, or a local copy of one on an object store."""
    if given is None:
        return new_run(name)
    url = url_of(given)
    if url is None:
        return nullcontext(given)
    from rankwise.sweeps.storage.working_copy import run_copy

    return run_copy(url)


def train_in(
    directory: Path,
    command: str,
    config: str,
    run_options: RunOptions,
    make: "ExperimentFactory",
    workers: "Workers",
) -> int:
    """Train in a directory, and print the answer, or the units that the sweep waits for."""
    from rankwise.experiment import run_experiment

    with _session(directory, command, config, run_options, workers) as session:
        session.results, _, session.files = run_experiment(make, session.place, session.observers)
    return session.code


@dataclass
class _Session:
    """One training in a directory.

    Args:
        place: Where it runs.
        observers: Who hears of it.
        results: The outcome of it.
        files: Of the report.
        code: The exit code, once it has ended.
    """

    place: "RunLocation"
    observers: "Observers"
    results: "Results | None" = None
    files: Sequence[Path] = ()
    code: int = EXIT_OK


@contextmanager
def _session(
    directory: Path, command: str, config: str, run_options: RunOptions, workers: "Workers | None"
) -> Generator[_Session]:
    """Have a training watched; at its end show the answer, the units that it waits for, or what an interrupt left.

    The experiment runs in the block, not below this function: there are few frames from a command to a gradient.
    """
    from rankwise.loggers.table import loggers
    from rankwise.show.live import progress
    from rankwise.sweeps.run.units.apart import UnitsPending
    from rankwise.sweeps.run.units.unit import ranges
    from rankwise.train.events import Observers

    logging = loggers(run_options.log_to, directory / "logs", append=run_options.resume is not None)
    place = replace(_location(directory, command, config, run_options), workers=workers)
    session = _Session(place, Observers([progress("quiet" if run_options.quiet else "auto"), *logging]))
    try:
        with session.observers:
            yield session
    except UnitsPending as pending:
        print(ranges(pending.numbers))
    except KeyboardInterrupt:
        session.code = _interrupted(place)
    else:
        if session.results is not None:
            session.code = _show_results(session.results, session.files, place, run_options)


def _checked(command: str, settings: dict[str, Any], run_options: RunOptions) -> RunOptions:
    """Resolve the directory of --resume, and refuse flags that don't go together."""
    if run_options.resume is None:
        if run_options.extends:
            raise ConfigError("--more-seeds and --more-ranks add to a finished run; give its directory with --resume.")
        return run_options
    run_options = replace(run_options, resume=pointed_to(run_options.resume))
    for flag, value in (
        ("--out", run_options.out),
        ("--overwrite", run_options.overwrite or None),
        ("--config", run_options.config),
    ):
        if value is not None:
            raise ConfigError(
                f"{flag} does not go with --resume, which takes all settings from {run_options.resume}; leave it out."
            )
    _check_same(command, settings, run_options)
    if run_options.dry_run:
        raise ConfigError("--dry-run does not go with --resume, whose plan exists already; leave one of them out.")
    return run_options


def _location(directory: Path, command: str, config: str, run_options: RunOptions) -> "RunLocation":
    from rankwise.sweeps.run.location import RunLocation
    from rankwise.sweeps.storage.working_copy import shown
    from rankwise.train.checkpoints import CheckpointInterval

    log_to = f" --log-to {','.join(run_options.log_to)}" if run_options.log_to else ""
    again = f"rankwise {command} --resume {shlex.quote(shown(directory))}{log_to}"
    return RunLocation(
        directory=directory,
        config=config,
        command=shlex.join(["rankwise", *sys.argv[1:]]),
        resume_command=again,
        overwrite=run_options.overwrite,
        resume=run_options.resume is not None and not run_options.extends,
        extend=run_options.extends,
        extend_command=None if command == "train" else lambda more, then: f"{again} --more-seeds {more}",
        every=CheckpointInterval(run_options.checkpoint_epochs, run_options.checkpoint_seconds),
    )


def _interrupted(place: "RunLocation") -> int:
    """Print what remains after an interrupt."""
    from rankwise.sweeps.storage.directory import can_resume
    from rankwise.sweeps.storage.owned import holds_results
    from rankwise.sweeps.storage.working_copy import shown

    directory = place.directory
    if holds_results(directory) and not can_resume(directory):
        again = f"rankwise report {shlex.quote(shown(directory))}"
        said = f"Interrupted while the report was drawn; the results are complete. Draw it: {again}"
    elif holds_results(directory):
        said = f"Interrupted; the earlier results are unchanged. Resume with: {place.resume_command}"
    else:
        what = f"resume with: {place.resume_command}" if can_resume(directory) else "nothing was written."
        said = f"Interrupted; {what}"
    print(said, file=sys.stderr)
    return EXIT_INTERRUPTED


def _show_results(results: "Results", files: Sequence[Path], place: "RunLocation", run_options: RunOptions) -> int:
    from rankwise.sweeps.storage.owned import BEST, SHIP
    from rankwise.sweeps.storage.working_copy import shown

    directory = place.directory
    adapter = None if results.answer is None else results.answer.adapter
    best, ship = directory / BEST, directory / SHIP
    use = best if best.is_symlink() else directory / adapter if adapter else None
    links = [*([use] if use else []), *([ship] if ship.is_symlink() else [])]
    print_results(results, [*files, *links], as_json=run_options.json)
    if use is not None and results.task in NEXT and not run_options.json:
        print(f"Next: {NEXT[results.task].format(shlex.quote(shown(use)))}")
    if not results.complete:
        print(
            f"Interrupted: what had finished is in {shown(directory)}; resume with: {place.resume_command}",
            file=sys.stderr,
        )
        return EXIT_INTERRUPTED
    return EXIT_DIVERGED if any(run.status in ("diverged", "failed") for run in results.runs) else EXIT_OK


def print_results(results: "Results", files: Sequence[Path], *, as_json: bool) -> None:
    """Print the answer, the table, the reasons, notes and files."""
    from rich.console import Console

    from rankwise.report import terminal_notes, terminal_table
    from rankwise.report.cut.cut_table import cut_terminal
    from rankwise.report.words import after_headline, headline, trade_off
    from rankwise.results import plain, printable_results
    from rankwise.sweeps.storage.working_copy import shown

    console = Console(stderr=as_json, soft_wrap=False)
    results = printable_results(results)
    console.print(headline(results), style="bold", highlight=False, markup=False)
    console.print("", terminal_table(results, console.width), sep="\n")
    if (cut := cut_terminal(results, console.width)) is not None:
        console.print("", cut, sep="\n")
    console.print(
        "", " ".join([*after_headline(results), *trade_off(results)]), sep="\n", highlight=False, markup=False
    )
    if notes := terminal_notes(results, console.width):
        console.print("", *notes, sep="\n", style="dim", highlight=False, markup=False)
    for path in files:
        print(shown(path), file=sys.stderr if as_json else sys.stdout)
    if as_json:
        print(json.dumps(plain(results.answer)))


def _check_same(command: str, settings: dict[str, Any], run_options: RunOptions) -> None:
    """Refuse settings other than the resumed run's."""
    directory = run_options.resume or Path()
    begun = settings_of(directory, run_options.more_seeds, run_options.more_ranks)
    if command not in begun:
        kind = "a finished" if run_options.extends else "an unfinished"
        raise ConfigError(f"{directory} holds {kind} run of rankwise {next(iter(begun))}, not {command}.")
    for key in [*begun[command], *settings]:
        before, now = begun[command].get(key), settings.get(key)
        if before != now and not (run_options.extends and key in CHANGEABLE):
            raise ConfigError(
                f"--{key} is {now}, and {before} in {directory}; a run keeps the options it started with, so "
                "leave the flag out."
            )
