"""Write everything a reader of a sweep looks at."""

from pathlib import Path

from rankwise.report.cut.cut_table import cut_markdown
from rankwise.report.figures import draw_figures
from rankwise.report.page import write_page
from rankwise.report.subspaces.compared import compare_subspaces
from rankwise.report.subspaces.figure import draw_subspaces
from rankwise.report.table import markdown_table, write_csv
from rankwise.results import Results, printable_results
from rankwise.writing import replacing


def write_report(results: Results, directory: str | Path, *, subspaces: bool = False) -> list[Path]:
    """Write table.md, results.csv, the figures (PNG and SVG) and report.html; run again, it replaces them.

    Each file is written under another name first, so none is ever half there.

    Args:
        results: The content of `results.json`, as `read_results` gives it.
        directory: The run directory; made if it is not there.
        subspaces: Whether to compare the directions of its adapters too, in a figure and in the page.

    Returns:
        The files written.

    Raises:
        AdapterFileError: An adapter is damaged.
        ConfigError: There are no two adapters to compare.
        OutputError: The directory can't be written.
    """
    directory, results = Path(directory), printable_results(results)
    compared = compare_subspaces(results, directory) if subspaces else None
    table, runs = directory / "table.md", directory / "results.csv"
    with replacing(table) as temporary:
        text = "\n".join(filter(None, (markdown_table(results), cut_markdown(results))))
        temporary.write_text(text, encoding="utf-8")
    write_csv(results, runs)
    more = [] if compared is None else draw_subspaces(compared, directory)
    return [table, runs, *draw_figures(results, directory), *more, write_page(results, directory, compared)]
