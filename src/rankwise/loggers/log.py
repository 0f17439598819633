"""From events to the numbers of each run: what all loggers share. A logger says where they go."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from contextlib import contextmanager

from rankwise.errors import ConfigError
from rankwise.train.events import Ended, EpochEnded, Event, Resumed, RunEnded, RunInfo, Started, Stepped
from rankwise.train.outcome import Outcome


class Log(ABC):
    """Hands the numbers of each run to the methods below, which a logger defines.

    After every step "train/loss" and "train/lr", the training loss and the learning rate; after every epoch
    "train/gradient_norm", that of the last step, "validation/loss", and "validation/" with the metric's name.

    Args:
        append: Whether what was logged before stays. A resumed run always keeps it, and logs the steps since its last
            checkpoint again, with the same numbers.
    """

    def __init__(self, *, append: bool = False) -> None:
        self.append = append
        self._metric = "metric"
        self._runs: dict[str, RunInfo] = {}
        self._begun: set[str] = set()

    def on_event(self, event: Event) -> None:
        """Log what an event tells."""
        match event:
            case Started(runs, metric):
                self._metric = metric
                self._runs |= {run.name: run for run in runs}
            case Resumed():
                self.append = True
            case Stepped(runs, step, losses, rates):
                for i, (own, lrs) in enumerate(zip(losses, rates, strict=True)):
                    for run, loss, lr in zip(runs, own, lrs, strict=True):
                        self._write(run, step - len(losses) + 1 + i, {"train/loss": loss, "train/lr": lr})
            case EpochEnded(points):
                for p in points:
                    values = {"train/gradient_norm": p.grad_norm, "validation/loss": p.validation_loss}
                    self._write(p.run, p.step, {**values, f"validation/{self._metric}": p.metric})
            case RunEnded(outcome):
                self._begin(outcome.name)
                self.end(self._runs[outcome.name], outcome)
                self._begun.discard(outcome.name)
            case Ended(verdict, words):
                self.close(verdict, words)
            case _:
                pass

    def _begin(self, run: str) -> None:
        if run not in self._begun:
            self._begun.add(run)
            self.begin(self._runs[run])

    def _write(self, run: str, step: int, values: Mapping[str, float]) -> None:
        self._begin(run)
        self.write(self._runs[run], step, values)

    @abstractmethod
    def begin(self, run: RunInfo) -> None:
        """The first numbers of a run come next."""

    @abstractmethod
    def write(self, run: RunInfo, step: int, values: Mapping[str, float]) -> None:
        """Log numbers of a run after a step, by name."""

    @abstractmethod
    def end(self, run: RunInfo, outcome: Outcome) -> None:
        """A run has ended; no numbers of it follow."""

    @abstractmethod
    def close(self, verdict: str | None, words: str) -> None:
        """The sweep is over; runs that were interrupted have not ended.

        Args:
            verdict: As in `results.json`; None where there is no answer.
            words: The answer in words.
        """


@contextmanager
def requires(logger: str) -> Generator[None]:
    """Import the package that a logger writes with inside this block.

    Args:
        logger: Its name, which is that of the extra too.

    Raises:
        ConfigError: The package is not installed.

    Examples:
        >>> with requires("tensorboard"):
        ...     import crystal_ball
        Traceback (most recent call last):
        rankwise.errors.ConfigError: Logging to tensorboard needs the package "crystal_ball", which is not installed;
        run pip install ".[tensorboard]" in a checkout of Rankwise.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(
            f'Logging to {logger} needs the package "{error.name}", which is not installed; run pip install '
            f'".[{logger}]" in a checkout of Rankwise.'
        ) from error
