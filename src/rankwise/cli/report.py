"""`rankwise report`."""

from pathlib import Path

from rankwise.cli.app import EXIT_OK, app
from rankwise.cli.training import print_results


@app.command
def report(directory: Path, /) -> int:
    """Draw table, figures and page again from a run's results.json.

    Example: rankwise report runs/last

    Parameters
    ----------
    directory:
        The run directory, or a URL such as s3://bucket/run.
    """
    from rankwise.report import read_results, write_report

    results = read_results(directory / "results.json")
    print_results(results, write_report(results, directory), as_json=False)
    return EXIT_OK
