"""How far training is: a live table in a terminal, a plain log elsewhere, or nothing.

The caller tells one `Progress` where each configuration stands, in numbers it has already put together over seeds;
a `Display` decides what becomes of them.
"""

import os
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Protocol, final, runtime_checkable

from rankwise.errors import ConfigError, suggest
from rankwise.shown import printable

WAITING, RUNNING = "waiting", "running"
"""Statuses of a row that is not done; every other one is an end ("finished", "diverged", ...)."""

LOG_SECONDS, LOG_SHARE = 5.0, 0.05
"""The plain log waits this long between two lines, or this share of the time so far: a long run gives no long log."""


@runtime_checkable
class Stream(Protocol):
    """Where lines go: what a file, a terminal and `io.StringIO` have in common."""

    def write(self, text: str, /) -> int: ...
    def flush(self) -> None: ...
    def isatty(self) -> bool: ...


@dataclass(frozen=True)
class ProgressRow:
    """One configuration in the display.

    Args:
        key: What `Progress.update` calls it by.
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
    """Where a row stands, as last told; the numbers are those of `Progress.update`."""

    row: ProgressRow
    step: int = 0
    total: int | None = None
    loss: float | None = None
    metric: float | None = None
    status: str = WAITING

    @property
    def done(self) -> bool:
        """Whether the row has come to an end, of whatever kind."""
        return self.status not in (WAITING, RUNNING)


@final
class ProgressState:
    """The rows' states and the clock: what every display reads.

    Args:
        title: What is going on.
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
        """How much of all steps is behind us; a row that is done counts as whole, wherever it ended."""
        states = list(self.states.values())
        shares = [1.0 if s.done else min(1.0, s.step / s.total) if s.total else 0.0 for s in states]
        return sum(shares) / len(shares) if shares else 0.0

    def left(self) -> str:
        """Time left in words, after a comma; nothing while there is too little to go by."""
        elapsed, rest = self.elapsed, 1 - self._before
        share = (self.share - self._before) / rest if rest else 1.0
        # Before a second or a hundredth of the work the guess is worse than none.
        if elapsed < 1 or not 0.01 <= share < 1:
            return ""
        return f", about {duration(elapsed * (1 - share) / share)} left"

    def mark_resumed(self) -> None:
        """What is behind us was done before the clock started."""
        self._before = self.share


class Display(ABC):
    """What a person sees of a board."""

    @abstractmethod
    def started(self, board: ProgressState) -> None:
        """A board is there to be shown."""

    @abstractmethod
    def changed(self, board: ProgressState, before: RowState, now: RowState) -> None:
        """A row of the board has moved; called often, so it must be cheap."""

    @abstractmethod
    def say(self, text: str) -> None:
        """Show a line that stays."""

    @abstractmethod
    def ended(self) -> None:
        """There is nothing more to show; the terminal is left as it was found."""


@final
class Progress:
    """Tells a display how training goes; leaving the `with` block ends it, after an interrupt too.

    Args:
        display: Where it is shown.
        clock: Seconds; only differences count.
    """

    def __init__(self, display: Display, clock: Callable[[], float] = time.monotonic) -> None:
        self._display, self._clock = display, clock
        self._board: ProgressState | None = None
        self._held: list[tuple[RowState, RowState]] | None = None

    def start(self, title: str, rows: Sequence[ProgressRow], metric: str = "metric") -> None:
        """Begin to show these rows, instead of any earlier ones.

        Args:
            title: What is going on, for example "Training 24 configurations".
            rows: One for each configuration, in the order to show them.
            metric: What the metric is called, for example "accuracy".
        """
        self.close()
        self._board = ProgressState(title, rows, metric, self._clock)
        self._display.started(self._board)

    def update(
        self,
        key: str,
        step: int,
        total: int | None = None,
        loss: float | None = None,
        metric: float | None = None,
        status: str = RUNNING,
    ) -> None:
        """Tell where a row stands; without a start, or after the end, nothing happens.

        Args:
            key: The row's.
            step: Optimiser steps taken.
            total: Steps at most; None where it is not known.
            loss: Latest loss; None leaves the place empty.
            metric: Latest metric; None leaves the place empty.
            status: "waiting", "running", or how the row ended.
        """
        board = self._board
        if board is None:
            return
        before = board.states[key]
        # One assignment, so that a thread that draws never sees half an update.
        now = board.states[key] = replace(before, step=step, total=total, loss=loss, metric=metric, status=status)
        if self._held is None:
            self._display.changed(board, before, now)
        else:
            self._held.append((before, now))

    @contextmanager
    def batched(self) -> Generator[None]:
        """Show what is told in this block when it ends: rows that move at once are counted at once."""
        self._held = []
        try:
            yield
        finally:
            held, self._held = self._held, None
            if self._board is not None:
                for before, now in held:
                    self._display.changed(self._board, before, now)

    def message(self, text: str) -> None:
        """Say something that stays."""
        self._display.say(printable(text))

    def mark_resumed(self) -> None:
        """What has been told so far was done earlier, before an interruption: it says nothing of the pace."""
        if self._board is not None:
            self._board.mark_resumed()

    def close(self) -> None:
        """End the display; may be called twice."""
        if self._board is not None:
            self._board = None
            self._display.ended()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@final
class QuietDisplay(Display):
    """Shows nothing."""

    def started(self, board: ProgressState) -> None: ...
    def changed(self, board: ProgressState, before: RowState, now: RowState) -> None: ...
    def say(self, text: str) -> None: ...
    def ended(self) -> None: ...


@final
class PlainDisplay(Display):
    """Lines without control characters: one for each row that ends, and one for the whole every few seconds.

    Args:
        stream: Where the lines go.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._said = 0.0

    def started(self, board: ProgressState) -> None:
        self._said = 0.0
        self.say(board.title)

    def changed(self, board: ProgressState, before: RowState, now: RowState) -> None:
        elapsed = board.elapsed
        if now.done and not before.done:
            lr = "" if now.row.lr is None else f" (lr {now.row.lr:g})"
            found = [
                f"{name} {number(value)}"
                for name, value in (("loss", now.loss), (board.metric, now.metric))
                if value is not None
            ]
            ended = f"{now.row.name}{lr} {now.status} at step {now.step:,}"
            self.say(f"[{duration(elapsed)}] {', '.join([ended, *found])}")
        elif elapsed - self._said >= max(LOG_SECONDS, LOG_SHARE * elapsed):
            self._said = elapsed
            self.say(f"[{duration(elapsed)}] {board.share:.0%} done{board.left()}; {counts(board.states.values())}")

    def say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def ended(self) -> None: ...


def _live(stream: Stream) -> Display:
    # rich is loaded with this module, and only a live table needs it.
    from rankwise.show.live_table import LiveTable

    return LiveTable(stream)


DISPLAYS: dict[str, Callable[[Stream], Display]] = {
    "live": _live,
    "plain": PlainDisplay,
    "quiet": lambda _: QuietDisplay(),
}
"""Display by name; "auto" is the live one in a terminal and the plain one elsewhere."""


def progress(kind: str = "auto", stream: Stream | None = None) -> Progress:
    """Choose how training is shown.

    Args:
        kind: "auto", "live", "plain" or "quiet".
        stream: Where it goes; standard error when not given, so that standard output holds results only.

    Returns:
        A display to start, update and close, best in a `with` block.

    Raises:
        ConfigError: The kind is not known.

    Examples:
        >>> with progress("plain", stream=sys.stdout) as shown:
        ...     shown.start("Training 1 configuration", [ProgressRow("r4", "r4", 4, 1e-3, 2)], metric="accuracy")
        ...     shown.update("r4", 100, total=200, loss=0.5, metric=0.9, status="finished")
        Training 1 configuration
        [0:00] r4 (lr 0.001) finished at step 100, loss 0.5000, accuracy 0.9000
    """
    out = sys.stderr if stream is None else stream
    if kind == "auto":
        kind = "live" if out.isatty() and os.environ.get("TERM") != "dumb" else "plain"
    if kind not in DISPLAYS:
        known = ", ".join(f'"{name}"' for name in ("auto", *DISPLAYS))
        raise ConfigError(f'progress "{kind}" is not known; there are {known}.{suggest(kind, DISPLAYS)}')
    return Progress(DISPLAYS[kind](out))


def counts(states: Iterable[RowState]) -> str:
    """How many rows have which status.

    Examples:
        >>> row = ProgressRow("a", "a", None, None, 1)
        >>> counts([RowState(row), RowState(row, status="running"), RowState(row)])
        '1 running, 2 waiting'
    """
    found = Counter(state.status for state in states)
    order = [RUNNING, *sorted(found.keys() - {RUNNING, WAITING}), WAITING]
    return ", ".join(f"{found[status]} {status}" for status in order if found[status])


def duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    Examples:
        >>> duration(75.4), duration(3600)
        ('1:15', '1:00:00')
    """
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def number(value: float | None) -> str:
    """Four digits of a loss or a metric, or nothing.

    Examples:
        >>> number(0.97123), number(12345.6), number(None)
        ('0.9712', '1.235e+04', '')
    """
    if value is None:
        return ""
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.4g}"
