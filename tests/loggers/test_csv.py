"""The CSV log: every number on a line, added to by a resumed run, and no one else's file."""

import csv
from pathlib import Path

import pytest

from rankwise.errors import OutputError
from rankwise.loggers.csv import COLUMNS, CSVLog
from rankwise.train.events import Ended, EpochEnded, Resumed, RunEnded, RunInfo, Started, Stepped
from rankwise.train.outcome import Outcome, Point

RUNS = tuple(RunInfo(f"=r{r}-s0", f"r{r}", f"r = {r}", "lora", r, 0.1, 0, 10 * r, 4) for r in (1, 2))
NAMES = tuple(run.name for run in RUNS)
EVENTS = (
    Started(RUNS, "accuracy"),
    Stepped(NAMES, 2, ((1.0, 2.0), (0.5, float("nan"))), ((0.1, 0.1), (0.05, 0.05))),
    EpochEnded((Point(NAMES[0], 2, 0.75, 0.6, 0.9, 0.05, 3.0),)),
    RunEnded(Outcome(NAMES[1], {}, "diverged", "", 2, 2, 1, 0.1)),
)


def log(folder: Path, *events: object, append: bool = False) -> list[dict[str, str]]:
    """The lines of the file after these events."""
    written = CSVLog(folder, append=append)
    for event in (*events, Ended("shown", "r = 1 does it")):
        written.on_event(event)  # pyright: ignore[reportArgumentType]
    with (folder / "metrics.csv").open(newline="") as file:
        return [*csv.DictReader(file)]


def test_every_number_is_a_line(tmp_path: Path) -> None:
    lines = log(tmp_path / "logs", *EVENTS)
    assert tuple(lines[0]) == COLUMNS
    values = {(line["run"], line["step"], line["name"]): line["value"] for line in lines}
    # A name that a spreadsheet would compute is text.
    assert values["'=r1-s0", "2", "train/loss"] == "0.5"
    assert values["'=r2-s0", "1", "train/lr"] == "0.1"
    assert values["'=r2-s0", "2", "train/loss"] == "nan"
    assert values["'=r1-s0", "2", "validation/accuracy"] == "0.9"
    assert values["'=r1-s0", "2", "train/gradient_norm"] == "3.0"
    assert values["'=r2-s0", "2", "status"] == "diverged"
    assert values["", "", "verdict"] == "shown"
    assert len(values) == len(lines) == 8 + 3 + 1 + 1
    assert {(line["configuration"], line["lr"], line["seed"]) for line in lines if line["run"]} == {
        ("r1", "0.1", "0"),
        ("r2", "0.1", "0"),
    }


def test_a_new_run_begins_a_new_file_and_a_resumed_one_adds_to_it(tmp_path: Path) -> None:
    once = log(tmp_path, *EVENTS)
    assert log(tmp_path, *EVENTS) == once
    assert log(tmp_path, EVENTS[0], Resumed((), ()), *EVENTS[1:]) == [*once, *once]
    assert log(tmp_path, *EVENTS, append=True) == [*once, *once, *once]


def test_a_file_of_someone_else_stays(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("date,price\n")
    with pytest.raises(OutputError, match=r"metrics\.csv is no log of rankwise"):
        CSVLog(tmp_path)
    assert (tmp_path / "metrics.csv").read_text() == "date,price\n"


def test_nothing_is_written_before_training(tmp_path: Path) -> None:
    written = CSVLog(tmp_path / "logs")
    for event in (EVENTS[0], Ended()):
        written.on_event(event)
    assert not (tmp_path / "logs").exists()
