"""The CSV log: every number on a line, added to by a resumed run, and no one else's file."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from torch import Tensor

import rankwise
from rankwise.errors import OutputError
from rankwise.loggers.csv import CSV_COLUMNS, CSVLog
from rankwise.train.checkpoints import CheckpointInterval
from rankwise.train.events import Ended, EpochEnded, Resumed, RunEnded, RunInfo, Started, Stepped
from rankwise.train.outcome import EpochPoint, Outcome
from rankwise.train.settings import Training
from small_sweep import accuracy, loss, small_model, some_data

RUNS = tuple(RunInfo(f"=r{r}-s0", f"r{r}", f"r = {r}", "lora", r, 0.1, 0, 10 * r, 4) for r in (1, 2))
NAMES = tuple(run.name for run in RUNS)
EVENTS = (
    Started(RUNS, "accuracy"),
    Stepped(NAMES, 2, ((1.0, 2.0), (0.5, float("nan"))), ((0.1, 0.1), (0.05, 0.05))),
    EpochEnded((EpochPoint(NAMES[0], 2, 0.75, 0.6, 0.9, 0.05, 3.0),)),
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
    assert tuple(lines[0]) == CSV_COLUMNS
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


def test_an_interrupted_sweep_and_its_resumption_log_what_one_sweep_logs(tmp_path: Path) -> None:
    calls: list[int] = []

    def interrupting(outputs: Tensor, batch: Sequence[Tensor]) -> Tensor:
        calls.append(1)
        if len(calls) == 40:
            raise KeyboardInterrupt
        return loss(outputs, batch)

    def sweep(out: Path | None, folder: Path, loss: Callable[..., Tensor]) -> dict[tuple[str, str, str], set[str]]:
        try:
            rankwise.sweep(
                small_model(), [1, 4], train=some_data(40, 0), validation=some_data(30, 1), test=some_data(20, 2),
                loss=loss, metric=accuracy, training=Training(batch_size=8, epochs=4), lrs=0.03, plan="grid", seeds=1,
                progress="quiet", out=out, resume=True, every=CheckpointInterval(epochs=1), observers=[CSVLog(folder)],
            )  # fmt: skip
        except KeyboardInterrupt:
            assert calls
        values: dict[tuple[str, str, str], set[str]] = {}
        with (folder / "metrics.csv").open(newline="") as file:
            for line in csv.DictReader(file):
                values.setdefault((line["run"], line["step"], line["name"]), set()).add(line["value"])
        return values

    whole = sweep(None, tmp_path / "whole", loss)
    first = sweep(tmp_path / "out", tmp_path / "parts", interrupting)
    assert 0 < len(first) < len(whole)
    again = sweep(tmp_path / "out", tmp_path / "parts", loss)
    assert again == whole
    assert {len(values) for values in again.values()} == {1}, "what is logged twice is the same"


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
