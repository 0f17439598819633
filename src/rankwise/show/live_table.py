"""The live table: redrawn in place, one row for each configuration, as many as the terminal has room for."""

import sys
from collections.abc import Sequence
from typing import IO, cast, final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rankwise.show.state import (
    RUNNING,
    WAITING,
    Display,
    ProgressState,
    RowState,
    Stream,
    clock_time,
    counts,
    four_digits,
)

FRAMES_PER_SECOND = 2
"""A frame of 24 rows takes some 12 ms of the interpreter, which the training loop needs; the eye asks for no more."""

STYLES = {RUNNING: "bold", WAITING: "dim", "finished": "green"}
"""Status -> colour of its word; every other end is a warning. The word says the same, so colour is never needed."""

BAR = 4, 24
"""Width of the bar next to the title; with less room there is no bar."""


@final
class LiveTable(Display):
    """Shows a board in a terminal.

    Args:
        stream: The terminal.
    """

    def __init__(self, stream: Stream) -> None:
        self._console = Console(file=cast("IO[str]", stream))
        self._live: Live | None = None

    def started(self, board: ProgressState) -> None:
        self._live = Live(
            get_renderable=lambda: self._frame(board),
            console=self._console,
            refresh_per_second=FRAMES_PER_SECOND,
            # What others print to the terminal goes above the table; a stdout that is a file or a pipe is left alone.
            redirect_stdout=sys.stdout.isatty(),
        )
        self._live.start()

    def changed(self, board: ProgressState, before: RowState, now: RowState) -> None:
        """Nothing to do: a thread draws at its own pace, whatever the number of updates."""

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def ended(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def _frame(self, board: ProgressState) -> RenderableType:
        # The last frame stays in the scroll-back, where every row has room.
        room = None if self._live is None else self._console.height
        return draw_board(board, self._console.width, room)


def draw_board(board: ProgressState, width: int, height: int | None) -> Group:
    """Draw a board.

    Args:
        board: What to draw.
        width: Columns there are.
        height: Lines there are; None for as many as it takes.

    Returns:
        A title line with bar and times, the table, and a count of the rows that had no room.
    """
    states = list(board.states.values())
    # Five lines are the title, the one under it, the table's head of two, and where the cursor stands.
    shown, hidden = choose(states, len(states) if height is None else max(1, height - 5))
    more = [Text(f"and {len(hidden)} more: {counts(hidden)}", style="dim")] if hidden else []
    return Group(_head(board, width), Text(), _table(board, shown, width), *more)


def choose(states: Sequence[RowState], room: int) -> tuple[list[RowState], list[RowState]]:
    """Choose the rows to show when not all have room: running ones first, then those that are done.

    Args:
        states: All rows, in order.
        room: How many lines there are; one is for the count of the rest, where there is a rest.

    Returns:
        The rows to show and the others, both in the order given.
    """
    if len(states) <= room:
        return list(states), []
    by_interest = sorted(range(len(states)), key=lambda i: (states[i].status != RUNNING, states[i].status == WAITING))
    kept = set(by_interest[: room - 1])
    return [s for i, s in enumerate(states) if i in kept], [s for i, s in enumerate(states) if i not in kept]


def _head(board: ProgressState, width: int) -> RenderableType:
    percent, times = f"{board.share:.0%}", f"{clock_time(board.elapsed)} elapsed{board.left()}"
    gap, least, most = 2, *BAR
    room = width - len(board.title) - len(percent) - len(times) - 3 * gap
    title = Text(board.title, style="bold")
    if room < least:
        title.truncate(max(0, room + len(board.title) + gap), overflow="ellipsis")
        return Text("  ").join([title, Text(percent), Text(times)])
    grid = Table.grid(padding=(0, gap, 0, 0))
    grid.add_row(title, ProgressBar(total=1.0, completed=board.share, width=min(room, most)), percent, times)
    return grid


def _table(board: ProgressState, states: Sequence[RowState], width: int) -> Table:
    table = Table(box=None, padding=(0, 2 if width >= 92 else 1, 0, 0), header_style="bold")
    table.add_column("name", no_wrap=True, overflow="ellipsis")
    narrow = width < 72
    validation = "valid." if narrow else "validation"
    for column in ("r", "lr", "seeds", "step", *([] if narrow else ["training\nloss"]), f"{validation}\nloss"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column(Text(f"{validation}\n{board.metric}"), justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True, overflow="ellipsis")
    for state in states:
        row, total = state.row, "" if state.total is None else f"/{state.total}"
        table.add_row(
            Text(row.name),
            "" if row.r is None else str(row.r),
            "" if row.lr is None else f"{row.lr:g}",
            str(row.seeds),
            "" if state.status == WAITING else f"{state.step}{total}",
            *([] if narrow else [four_digits(state.training_loss)]),
            four_digits(state.loss),
            four_digits(state.metric),
            Text(state.status, style=STYLES.get(state.status, "yellow")),
        )
    return table
