"""`rankwise report`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from rankwise.cli.app import EXIT_OK, app
from rankwise.cli.training import print_results


@app.command
def report(
    directory: Path, /, *, subspaces: Annotated[bool, Parameter(negative="", show_default=False)] = False
) -> int:
    """Draw table, figures and page again from a run's results.json.

    Example: rankwise report runs/last

    Parameters
    ----------
    directory:
        The run directory, or a URL such as s3://bucket/run.
    subspaces:
        Also compare the directions of the adapters' updates, between ranks and between seeds, and how much they
        amplify the base's own (LoRA paper, sections 7.2 and 7.3): subspaces.png and a part of the page.
    """
    from rankwise.report import read_results, write_report

    results = read_results(directory / "results.json")
    print_results(results, write_report(results, directory, subspaces=subspaces), as_json=False)
    return EXIT_OK
