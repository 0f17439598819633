"""What all commands that train have in common: flags, resuming, the live table, exit codes."""

import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from rankwise.cli.app import EXIT_DIVERGED, EXIT_INTERRUPTED, EXIT_OK, HOW, MAIN
from rankwise.cli.continuing import settings_of
from rankwise.cli.places import name_of, new_run, pointed_to
from rankwise.cli.recorded import wanted
from rankwise.cli.workers import check_workers, idle_gpus, workers_of
from rankwise.errors import ConfigError
from rankwise.tasks.flags import listed
from rankwise.tasks.options import parse_numbers, parts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from rankwise.experiment import Experiment, ExperimentFactory
    from rankwise.results import Results
    from rankwise.sweeps.run.forecast import Forecast
    from rankwise.sweeps.run.location import RunLocation
    from rankwise.sweeps.run.units.context import Workers
    from rankwise.train.events import Observers


NEXT = {
    "classify": 'rankwise predict {} --text "..."',
    "sft": 'rankwise generate {} --prompt "..."',
    "images": "rankwise predict {} --file IMAGE",
}
"""Task -> the command that uses its recommended adapter."""


@Parameter(name="*", group=HOW)
@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a command runs.

    Attributes
    ----------
    out:
        Directory for the results. [default: a new one in runs/, named after day and data; runs/last points to it]
    overwrite:
        Replace results, or an unfinished run, in --out.
    resume:
        Resume the unfinished run in this directory with the options it started with, or extend a finished one with
        --more-seeds or --more-ranks.
    more_seeds:
        Add so many seeds to the finished run in --resume; of an adaptive plan, to those it may take at the most.
    more_ranks:
        Add ranks to the finished run in --resume: 3,6.
    checkpoint_epochs:
        Write a checkpoint after every so many epochs.
    checkpoint_seconds:
        Write a checkpoint after every so many seconds. [default: 20, or more, so that writing takes 2% of the time]
    config:
        Read settings from a YAML file, such as a run's config.yaml; flags go before it.
    print_config:
        Print the complete configuration as YAML and stop.
    dry_run:
        Print what would be trained, in which packs, in how much memory and time (from a few probing steps), and stop;
        nothing is written.
    log_to:
        Loggers that take losses, metrics and rates of every run: csv, tensorboard, wandb, trackio, mlflow; files go to
        logs/ in --out.
    quiet:
        Show nothing while training.
    json:
        Print the answer as JSON on standard output; everything else goes to standard error.
    prepare:
        Write the run to --out with its first units of work, print their numbers, and stop; `rankwise work` trains them.
    ray:
        Train packs on a Ray cluster: local (this machine, all of its GPUs), auto, or the head's host:port.
    max_workers:
        Packs that train at the same time; large packs are cut where workers would stand idle.
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
    ray: str | None = None
    max_workers: int | None = None
    cpus_per_worker: int | None = None
    gpus_per_worker: float | None = None

    @property
    def extends(self) -> bool:
        """Whether a finished run is extended."""
        return self.more_seeds is not None or self.more_ranks is not None


def train(
    command: str, settings: dict[str, Any], how: RunOptions, make: "ExperimentFactory", *, forecast: bool = False
) -> int:
    """Run a command that trains.

    Args:
        command: Its name.
        settings: Its complete configuration, flag -> value, plain.
        how: How it runs.
        make: Makes the experiment.
        forecast: Whether to say, before training, what memory and time it will take.

    Returns:
        The exit code.

    Raises:
        ConfigError: Flags that don't go together.
    """
    import yaml

    config = yaml.safe_dump({command: settings}, sort_keys=False)
    if (take := wanted()) is not None:
        return take(command, config, make)
    how = _checked(command, settings, how)
    if how.print_config:
        print(config, end="")
        return EXIT_OK
    if how.dry_run:
        return _print_forecast(how, make)
    check_workers(how, settings)
    advice = None if how.quiet or command == "train" else idle_gpus(how, settings)
    if advice is not None:
        print(advice, file=sys.stderr)
    given = how.resume or how.out
    with new_run(name_of(command, settings.get("data"))) if given is None else nullcontext(given) as directory:
        if forecast and not how.quiet:
            make = _with_forecast(make)
        return train_in(directory, command, config, how, make)


def train_in(
    directory: Path,
    command: str,
    config: str,
    how: RunOptions,
    make: "ExperimentFactory",
    workers: "Workers | None" = None,
) -> int:
    """Train in a directory, and show the answer, or the units that the sweep waits for."""
    from rankwise.experiment import run_experiment
    from rankwise.loggers.table import loggers
    from rankwise.show.live import progress
    from rankwise.sweeps.run.units.apart import UnitsPending
    from rankwise.sweeps.run.units.unit import ranges
    from rankwise.train.events import Observers

    logging = loggers(how.log_to, directory / "logs", append=how.resume is not None)
    place = replace(_location(directory, command, config, how), workers=workers or workers_of(how, directory))
    try:
        with Observers([progress("quiet" if how.quiet else "auto"), *logging]) as observers:
            results, _, files = run_experiment(make, place, observers)
    except UnitsPending as pending:
        print(ranges(pending.numbers))
        return EXIT_OK
    except KeyboardInterrupt:
        return _interrupted(place)
    return _show_results(results, files, place, how)


def _checked(command: str, settings: dict[str, Any], how: RunOptions) -> RunOptions:
    """How a command runs, the run that is resumed being a directory; refuse flags that don't go together."""
    if how.resume is None:
        if how.extends:
            raise ConfigError("--more-seeds and --more-ranks add to a finished run; give its directory with --resume.")
        return how
    how = replace(how, resume=pointed_to(how.resume))
    for flag, value in (("--out", how.out), ("--overwrite", how.overwrite or None), ("--config", how.config)):
        if value is not None:
            raise ConfigError(f"{flag} does not go with --resume, which takes all from {how.resume}; leave it out.")
    _check_same(command, settings, how)
    if how.dry_run:
        raise ConfigError("--dry-run does not go with --resume: the run's plan is made; leave one of them out.")
    return how


def _location(directory: Path, command: str, config: str, how: RunOptions) -> "RunLocation":
    from rankwise.sweeps.run.location import RunLocation
    from rankwise.train.checkpoints import Every

    log_to = f" --log-to {','.join(how.log_to)}" if how.log_to else ""
    again = f"rankwise {command} --resume {shlex.quote(str(directory))}{log_to}"
    return RunLocation(
        directory=directory,
        config=config,
        command=shlex.join(["rankwise", *sys.argv[1:]]),
        how_to_resume=again,
        overwrite=how.overwrite,
        resume=how.resume is not None and not how.extends,
        extend=how.extends,
        how_to_extend=None if command == "train" else lambda more, then: f"{again} --more-seeds {more}",
        every=Every(how.checkpoint_epochs, how.checkpoint_seconds),
    )


def _interrupted(place: "RunLocation") -> int:
    """Say what an interrupt has left."""
    from rankwise.sweeps.storage.directory import can_resume
    from rankwise.sweeps.storage.owned import holds_results

    directory = place.directory
    if holds_results(directory) and not can_resume(directory):
        again = f"rankwise report {shlex.quote(str(directory))}"
        said = f"Interrupted while the report was drawn; the results are in place. Draw it: {again}"
    elif holds_results(directory):
        said = f"Interrupted; the earlier results are unchanged. Resume with: {place.how_to_resume}"
    else:
        what = f"go on with: {place.how_to_resume}" if can_resume(directory) else "nothing was written."
        said = f"Interrupted before any run had finished; {what}"
    print(said, file=sys.stderr)
    return EXIT_INTERRUPTED


def _show_results(results: "Results", files: Sequence[Path], place: "RunLocation", how: RunOptions) -> int:
    from rankwise.sweeps.storage.owned import BEST

    directory = place.directory
    adapter = None if results.answer is None else results.answer.adapter
    best = directory / BEST
    show(
        results, [*files, *([best if best.is_symlink() else directory / adapter] if adapter else [])], as_json=how.json
    )
    if best.is_symlink() and results.task in NEXT and not how.json:
        print(f"Next: {NEXT[results.task].format(shlex.quote(str(best)))}")
    if not results.complete:
        print(f"Interrupted: what had finished is in {directory}; go on with: {place.how_to_resume}", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_DIVERGED if any(run.status == "diverged" for run in results.runs) else EXIT_OK


def _with_forecast(make: "ExperimentFactory") -> "ExperimentFactory":
    """Have what makes an experiment say what it will take, too."""

    def make_and_tell(observers: "Observers", base: "Mapping[str, Tensor] | None") -> "Experiment":
        from rankwise.sweeps.run.forecast import forecast_sweep

        experiment = make(observers, base)
        if base is None:  # a run that is gone on with has said so
            found = forecast_sweep(experiment.stages(observers))
            observers.message(f"It will take {_need(found)}. {' '.join(found.open)}")
        return experiment

    return make_and_tell


def _need(found: "Forecast") -> str:
    """Memory, disk and time in words."""
    from rankwise.report.numbers import duration, mebibytes

    peak, base = mebibytes(found.peak_bytes), mebibytes(found.base_bytes)
    program = f" and the program's {mebibytes(found.program_bytes)}" if found.program_bytes else ""
    disk = f"{mebibytes(found.disk_bytes)} MiB of disk, of which {mebibytes(found.adapter_bytes)} stay"
    memory = f"{peak} MiB of memory, the base's {base}{program} included"
    return f"at the most {memory}, {disk}, and about {duration(found.seconds)}"


def _print_forecast(how: RunOptions, make: "ExperimentFactory") -> int:
    """Print what would be done."""
    from rankwise.show.live import progress
    from rankwise.sweeps.run.forecast import forecast_sweep
    from rankwise.train.events import Observers

    with Observers([progress("quiet" if how.quiet else "auto")]) as observers:
        experiment = make(observers, None)
        experiment.check()
        found = forecast_sweep(experiment.stages(observers))
    _show_forecast(found, as_json=how.json)
    return EXIT_OK


def _show_forecast(found: "Forecast", *, as_json: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from rankwise.report.numbers import duration, mebibytes

    if as_json:
        print(json.dumps(found.plain()))
        return
    console = Console(soft_wrap=False)
    table = Table(box=None, header_style="")
    for column in ("pack", "for", "runs", "configurations", "epochs", "MiB", "time"):
        table.add_column(column, justify="left" if column in ("for", "configurations") else "right")
    for i, pack in enumerate(found.packs):
        names = [name if n == 1 else f"{n} x {name}" for name, n in pack.configurations.items()]
        numbers = (str(pack.epochs), mebibytes(pack.bytes), duration(pack.seconds))
        table.add_row(str(i), pack.stage, str(len(pack.runs)), Text(", ".join(names)), *numbers)
    console.print(table)
    limit = "" if found.limit is None else f" A pack may take {mebibytes(found.limit)} MiB."
    packs = "1 pack" if len(found.packs) == 1 else f"{len(found.packs)} packs, one after another"
    console.print(
        f"{found.runs} runs in {packs}: {_need(found)}.{limit}",
        *found.open,
        "Nothing was written.",
        highlight=False,
        markup=False,
    )


def show(results: "Results", files: Sequence[Path], *, as_json: bool) -> None:
    """Print table, answer and files."""
    from rich.console import Console

    from rankwise.report import answer_words, terminal_table
    from rankwise.results import plain, printable_results

    console = Console(stderr=as_json, soft_wrap=False)
    results = printable_results(results)
    console.print(terminal_table(results, console.width))
    console.print(answer_words(results), highlight=False, markup=False)
    for path in files:
        print(path, file=sys.stderr if as_json else sys.stdout)
    if as_json:
        print(json.dumps(plain(results.answer)))


def _check_same(command: str, settings: dict[str, Any], how: RunOptions) -> None:
    """Refuse settings that the run that is continued did not begin with."""
    directory = how.resume or Path()
    begun = settings_of(directory, how.more_seeds, how.more_ranks)
    if command not in begun:
        kind = "a finished" if how.extends else "an unfinished"
        raise ConfigError(f"{directory} holds {kind} run of rankwise {next(iter(begun))}, not {command}.")
    for key in [*begun[command], *settings]:
        before, now = begun[command].get(key), settings.get(key)
        if before != now:
            raise ConfigError(
                f"--{key} is {now}, and {before} in {directory}; a run goes on with the options it began with, so "
                "leave the flag out."
            )
