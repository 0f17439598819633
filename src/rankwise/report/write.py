"""Write everything a reader of a sweep looks at."""

from pathlib import Path

from rankwise.report.cut.cut_table import cut_markdown
from rankwise.report.figures import draw_figures
from rankwise.report.page import write_page
from rankwise.report.table import markdown_table, write_csv
from rankwise.results import Results, printable_results
from rankwise.writing import replacing


def write_report(results: Results, directory: str | Path) -> list[Path]:
    """Write table.md, results.csv, the figures (PNG and SVG) and report.html; run again, it replaces them.

    Each file is written under another name first, so none is ever half there.

    Args:
        results: The content of `results.json`, as `read_results` gives it.
        directory: The run directory; made if it is not there.

    Returns:
        The files written.

    Raises:
        OutputError: The directory can't be written.
    """
    directory, results = Path(directory), printable_results(results)
    table, runs = directory / "table.md", directory / "results.csv"
    with replacing(table) as temporary:
        text = "\n".join(filter(None, (markdown_table(results), cut_markdown(results))))
        temporary.write_text(text, encoding="utf-8")
    write_csv(results, runs)
    return [table, runs, *draw_figures(results, directory), write_page(results, directory)]
