"""The report of a run without what takes long: figures and page."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rankwise.results import Results


def write_tables(results: "Results", directory: str | Path, *, subspaces: bool = False) -> list[Path]:
    """Write table.md and results.csv, as `rankwise.report.write_report` does."""
    from rankwise.report.table import markdown_table, write_csv
    from rankwise.results import printable_results

    directory, results = Path(directory), printable_results(results)
    table, runs = directory / "table.md", directory / "results.csv"
    table.write_text(markdown_table(results), encoding="utf-8")
    write_csv(results, runs)
    return [table, runs]
