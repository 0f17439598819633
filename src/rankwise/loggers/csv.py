"""A CSV file with a line for each number, which any program reads."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO, final

from rankwise.errors import OutputError
from rankwise.loggers.log import Log
from rankwise.shown import csv_cell
from rankwise.train.events import RunInfo
from rankwise.train.outcome import Outcome

CSV_COLUMNS = ("run", "configuration", "lr", "seed", "step", "name", "value")


@final
class CSVLog(Log):
    """Writes `metrics.csv`.

    Lines are run, configuration, learning rate, seed, step, name and value: "train/loss" and so on (`Log`), "status"
    where a run ends, and at the end "verdict" with no run.

    Args:
        folder: Where the file lies; made if need be.
        append: Whether lines are added to those that are there.

    Raises:
        OutputError: There is a file of that name that is no such log.
    """

    def __init__(self, folder: str | Path, *, append: bool = False) -> None:
        super().__init__(append=append)
        self._path = Path(folder) / "metrics.csv"
        self._file: TextIO | None = None
        if self._path.exists():
            with self._path.open(encoding="utf-8", errors="replace", newline="") as file:
                if next(csv.reader(file), None) not in (None, [*CSV_COLUMNS]):
                    raise OutputError(f"{self._path} is no log of rankwise, and would be written over; move it away.")

    def begin(self, run: RunInfo) -> None:
        """Nothing to do: every line names its run."""

    def write(self, run: RunInfo, step: int, values: Mapping[str, float]) -> None:
        """Write a line for each number."""
        about = (run.name, run.configuration, run.lr, run.seed, step)
        for name, value in values.items():
            self._line(*about, name, value)

    def end(self, run: RunInfo, outcome: Outcome) -> None:
        """Write how a run ended, and what is in memory to the disk."""
        self._line(run.name, run.configuration, run.lr, run.seed, outcome.steps, "status", outcome.status)
        if self._file is not None:
            self._file.flush()

    def close(self, verdict: str | None, words: str) -> None:
        """Write the verdict."""
        if verdict is not None:
            self._line("", "", "", "", "", "verdict", verdict)
        if self._file is not None:
            self._file.close()

    def _line(self, *cells: object) -> None:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            more = self.append and self._path.exists() and self._path.stat().st_size > 0
            self._file = self._path.open("a" if more else "w", encoding="utf-8", newline="")
            if not more:
                csv.writer(self._file).writerow(CSV_COLUMNS)
        csv.writer(self._file).writerow(map(csv_cell, cells))
