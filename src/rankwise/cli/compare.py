"""`rankwise compare`."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from rankwise.cli.app import EXIT_OK, app


@app.command
def compare(
    *runs: Path,
    out: Path | None = None,
    json_: Annotated[bool, Parameter(name="--json", negative="", show_default=False)] = False,
) -> int:
    """Compare finished runs: test metrics side by side, and paired differences.

    Example: rankwise compare runs/mean runs/model

    Differences are taken from the first run with the configuration, example by example and seed by seed,
    where the two share their test data. A star marks a run's answer.

    Parameters
    ----------
    runs:
        Run directories, two or more.
    out:
        Draw test metric against trainable parameters into this file (.png, .svg or .pdf).
    json_:
        Print it as JSON.
    """
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from rankwise.report import numbers
    from rankwise.report.compare import cell_words, compare_runs, difference_words, draw_comparison
    from rankwise.report.figures import figure_kind
    from rankwise.shown import json_line, printable

    if out is not None:
        figure_kind(out)
    found = compare_runs(runs)
    if json_:
        print(json_line(asdict(found), indent=2))
    else:
        console = Console(soft_wrap=False)
        console.print(f"Test {numbers.words(found.metric)}", highlight=False, markup=False)
        table = Table(box=None, header_style="")
        table.add_column("model", overflow="fold")
        columns = zip(*found.rows.values(), strict=True)
        differs = [any(cell is not None and cell.difference is not None for cell in column) for column in columns]
        for name, paired in zip(found.names, differs, strict=True):
            table.add_column(printable(name), justify="right", overflow="fold")
            if paired:
                table.add_column("difference", justify="right", overflow="fold")
        for label, cells in found.rows.items():
            shown = [(cell_words(cell), *([difference_words(cell)] if paired else []))
                     for cell, paired in zip(cells, differs, strict=True)]  # fmt: skip
            table.add_row(printable(label), *(text for texts in shown for text in texts))
        console.print(table)
        for note in found.notes:
            console.print(printable(note), highlight=False, markup=False)
    if out is not None:
        print(draw_comparison(found, out), file=sys.stderr if json_ else sys.stdout)
    return EXIT_OK
