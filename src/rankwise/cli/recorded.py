"""The experiment of a run directory, made from the command and the settings that the run began with."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rankwise.cli.app import app
from rankwise.cli.continuing import settings_of

if TYPE_CHECKING:
    from rankwise.experiment import Experiment, ExperimentFactory
    from rankwise.train.events import Observers

    Take = Callable[[str, str, ExperimentFactory], int]
    """(command, its configuration as YAML, a function that makes its experiment) -> exit code."""

_wanted: "ContextVar[Take | None]" = ContextVar("wanted", default=None)


def wanted() -> "Take | None":
    """Receives the experiment of the running command in place of training; None where it should train."""
    return _wanted.get()


def with_experiment(directory: Path, take: "Take") -> int:
    """Make the experiment of an unfinished run available, from the configuration that it started with.

    Args:
        directory: The run directory.
        take: Called with the command, its configuration as YAML, and a function that makes the experiment.

    Returns:
        The result of `take`.

    Raises:
        CheckpointError: There is no unfinished run, or its configuration is damaged.
    """
    from rankwise.cli.settings_file import as_config

    settings = settings_of(directory, None, None)
    command = next(iter(settings))
    before = app.config
    app.config = (as_config(settings, directory),)
    try:
        function, bound, _ = app.parse_args([command], exit_on_error=False, print_error=False)
    finally:
        app.config = before
    token = _wanted.set(take)
    try:
        return function(*bound.args, **bound.kwargs)
    finally:
        _wanted.reset(token)


def experiment_in(directory: Path, make: "ExperimentFactory", observers: "Observers") -> "Experiment":
    """The experiment of an unfinished run, with the base that it keeps.

    Raises:
        RankwiseError: Something in the settings, the data or the directory can't be used.
    """
    from rankwise.sweeps.storage.directory import read_begun

    _, base, _ = read_begun(directory)
    return make(observers, base or {})


@dataclass(frozen=True)
class Recorded:
    """Makes the experiment of a run directory, in any process.

    Args:
        directory: The run directory.
    """

    directory: Path

    def __call__(self) -> "Experiment":
        """Make the experiment; its messages are dropped, since the driver has shown them.

        Raises:
            RankwiseError: Something in the settings, the data or the directory can't be used.
        """
        from rankwise.train.events import Observers

        found: list[Experiment] = []

        def take(command: str, config: str, make: "ExperimentFactory") -> int:
            found.append(experiment_in(self.directory, make, Observers()))
            return 0

        with_experiment(self.directory, take)
        return found[0]
