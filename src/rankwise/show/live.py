"""The progress of training: a live table in a terminal or a notebook, a plain log elsewhere, or nothing.

`Progress` is the observer: it puts the runs of a configuration and learning rate together, whatever the number of
seeds, and a `Display` decides what a person sees of them.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from statistics import fmean as mean
from typing import final

from rankwise.errors import ConfigError, suggest
from rankwise.show.plain import PlainDisplay, QuietDisplay
from rankwise.show.state import RUNNING, Display, ProgressRow, ProgressState, Stream
from rankwise.shown import printable
from rankwise.train.events import Ended, EpochEnded, Event, Message, Resumed, RunEnded, RunInfo, Started, Stepped
from rankwise.train.outcome import EpochPoint, Outcome


@final
class Progress:
    """Shows how training goes, one row a configuration and learning rate.

    Args:
        display: Where it is shown.
        clock: Seconds; only differences count.
    """

    def __init__(self, display: Display, clock: Callable[[], float] = time.monotonic) -> None:
        self._display, self._clock = display, clock
        self._board: ProgressState | None = None
        self._forget()

    def on_event(self, event: Event) -> None:
        """Show what an event changes."""
        match event:
            case Started(runs, metric):
                self._start(runs, metric)
            case Resumed(points, ended):
                self._take(points, ended)
                if self._board is not None:
                    self._board.mark_resumed()
            case Stepped(runs, step, losses):
                self._steps |= dict.fromkeys(runs, step)
                if losses:
                    self._training |= dict(zip(runs, map(mean, zip(*losses, strict=True)), strict=True))
                self._show(runs)
            case EpochEnded(points):
                self._take(points, ())
            case RunEnded(outcome):
                self._take((), (outcome,))
            case Message(text):
                self._display.say(printable(text))
            case Ended():
                self._close()

    def _forget(self) -> None:
        self._runs: dict[str, RunInfo] = {}
        self._steps: dict[str, int] = {}
        self._training: dict[str, float] = {}
        self._last: dict[str, EpochPoint] = {}
        self._statuses: dict[str, str] = {}
        self._members: dict[str, list[RunInfo]] = {}

    def _start(self, runs: Sequence[RunInfo], metric: str) -> None:
        self._close()
        self._forget()
        self._runs |= {run.name: run for run in runs}
        for run in runs:
            self._members.setdefault(_key(run), []).append(run)
        rows = [
            ProgressRow(key, own[0].configuration, own[0].r, own[0].lr, len(own)) for key, own in self._members.items()
        ]
        self._board = ProgressState(f"Training {_counted(len(runs), len(rows))}", rows, metric, self._clock)
        self._display.started(self._board)

    def _take(self, points: Sequence[EpochPoint], ended: Sequence[Outcome]) -> None:
        for point in points:
            self._last[point.run], self._steps[point.run] = point, point.step
        self._statuses |= {outcome.name: outcome.status for outcome in ended}
        self._show([*(point.run for point in points), *(outcome.name for outcome in ended)])

    def _show(self, runs: Iterable[str]) -> None:
        """Bring the rows of these runs up to date: all of them first, as a display counts all rows."""
        board = self._board
        if board is None:
            return
        before = {key: board.states[key] for key in dict.fromkeys(_key(self._runs[run]) for run in runs)}
        for key, state in before.items():
            names = [run.name for run in self._members[key]]
            training = [self._training[name] for name in names if name in self._training]
            ended = [name in self._statuses for name in names]
            shares = [self._steps.get(name, 0) / max(1, self._runs[name].steps) for name in names]
            points = [self._last[name] for name in names if name in self._last]
            statuses = [self._statuses[name] for name in names if name in self._statuses]
            # A run may end before its first point.
            begun = [name for name in names if name in self._steps]
            # One assignment, so that a thread that draws never sees half an update.
            board.states[key] = replace(
                state,
                step=max((self._steps[name] for name in begun), default=0),
                total=max((self._runs[name].steps for name in begun), default=None),
                # Seeds need not train together, so the furthest one says little about the others.
                share=mean(1.0 if over else min(1.0, share) for over, share in zip(ended, shares, strict=True)),
                loss=mean(point.validation_loss for point in points) if points else None,
                metric=mean(point.metric for point in points) if points else None,
                training_loss=mean(training) if training else None,
                # The worst of the ends is the row's: a diverged seed is what the user must see.
                status=min(statuses) if len(statuses) == len(names) else RUNNING,
            )
        for key, state in before.items():
            self._display.changed(board, state, board.states[key])

    def _close(self) -> None:
        if self._board is not None:
            self._board = None
            self._display.ended()


def _key(run: RunInfo) -> str:
    return f"{run.configuration} {run.lr:g}"


def _counted(runs: int, rows: int) -> str:
    """The number of runs, and of configurations if these are fewer.

    Examples:
        >>> _counted(1, 1), _counted(4, 4), _counted(3, 1), _counted(6, 2)
        ('1 run', '4 runs', '3 runs of 1 configuration', '6 runs of 2 configurations')
    """
    counted = f"{runs} run{'' if runs == 1 else 's'}"
    return counted if runs == rows else f"{counted} of {rows} configuration{'' if rows == 1 else 's'}"


def _live(stream: Stream) -> Display:
    # rich is loaded with this module, and only a live table needs it.
    from rankwise.show.live_table import LiveTable

    return LiveTable(stream)


def _notebook(_: Stream) -> Display:
    from rankwise.show.notebook import NotebookTable

    return NotebookTable()


DISPLAYS: dict[str, Callable[[Stream], Display]] = {
    "live": _live,
    "notebook": _notebook,
    "plain": PlainDisplay,
    "quiet": lambda _: QuietDisplay(),
}
"""Display by name; "auto" is the live one in a terminal, that of notebooks in one, and the plain one elsewhere."""


def progress(kind: str = "auto", stream: Stream | None = None) -> Progress:
    """Choose how training is shown.

    Args:
        kind: "auto", "live", "notebook", "plain" or "quiet".
        stream: Where it goes; standard error when not given, so that standard output holds results only.

    Returns:
        An observer; `Ended` closes its display.

    Raises:
        ConfigError: The kind is not known.

    Examples:
        >>> shown = progress("plain", stream=sys.stdout)
        >>> shown.on_event(Started((RunInfo("r4-s0", "r4", "r = 4", "lora", 4, 1e-3, 0, 64, 200),), "accuracy"))
        Training 1 run
        >>> shown.on_event(RunEnded(Outcome("r4-s0", {}, "finished", None, 200, 200, 4, 1.0)))
        [0:00] r4 (lr 0.001) finished at step 0
    """
    out = sys.stderr if stream is None else stream
    if kind == "auto":
        kind = "live" if out.isatty() and os.environ.get("TERM") != "dumb" else "plain"
        if "IPython" in sys.modules:
            from rankwise.show.notebook import in_notebook

            kind = "notebook" if stream is None and in_notebook() else kind
    if kind not in DISPLAYS:
        known = ", ".join(f'"{name}"' for name in ("auto", *DISPLAYS))
        raise ConfigError(f'progress "{kind}" is not known; there are {known}.{suggest(kind, DISPLAYS)}')
    return Progress(DISPLAYS[kind](out))
