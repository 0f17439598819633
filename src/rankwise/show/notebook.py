"""The live table in a notebook: one output of the cell, replaced as training goes."""

import io
import sys
import time
from collections.abc import Callable
from typing import Any, final

from rich.console import Console

from rankwise.show.live_table import draw_board
from rankwise.show.state import Display, ProgressState, RowState

WIDTH = 100
"""Columns of the table; a cell scrolls where it is narrower."""

SECONDS = 1.0
"""Between two drawings, each of which is sent to a browser."""


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, which has no terminal and shows HTML."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


@final
class NotebookTable(Display):
    """Shows a board in the output of a cell.

    Args:
        clock: Seconds; only differences count.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._output: Any = None
        self._drawn = 0.0
        self._last: ProgressState | None = None

    def started(self, board: ProgressState) -> None:
        from IPython import display  # pyright: ignore[reportMissingImports]

        self._last, self._drawn = board, self._clock()
        self._output = display.display(display.HTML(as_html(board)), display_id=True)  # pyright: ignore

    def changed(self, board: ProgressState, before: RowState, now: RowState) -> None:
        if self._clock() - self._drawn >= SECONDS:
            self._draw(board)

    def say(self, text: str) -> None:
        print(text)

    def ended(self) -> None:
        if self._last is not None:
            self._draw(self._last)
        self._output = self._last = None

    def _draw(self, board: ProgressState) -> None:
        from IPython import display  # pyright: ignore[reportMissingImports]

        self._drawn = self._clock()
        if self._output is not None:
            self._output.update(display.HTML(as_html(board)))  # pyright: ignore


def as_html(board: ProgressState) -> str:
    """The live table of a terminal, with every row, as HTML in the notebook's own colours."""
    console = Console(file=io.StringIO(), record=True, width=WIDTH, force_jupyter=False, color_system="truecolor")
    console.print(draw_board(board, WIDTH, None))
    code = '<pre style="line-height: 1.3; font-family: monospace">{code}</pre>'
    return console.export_html(inline_styles=True, code_format=code)
