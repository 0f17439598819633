"""The state of a display's rows, one for each configuration and learning rate, and the protocol of displays."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

WAITING, RUNNING = "waiting", "running"
"""Statuses of a row that is not done; every other one is an end ("finished", "diverged", ...)."""


@runtime_checkable
class Stream(Protocol):
    """The target of lines: the common methods of a file, a terminal and `io.StringIO`."""

    def write(self, text: str, /) -> int: ...
    def flush(self) -> None: ...
    def isatty(self) -> bool: ...


@dataclass(frozen=True)
class ProgressRow:
    """One configuration in the display.

    Args:
        key: Tells it from the others.
        name: What is shown, for example "r4".
        r: Rank, where there is one.
        lr: Learning rate, where there is one.
        seeds: How many runs the row stands for.
    """

    key: str
    name: str
    r: int | None
    lr: float | None
    seeds: int


@dataclass(frozen=True)
class RowState:
    """The state of a row.

    Args:
        row: Which.
        step: Optimiser steps taken.
        total: Steps at most; None where it is not known.
        loss: Latest validation loss; None leaves the place empty.
        metric: Latest validation metric; None leaves the place empty.
        status: "waiting", "running", or how the row ended.
        training_loss: Mean of the latest steps, within an epoch too; None leaves the place empty.
        share: How much of the steps of all its seeds is done, from 0 to 1; a seed that has ended is done.
    """

    row: ProgressRow
    step: int = 0
    total: int | None = None
    loss: float | None = None
    metric: float | None = None
    status: str = WAITING
    training_loss: float | None = None
    share: float = 0.0

    @property
    def done(self) -> bool:
        """Whether the row has come to an end, of whatever kind."""
        return self.status not in (WAITING, RUNNING)


@final
class ProgressState:
    """The rows' states and the clock: what every display reads.

    Args:
        title: What is being done.
        rows: The configurations, in the order to show them.
        metric: What the metric is called.
        clock: Seconds; only differences count.
    """

    def __init__(self, title: str, rows: Sequence[ProgressRow], metric: str, clock: Callable[[], float]) -> None:
        self.title, self.metric = title, metric
        self.states = {row.key: RowState(row) for row in rows}
        self._clock, self._start = clock, clock()
        self._before = 0.0

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._start

    @property
    def share(self) -> float:
        """How much of the steps of all runs is done; a run that has ended counts as done, wherever it ended."""
        states = list(self.states.values())
        runs = sum(state.row.seeds for state in states)
        return sum(state.share * state.row.seeds for state in states) / runs if runs else 0.0

    def left(self) -> str:
        """Time left in words, after a comma; nothing while there is too little to go by."""
        elapsed, rest = self.elapsed, 1 - self._before
        share = (self.share - self._before) / rest if rest else 1.0
        # Before a second or a hundredth of the work the guess is worse than none.
        if elapsed < 1 or not 0.01 <= share < 1:
            return ""
        return f", about {clock_time(elapsed * (1 - share) / share)} left"

    def mark_resumed(self) -> None:
        """The part done so far preceded the clock."""
        self._before = self.share


class Display(ABC):
    """A display of the rows."""

    @abstractmethod
    def started(self, board: ProgressState) -> None:
        """There are rows to be shown, instead of any earlier ones."""

    @abstractmethod
    def changed(self, board: ProgressState, before: RowState, now: RowState) -> None:
        """A row has moved; called often, so it must be cheap."""

    @abstractmethod
    def say(self, text: str) -> None:
        """Show a line that stays."""

    @abstractmethod
    def ended(self) -> None:
        """There is nothing more to show; the terminal is left as it was found."""


def counts(states: Iterable[RowState]) -> str:
    """The number of rows by status.

    Examples:
        >>> row = ProgressRow("a", "a", None, None, 1)
        >>> counts([RowState(row), RowState(row, status="running"), RowState(row)])
        '1 running, 2 waiting'
    """
    found = Counter(state.status for state in states)
    order = [RUNNING, *sorted(found.keys() - {RUNNING, WAITING}), WAITING]
    return ", ".join(f"{found[status]} {status}" for status in order if found[status])


def clock_time(seconds: float) -> str:
    """Hours, minutes and seconds.

    Examples:
        >>> clock_time(75.4), clock_time(3600)
        ('1:15', '1:00:00')
    """
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def four_digits(value: float | None) -> str:
    """Four digits of a loss or a metric, or nothing.

    Examples:
        >>> four_digits(0.97123), four_digits(12345.6), four_digits(None)
        ('0.9712', '1.235e+04', '')
    """
    if value is None:
        return ""
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.4g}"
