"""What a person sees while training runs: in a terminal, in a log, and after an interrupt."""

import io
import os
import pty
import sys
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from rankwise.errors import ConfigError
from rankwise.show.live import Progress, progress
from rankwise.show.live_table import LiveTable, choose, draw_board
from rankwise.show.notebook import NotebookTable
from rankwise.show.plain import PlainDisplay, QuietDisplay
from rankwise.show.state import ProgressRow, ProgressState, RowState, clock_time
from rankwise.train.events import Ended, EpochEnded, Message, Observers, Resumed, RunEnded, RunInfo, Started, Stepped
from rankwise.train.outcome import EpochPoint, Outcome

ROWS = [ProgressRow(f"r{r}-{lr:g}", f"r{r}", r, lr, 5) for r in (1, 2, 4, 8, 16, 32, 64) for lr in (1e-4, 3e-4, 1e-3)]


def info(name, configuration="a", lr=0.1, steps=100):
    return RunInfo(name, configuration, "", "lora", 4, lr, 0, 10, steps)


def outcome(name, status="finished", step=3):
    return Outcome(name, {}, status, None, step, step, 1, 0.1)


def point(name, step, loss=0.5, metric=0.5):
    return EpochPoint(name, step, 1.0, loss, metric, 0.1, 1.0)


RUNS = tuple(info(f"{row.key}-s{seed}", row.name, row.lr) for row in ROWS for seed in range(5))


class Clock:
    """Seconds that pass when told to."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def terminal(monkeypatch):
    """A pseudo-terminal: the stream to write to, and a function that closes it and returns all that was written."""
    monkeypatch.setenv("TERM", "xterm-256color")
    reader, writer = pty.openpty()
    stream = os.fdopen(writer, "w")

    def written():
        stream.flush()
        os.set_blocking(reader, False)
        parts = []
        try:
            while part := os.read(reader, 65536):
                parts.append(part)
        except BlockingIOError:
            pass
        return b"".join(parts).decode()

    yield stream, written
    stream.close()
    os.close(reader)


def drawn(board, width=100, height=None):
    """The lines of a frame."""
    console = Console(file=io.StringIO(), width=width, height=height or 200)
    console.print(draw_board(board, width, height))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


class TestBoard:
    def test_the_share_is_that_of_all_runs(self, clock):
        one, three = (ProgressRow(name, name, None, None, seeds) for name, seeds in (("a", 1), ("b", 3)))
        board = ProgressState("t", [one, three], "accuracy", clock)
        board.states["a"] = RowState(one, share=1.0)
        board.states["b"] = RowState(three, share=0.5)
        assert board.share == pytest.approx((1 + 3 * 0.5) / 4)

    def test_time_left_is_in_proportion(self, clock):
        board = ProgressState("t", ROWS[:1], "accuracy", clock)
        clock.now = 30.0
        assert board.left() == ""
        board.states[ROWS[0].key] = RowState(ROWS[0], status="running", share=0.25)
        assert board.left() == ", about 1:30 left"
        board.states[ROWS[0].key] = RowState(ROWS[0], status="finished", share=1.0)
        assert board.left() == ""

    def test_what_was_done_before_an_interruption_tells_nothing_of_the_pace(self, clock):
        board = ProgressState("t", ROWS[:1], "accuracy", clock)
        board.states[ROWS[0].key] = RowState(ROWS[0], status="running", share=0.9)
        board.mark_resumed()
        assert board.left() == ""
        clock.now = 10.0
        board.states[ROWS[0].key] = RowState(ROWS[0], status="running", share=0.9003)
        assert board.left() == "", "too little to go by"
        board.states[ROWS[0].key] = RowState(ROWS[0], status="running", share=0.91)
        assert board.left() == ", about 1:30 left"

    @given(st.integers(0, 10**6))
    def test_duration_reads_back(self, seconds):
        parts = [int(part) for part in clock_time(seconds).split(":")]
        assert sum(part * 60**i for i, part in enumerate(reversed(parts))) == seconds


class TestPlain:
    @pytest.fixture
    def log(self, clock):
        stream = io.StringIO()
        display, board = PlainDisplay(stream), ProgressState("Training 21 configurations", ROWS, "accuracy", clock)
        display.started(board)

        def update(key, *state):
            before, board.states[key] = board.states[key], RowState(board.states[key].row, *state)
            display.changed(board, before, board.states[key])

        return update, stream

    def test_a_row_that_ends_gives_one_line(self, log, clock):
        update, stream = log
        clock.now = 3.0
        for _ in range(2):
            update(ROWS[0].key, 120, 200, 0.25, 0.9, "finished")
        update(ROWS[1].key, 7, 200, None, None, "diverged")
        assert stream.getvalue().splitlines() == [
            "Training 21 configurations",
            "[0:03] r1 (lr 0.0001) finished at step 120, validation loss 0.2500, accuracy 0.9000",
            "[0:03] r1 (lr 0.0003) diverged at step 7",
        ]

    def test_one_line_every_few_seconds_and_fewer_later(self, log, clock):
        update, stream = log
        for second in range(1, 1001):
            clock.now = float(second)
            update(ROWS[0].key, second, 1000, 0.5, 0.5, "running")
        lines = stream.getvalue().splitlines()[1:]
        assert lines[0] == "[0:05] 0% done; 1 running, 20 waiting"
        assert lines[1].startswith("[0:10]")
        assert 40 < len(lines) < 100

    def test_no_control_characters(self, clock):
        stream = io.StringIO()
        shown = Progress(PlainDisplay(stream), clock)
        shown.on_event(Started(RUNS, "accuracy"))
        shown.on_event(Message("plain [bold]text[/bold]\x1b[2J"))
        clock.now = 9.0
        shown.on_event(Stepped((RUNS[0].name,), 1, ((0.5,),), ((0.1,),)))
        shown.on_event(Ended())
        assert all(character.isprintable() or character == "\n" for character in stream.getvalue())
        assert "plain [bold]text[/bold]\ufffd[2J\n" in stream.getvalue()


class TestProgress:
    def test_a_row_for_each_configuration_and_rate(self, capsys):
        shown = progress("plain")
        shown.on_event(Started((info("a-s0"), info("a-s1"), info("b-s0", "b", 0.2)), "accuracy"))
        assert capsys.readouterr().err == "Training 3 runs of 2 configurations\n"
        shown.on_event(EpochEnded((point("a-s0", 3, 0.4, 0.5), point("a-s1", 3, 0.6, 0.7))))
        shown.on_event(RunEnded(outcome("a-s0")))
        assert "finished" not in capsys.readouterr().err, "a seed is still at it"
        shown.on_event(RunEnded(outcome("a-s1", "diverged")))
        assert "a (lr 0.1) diverged at step 3, validation loss 0.5000, accuracy 0.6000" in capsys.readouterr().err
        shown.on_event(RunEnded(outcome("b-s0", "diverged", 0)))
        assert "b (lr 0.2) diverged at step 0\n" in capsys.readouterr().err, "ended before its first point"

    def test_rows_that_move_at_once_are_counted_at_once_within_epochs_too(self, clock):
        stream = io.StringIO()
        shown = Progress(PlainDisplay(stream), clock)
        shown.on_event(Started(tuple(info(f"r{r}-s0", f"r{r}") for r in (1, 2, 4, 8)), "accuracy"))
        three = ("r1-s0", "r2-s0", "r4-s0")
        clock.now = 60.0
        shown.on_event(Stepped(three, 10, (), ()))
        clock.now = 120.0
        shown.on_event(EpochEnded(tuple(point(name, 20) for name in three)))
        assert stream.getvalue().splitlines()[1:] == [
            "[1:00] 8% done, about 12:20 left; 3 running, 1 waiting",
            "[2:00] 15% done, about 11:20 left; 3 running, 1 waiting",
        ]

    def test_seeds_that_train_one_after_another_count_one_by_one(self, clock):
        stream = io.StringIO()
        shown = Progress(PlainDisplay(stream), clock)
        shown.on_event(Started((*(info(f"a-s{seed}") for seed in range(3)), info("b-s0", "b")), "accuracy"))
        clock.now = 60.0
        shown.on_event(EpochEnded((point("a-s0", 60),)))
        shown.on_event(RunEnded(outcome("a-s0", step=60)))
        clock.now = 120.0
        shown.on_event(EpochEnded((point("a-s1", 20),)))
        assert stream.getvalue().splitlines()[1:] == [
            "[1:00] 15% done, about 5:40 left; 1 running, 1 waiting",
            "[2:00] 30% done, about 4:40 left; 1 running, 1 waiting",
        ]

    def test_the_training_loss_moves_within_an_epoch(self, clock, monkeypatch):
        boards = []
        monkeypatch.setattr(QuietDisplay, "started", lambda self, board: boards.append(board))
        shown = Progress(QuietDisplay(), clock)
        shown.on_event(Started((info("a-s0"), info("a-s1")), "accuracy"))
        shown.on_event(Stepped(("a-s0", "a-s1"), 2, ((1.0, 3.0), (0.5, 1.5)), ((0.1, 0.1),) * 2))
        (state,) = boards[0].states.values()
        assert (state.training_loss, state.loss) == (1.5, None)

    def test_what_was_done_before_an_interruption_is_shown_and_tells_nothing_of_the_pace(self, clock):
        stream = io.StringIO()
        shown = Progress(PlainDisplay(stream), clock)
        shown.on_event(Started((info("a-s0"), info("b-s0", "b")), "accuracy"))
        shown.on_event(Resumed((point("a-s0", 80), point("b-s0", 80)), (outcome("a-s0"),)))
        clock.now = 10.0
        shown.on_event(EpochEnded((point("b-s0", 90),)))
        assert stream.getvalue().splitlines()[1:] == [
            "[0:00] a (lr 0.1) finished at step 80, validation loss 0.5000, accuracy 0.5000",
            "[0:10] 95% done, about 0:10 left; 1 running, 1 finished",
        ]


class TestTable:
    def test_one_row_a_configuration(self, clock):
        board = ProgressState("Training 21 configurations", ROWS, "accuracy", clock)
        board.states[ROWS[2].key] = RowState(ROWS[2], 300, 1000, 0.25, 0.9, "running", training_loss=0.2)
        lines = drawn(board)
        assert len(lines) == 4 + len(ROWS)
        assert lines[0].startswith("Training 21 configurations")
        assert lines[2].split() == ["training", "validation", "validation"]
        assert lines[3].split() == ["name", "r", "lr", "seeds", "step", "loss", "loss", "accuracy", "status"]
        assert lines[6].split() == ["r1", "1", "0.001", "5", "300/1000", "0.2000", "0.2500", "0.9000", "running"]
        assert lines[7].split() == ["r2", "2", "0.0001", "5", "waiting"]

    @given(st.integers(8, 40), st.integers(0, 21), st.integers(50, 130))
    def test_fits_the_terminal_with_a_count_of_the_rest(self, height, running, width):
        board = ProgressState("Training 21 configurations", ROWS, "accuracy", Clock())
        for row in ROWS[-running:] if running else []:
            board.states[row.key] = RowState(row, 1, 10, 0.1, 0.1, "running")
        lines = drawn(board, width, height)
        # One line is left for the cursor.
        assert len(lines) <= height - 1
        assert max(map(len, lines)) <= width
        hidden = len(ROWS) - (len(lines) - 4 - lines[-1].startswith("and "))
        assert lines[-1].startswith(f"and {hidden} more: ") == (hidden > 0)

    @given(st.lists(st.sampled_from(["waiting", "running", "finished", "diverged"]), max_size=30), st.integers(1, 30))
    def test_running_rows_come_first(self, statuses, room):
        states = [RowState(ProgressRow(str(i), str(i), None, None, 1), status=s) for i, s in enumerate(statuses)]
        shown, hidden = choose(states, room)
        assert len(shown) + bool(hidden) <= room
        assert sorted(shown + hidden, key=states.index) == states
        assert shown == sorted(shown, key=states.index)
        if any(s.status == "running" for s in hidden):
            assert all(s.status == "running" for s in shown)
        if any(s.done for s in hidden):
            assert all(s.status != "waiting" for s in shown)

    def test_names_are_shown_as_they_are(self, clock):
        board = ProgressState("[red]title", [ProgressRow("a", "[bold]a", None, None, 1)], "f[1]", clock)
        text = "\n".join(drawn(board))
        assert all(part in text for part in ("[red]title", "[bold]a", "f[1]"))


class TestLive:
    def test_an_interrupt_gives_the_terminal_back(self, terminal):
        stream, written = terminal
        hide, show = "\x1b[?25l", "\x1b[?25h"

        def interrupted():
            with Observers([Progress(LiveTable(stream))]) as shown:
                shown.on_event(Started(RUNS, "accuracy"))
                shown.on_event(EpochEnded((point(RUNS[0].name, 3),)))
                shown.message("a [message]")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        text = written()
        assert text.rfind(show) > text.rfind(hide) >= 0
        assert "a [message]" in text
        # The last frame has every row, however small the terminal.
        assert text.count("r64") >= 3

    def test_starting_again_replaces_the_table(self, terminal):
        stream, written = terminal
        with Observers([Progress(LiveTable(stream))]) as shown:
            shown.on_event(Started(RUNS[:1], "accuracy"))
            shown.on_event(Started(RUNS[:2], "accuracy"))
        text = written()
        assert 0 <= text.find("Training 1 run") < text.find("Training 2 runs")

    def test_is_chosen_in_a_terminal(self, terminal, monkeypatch):
        stream, _ = terminal
        assert isinstance(progress("auto", stream)._display, LiveTable)
        monkeypatch.setenv("TERM", "dumb")
        assert isinstance(progress("auto", stream)._display, PlainDisplay)


class TestChoice:
    def test_by_name(self):
        stream = io.StringIO()
        assert isinstance(progress("auto", stream)._display, PlainDisplay)
        assert isinstance(progress("live", stream)._display, LiveTable)
        shown = progress("quiet", stream)
        assert isinstance(shown._display, QuietDisplay)
        for event in (Started(RUNS, "accuracy"), RunEnded(outcome(RUNS[0].name)), Message("nothing"), Ended()):
            shown.on_event(event)
        assert stream.getvalue() == ""

    def test_unknown(self):
        with pytest.raises(ConfigError, match=r'progress "plane" is not known.*Did you mean "plain"'):
            progress("plane")

    def test_before_the_start_and_after_the_end_nothing_is_shown(self):
        stream = io.StringIO()
        shown = progress("plain", stream)
        step = Stepped((RUNS[0].name,), 1, ((0.5,),), ((0.1,),))
        shown.on_event(step)
        shown.on_event(Started(RUNS[:1], "accuracy"))
        for event in (Ended(), Ended(), step, RunEnded(outcome(RUNS[0].name))):
            shown.on_event(event)
        assert stream.getvalue() == "Training 1 run\n"


class Kernel:
    """IPython as far as a display needs it: what a cell shows, one entry an output."""

    kernel = object()

    def __init__(self):
        self.outputs = []

    def display(self, html, *, display_id):
        assert display_id
        i = len(self.outputs)
        self.outputs.append(html)
        return SimpleNamespace(update=lambda new: self.outputs.__setitem__(i, new))


def test_in_a_notebook_one_output_is_replaced(monkeypatch, clock, capsys):
    kernel = Kernel()
    display = SimpleNamespace(display=kernel.display, HTML=lambda text: text)
    ipython = ModuleType("IPython")
    ipython.display, ipython.get_ipython = display, lambda: kernel
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    shown = progress()
    assert isinstance(shown._display, NotebookTable)
    shown = Progress(NotebookTable(clock), clock)
    shown.on_event(Started((info("a-s0", "<b>"),), "accuracy"))
    (first,) = kernel.outputs
    shown.on_event(Stepped(("a-s0",), 50, (), ()))
    assert kernel.outputs == [first], "not before a second has passed"
    clock.now = 1.5
    shown.on_event(Stepped(("a-s0",), 60, (), ()))
    (now,) = kernel.outputs
    assert "60/100" in now
    assert "&lt;b&gt;" in now
    assert "\x1b" not in now
    shown.on_event(Message("a note"))
    shown.on_event(RunEnded(outcome("a-s0", step=100)))
    shown.on_event(Ended())
    assert "finished" in kernel.outputs[0]
    assert len(kernel.outputs) == 1
    assert capsys.readouterr().out == "a note\n"
    monkeypatch.setattr(ipython, "get_ipython", lambda: None)
    assert isinstance(progress()._display, PlainDisplay | LiveTable), "IPython in a terminal"
