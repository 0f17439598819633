"""Results as a notebook shows them: the answer, the table, the figure."""

from html import escape
from typing import TYPE_CHECKING

from rankwise.errors import ConfigError
from rankwise.report.figures import FIGURES, FULL_SIZE, build_figure, figure_svg, own_style
from rankwise.report.table import table_rows
from rankwise.report.words import headline
from rankwise.results import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CELL = "padding: .2rem .6rem; text-align: right"


def results_html(results: Results) -> str:
    """Return the headline, the table and the first figure as a piece of HTML."""
    rows = table_rows(results)
    names = list(rows[0].cells) if rows else []
    head = "".join(f'<th style="{CELL}">{escape(name)}</th>' for name in ["model", *names])
    body = "".join(
        "<tr{}>{}</tr>".format(
            ' style="font-weight: bold"' if row.is_answer else "",
            "".join(f'<td style="{CELL}">{escape(cell)}</td>' for cell in [row.label, *row.cells.values()]),
        )
        for row in rows
    )
    svg = figure_svg(results, FIGURES[0]) or ""
    figure = svg[svg.index("<svg") :] if svg else ""
    return (
        f"<div><p><b>{escape(headline(results))}</b></p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        f"{figure}</div>"
    )


def figure_of(results: Results, *, relative: bool = False) -> "Figure":
    """Return the figure of a sweep.

    Args:
        results: The content of `results.json`.
        relative: Whether both axes are in percent of the reference's.

    Raises:
        ConfigError: There is nothing to draw.
    """
    with own_style():
        figure = build_figure(results, FIGURES[relative], FULL_SIZE)
    if figure is None:
        raise ConfigError("There is nothing to draw: the figure compares configurations by their test metric.")
    return figure
