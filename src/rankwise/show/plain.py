"""The plain log, for a file or a pipe, and no display at all."""

from typing import final

from rankwise.show.state import Display, ProgressState, RowState, Stream, clock_time, counts, four_digits

LOG_SECONDS, LOG_SHARE = 5.0, 0.05
"""The plain log waits this long between two lines, or this share of the time so far: a long run gives no long log."""


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
                f"{name} {four_digits(value)}"
                for name, value in (("loss", now.loss), (board.metric, now.metric))
                if value is not None
            ]
            ended = f"{now.row.name}{lr} {now.status} at step {now.step:,}"
            figures = [f"validation {', '.join(found)}"] if found else []
            self.say(f"[{clock_time(elapsed)}] {', '.join([ended, *figures])}")
        elif elapsed - self._said >= max(LOG_SECONDS, LOG_SHARE * elapsed):
            self._said = elapsed
            self.say(f"[{clock_time(elapsed)}] {board.share:.0%} done{board.left()}; {counts(board.states.values())}")

    def say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def ended(self) -> None: ...
