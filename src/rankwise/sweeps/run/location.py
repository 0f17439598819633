"""The directory of a run, and starting or resuming the run there."""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from torch import Tensor

from rankwise.sweeps.run.extend import Earlier, read_base, read_earlier
from rankwise.sweeps.run.units.context import Workers
from rankwise.sweeps.storage.directory import begin_run, can_resume, held, read_begun
from rankwise.sweeps.storage.owned import UNFINISHED, holds_results
from rankwise.sweeps.storage.working_copy import shown
from rankwise.train.checkpoints import CheckpointInterval


@dataclass(frozen=True, kw_only=True)
class RunLocation:
    """The directory of a run's results, and of its unfinished state.

    Args:
        directory: The run directory.
        config: The complete configuration as YAML, to be stored next to the results.
        command: The command line, likewise.
        resume_command: A command that resumes the run, for messages.
        overwrite: Whether earlier results may be replaced.
        resume: Whether to resume the unfinished run in the directory.
        extend: Whether to continue from the finished run in the directory.
        extend_command: (seeds to add, seeds then) -> a command that adds them, for the report.
        every: How often a checkpoint is written.
        workers: Train the packs; None trains them in this process.
    """

    directory: Path
    config: str
    command: str
    resume_command: str
    overwrite: bool = False
    resume: bool = False
    extend: bool = False
    extend_command: Callable[[int, int], str] | None = None
    every: CheckpointInterval | None = None
    workers: Workers | None = None

    @property
    def unfinished(self) -> Path:
        """The folder of the unfinished run."""
        return self.directory / UNFINISHED

    @contextmanager
    def held(self) -> Generator[None]:
        """Lock the directory for this run, from before anything costly to the end, when workers are released.

        Raises:
            ConfigError: The workers can't be reached, or can't work in the directory.
            OutputError: Results can't be written there, or another run holds it.
        """
        with held(self.directory, overwrite=self.overwrite, resume=self.resume or self.extend):
            try:
                if self.workers is not None:
                    self.workers.begin(self.directory)
                yield
            finally:
                if self.workers is not None:
                    self.workers.close()


def location_of_sweep(
    out: Path, config: str, *, overwrite: bool, resume: bool, every: CheckpointInterval | None
) -> RunLocation:
    """The location of a sweep from Python, in which an unfinished run is resumed, or a finished one extended.

    Args:
        out: The run directory.
        config: What it is to train, as YAML.
        overwrite: Whether earlier results may be replaced.
        resume: Whether to go on from what is there.
        every: How often a checkpoint is written.
    """
    again, where = resume and can_resume(out), shown(out)
    return RunLocation(
        directory=out,
        config=config,
        command="rankwise.sweep(...)",
        resume_command=f"rankwise.sweep(..., out={where!r}, resume=True)",
        overwrite=overwrite,
        resume=again,
        extend=resume and not again and holds_results(out),
        extend_command=lambda more, then: f"rankwise.sweep(..., out={where!r}, resume=True, seeds={then})",
        every=every,
    )


@dataclass(frozen=True)
class RunStart:
    """The facts of a run's start, stored for resuming.

    Args:
        about: The command and the time.
        base: The base's weights, where the task makes the base itself and the run is resumed or extended.
        earlier: The finished results that the run extends.
    """

    about: dict[str, str]
    base: dict[str, Tensor] | None = None
    earlier: Earlier | None = None

    @property
    def seconds_before(self) -> float:
        """Time that the earlier run took."""
        return 0.0 if self.earlier is None else self.earlier.results.seconds or 0.0


def beginning_of(place: RunLocation) -> RunStart | None:
    """The start of the run to continue in a directory; None where it starts from the beginning.

    Raises:
        CheckpointError: A file of it is missing or damaged.
    """
    return resume_run(place) if place.resume else extend_run(place) if place.extend else None


def starting_now(command: str) -> RunStart:
    """A run that begins now."""
    return RunStart({"command": command, "started": datetime.now(UTC).isoformat(timespec="seconds")})


def resume_run(place: RunLocation) -> RunStart:
    """The beginning of the unfinished run in a place.

    Raises:
        CheckpointError: A file of it is missing or damaged.
    """
    about, base, files = read_begun(place.directory)
    return RunStart(about, base, read_earlier(place.directory, files) if files else None)


def extend_run(place: RunLocation) -> RunStart:
    """The beginning of a run that extends the finished one in a place; nothing is written yet.

    Raises:
        CheckpointError: There is no finished run, or a file of it is damaged.
    """
    return RunStart(starting_now(place.command).about, read_base(place.directory), read_earlier(place.directory))


def start_run(place: RunLocation, base: Mapping[str, Tensor] | None = None, earlier: Earlier | None = None) -> RunStart:
    """Start a run in its directory; from here on it can be resumed.

    Args:
        place: Where.
        base: The base's weights, where the task has made the base itself.
        earlier: The finished results that the run extends.

    Raises:
        OutputError: The directory can't be written.
    """
    beginning = starting_now(place.command)
    files = None if earlier is None else earlier.files
    begin_run(place.directory, place.config, beginning.about, base, files)
    return RunStart(beginning.about, earlier=earlier)
