"""Where a run keeps its results, and how it starts or is resumed there."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from torch import Tensor

from rankwise.sweeps.directory import begin_run, held, read_begun
from rankwise.sweeps.owned import UNFINISHED
from rankwise.train.checkpoints import Every


@dataclass(frozen=True, kw_only=True)
class RunLocation:
    """Where the results of a run go, and how it is kept while it is under way.

    Args:
        directory: The run directory.
        config: The complete configuration as YAML, to be kept beside the results.
        command: The command line, likewise.
        how_to_resume: A command that goes on with the run, for messages.
        overwrite: Whether earlier results may be replaced.
        resume: Whether to go on with the unfinished run in the directory.
        every: How often a checkpoint is written.
    """

    directory: Path
    config: str
    command: str
    how_to_resume: str
    overwrite: bool = False
    resume: bool = False
    every: Every | None = None

    @property
    def kept(self) -> Path:
        """Where the run is kept while it is under way."""
        return self.directory / UNFINISHED

    def held(self) -> AbstractContextManager[None]:
        """Hold the directory for this run, from before anything costly to the end.

        Raises:
            OutputError: Results can't be written there, or another run holds it.
        """
        return held(self.directory, overwrite=self.overwrite, resume=self.resume)


@dataclass(frozen=True)
class RunStart:
    """What is known of a run's beginning, kept for a later resumption.

    Args:
        about: The command and the time.
        base: The base's weights, where the task makes the base itself and the run is gone on with.
    """

    about: dict[str, str]
    base: dict[str, Tensor] | None = None


def starting_now(command: str) -> RunStart:
    """A run that begins now."""
    return RunStart({"command": command, "started": datetime.now(UTC).isoformat(timespec="seconds")})


def resume_run(place: RunLocation) -> RunStart:
    """The beginning of the unfinished run in a place.

    Raises:
        CheckpointError: A file of it is missing or damaged.
    """
    return RunStart(*read_begun(place.directory))


def start_run(place: RunLocation, base: Mapping[str, Tensor] | None = None) -> RunStart:
    """Begin a run in its place; it can be gone on with from here.

    Args:
        place: Where.
        base: The base's weights, where the task has made the base itself.

    Raises:
        OutputError: The directory can't be written.
    """
    beginning = starting_now(place.command)
    begin_run(place.directory, place.config, beginning.about, base)
    return beginning
