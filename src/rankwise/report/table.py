"""The table: as Markdown, for a terminal, and every run as CSV."""

import csv
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rankwise.report import numbers
from rankwise.report.words import answer_name, sentence, stands_alone
from rankwise.results import ConfigurationResult, Results, ToleranceState
from rankwise.results.origin import PublishedRow
from rankwise.shown import csv_cell
from rankwise.sweeps.choose.wording import probability
from rankwise.writing import replacing

if TYPE_CHECKING:
    from rich.table import Table

RUN_COLUMNS = (
    "name",
    "method",
    "r",
    "alpha",
    "lr",
    "seed",
    "trainable_parameters",
    "validation_metric",
    "validation_loss",
    "metric",
    "best_step",
    "steps",
    "epochs",
    "seconds",
    "peak_memory_bytes",
    "pack",
    "status",
    "reason",
    "adapter",
)
"""Columns of `results.csv`, always in this order; further metrics follow by name."""

EDGE, FRONT = "†", "●"

WITHIN = "within tolerance"
ALWAYS = ("trainable parameters", "test", WITHIN)
"""Columns that the terminal always shows."""
IF_ROOM = ("95% interval", "% of parameters", "published % of", "seeds", "front")
"""Columns that it adds, in this order, while labels fit on one line."""


@dataclass(frozen=True)
class TableRow:
    """One line of the table, as text; a cell is empty where it does not apply.

    Args:
        label: The model.
        cells: By column heading.
        is_answer: Whether it is recommended.
    """

    label: str
    cells: dict[str, str]
    is_answer: bool = False


def table_rows(results: Results) -> list[TableRow]:
    """Return the table as text, one row a configuration; every row has the same columns.

    The table adds the untrained base, where nothing else shows its metric, and published rows without a
    counterpart.
    """
    name = numbers.words(results.metric.name)
    used = [published_for(results, c) for c in results.configurations]
    rows = [_row(results, c, published) for c, published in zip(results.configurations, used, strict=True)]
    if results.base.metric is not None and all(c.method != "base" for c in results.configurations):
        figures = {"trainable parameters": numbers.count(0), f"test {name}": numbers.metric(results.base.metric)}
        rows.insert(0, TableRow("the base as it is", _empty(name) | figures))
    for row in [] if results.published is None else results.published.rows:
        if row not in used:
            cells = {f"test {name}": numbers.metric(None), **_published_cells(name, row)}
            rows.append(TableRow(row.label, _empty(name) | cells))
    if stands_alone(results):
        none = dict.fromkeys(("% of parameters", f"% of {name}", "front"), "")
        rows = [TableRow(row.label, row.cells | none, row.is_answer) for row in rows]
    empty = {heading for heading in _empty(name) if all(not row.cells[heading] for row in rows)}
    return [TableRow(row.label, {k: v for k, v in row.cells.items() if k not in empty}, row.is_answer) for row in rows]


def _empty(name: str) -> dict[str, str]:
    """A row without figures: every column heading, in order.

    Args:
        name: The metric's name.
    """
    headings = (
        "trainable parameters",
        f"test {name}",
        "95% interval",
        "seeds",
        "% of parameters",
        f"% of {name}",
        WITHIN,
        "learning rate",
        "front",
        f"published {name}",
        f"published % of {name}",
    )
    return dict.fromkeys(headings, "")


def _row(results: Results, c: ConfigurationResult, published: PublishedRow | None) -> TableRow:
    name = numbers.words(results.metric.name)
    cells = {
        "trainable parameters": numbers.count(c.trainable_parameters),
        f"test {name}": numbers.metric(c.mean),
        "95% interval": numbers.interval_text(c.interval) if c.interval else "",
        "seeds": str(c.n_seeds),
        "% of parameters": _share(c.relative_parameters),
        f"% of {name}": "" if c.mean is None else _share(c.relative_metric),
        WITHIN: _within(c),
        "learning rate": _rate(c),
        "front": FRONT if c.on_pareto_front else "",
        **({} if published is None else _published_cells(name, published)),
    }
    return TableRow(c.label, _empty(name) | cells, c.name == answer_name(results))


def _published_cells(name: str, row: PublishedRow) -> dict[str, str]:
    return {
        f"published {name}": numbers.metric(row.metric),
        f"published % of {name}": numbers.percent(row.relative_metric, ""),
    }


def _share(value: float | None) -> str:
    return "" if value is None else numbers.percent(value, "")


def _rate(c: ConfigurationResult) -> str:
    """The chosen learning rate, marked where it lies at the edge of the grid."""
    if c.lr is None:
        return ""
    return numbers.learning_rate(c.lr) + (f" {EDGE}" if c.lr_at_edge_of_grid else "")


STATE_WORDS: dict[ToleranceState, str] = {"shown": "shown", "not": "shown not", "open": "open"}


def _within(c: ConfigurationResult) -> str:
    """Whether a configuration is shown to lie within the tolerance, and with what probability it does."""
    if c.state is None:
        return ""
    return STATE_WORDS[c.state] + ("" if c.p_within is None else f", {probability(c.p_within)}")


def published_for(results: Results, c: ConfigurationResult) -> PublishedRow | None:
    """The published row to show with a configuration: the one that names it, else the same method and rank.

    Where several configurations share method and rank, only a row that names one of them is shown with it.
    """
    rows = [] if results.published is None else results.published.rows
    for row in rows:
        if row.configuration == c.name:
            return row
    kind = (c.method, c.r)
    if sum((other.method, other.r) == kind for other in results.configurations) > 1:
        return None
    return next((row for row in rows if (row.method, row.r) == kind and not row.configuration), None)


def legend(results: Results) -> list[str]:
    """Return the sentences below the table: its legend, then the notes of the sweep."""
    sentences: list[str] = []
    cells = [cell for row in table_rows(results) for cell in row.cells.values()]
    relative = results.relative_to
    answer = results.answer
    if answer is not None and any(c.state for c in results.configurations):
        sentences.append(
            f"Within tolerance: whether a configuration is shown, at {probability(answer.confidence)} or more, "
            f"to lie within {answer.tolerance_words or numbers.metric(answer.tolerance)}, and the "
            "probability that it does, from validation data."
        )
    if relative is not None and not stands_alone(results):
        sentences.append(
            f"100% is {relative.label}: {numbers.count(relative.trainable_parameters)} trainable parameters, "
            f"test {numbers.words(results.metric.name)} {numbers.metric(relative.metric)}."
        )
    if FRONT in cells:
        sentences.append(f"{FRONT} is on the Pareto front: nothing with fewer parameters does as well.")
    if any(EDGE in cell for cell in cells):
        sentences.append(
            f"{EDGE} is the best learning rate tried, at the edge of the grid: a better one may lie outside."
        )
    sentences += [sentence(note) for note in results.notes]
    if results.published:
        sentences.append(f"Published values: {results.published.source.removesuffix('.')}.")
        if results.published.note:
            sentences.append(sentence(results.published.note))
    return list(dict.fromkeys(sentences))


def markdown_table(results: Results) -> str:
    """Return the content of `table.md`: the table, the answer's row in bold, and the legend as a list.

    Args:
        results: The content of `results.json`.
    """
    rows = table_rows(results)
    lines = []
    if rows:
        headings = ["model", *map(_escaped, rows[0].cells)]
        lines += ["| " + " | ".join(headings) + " |", "|---|" + "---:|" * len(rows[0].cells)]
    for row in rows:
        cells = [_escaped(row.label + (", the answer" if row.is_answer else "")), *row.cells.values()]
        lines.append("| " + " | ".join(f"**{cell}**" if row.is_answer and cell else cell for cell in cells) + " |")
    lines += ["", *(f"- {_escaped(line)}" for line in legend(results))]
    return "\n".join(lines).strip() + "\n"


def _escaped(text: str) -> str:
    return re.sub(r"([\\|`*_<\[])", r"\\\1", " ".join(text.split()))


def terminal_table(results: Results, width: int = 80) -> "Table":
    """Return the table for the end of a run; print it with `rich.console.Console().print`.

    Args:
        results: The content of `results.json`.
        width: Columns of the terminal. Where they are few, labels break between words and the last columns of the
            table are left out; `table.md` has them all.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    rows, labels, widths = _laid_out(results, width)
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column("model", overflow="fold")
    for name, widest in widths.items():
        table.add_column(Text("" if name == "front" else name), justify="right", width=widest)
    for row, label in zip(rows, labels, strict=True):
        # Text, so that square brackets in a label are not read as markup.
        style = "bold" if row.is_answer else None
        table.add_row(Text(label), *(Text(row.cells[name]) for name in widths), style=style)
    return table


def terminal_notes(results: Results, width: int = 80) -> list[str]:
    """Return the sentences for after the answer: what explains the columns of `terminal_table`, and the run's notes."""
    _, _, widths = _laid_out(results, width)
    return [line for line in legend(results) if "front" in widths or not line.startswith(FRONT)]


def _laid_out(results: Results, width: int) -> tuple[list[TableRow], list[str], dict[str, int]]:
    """Rows, their labels in a terminal, and its columns."""
    rows = table_rows(results)
    labels = [f"{row.label} ◀" if row.is_answer else row.label for row in rows]
    return rows, labels, _shown_columns(rows, labels, width)


def _shown_columns(rows: list[TableRow], labels: list[str], width: int) -> dict[str, int]:
    """The columns that fit the terminal, in order, each as wide as its widest word or cell."""
    if not rows:
        return {}
    headings = {name: "" if name == "front" else name for name in rows[0].cells}
    cells = {name: [row.cells[name] for row in rows] for name in headings}
    widest = {name: max(map(len, [*headings[name].split(), *cells[name]])) for name in headings}

    def room(names: list[str]) -> int:
        return width - sum(1 + widest[name] for name in names)

    shown = [name for name in widest if not name.startswith(IF_ROOM)]
    optional = IF_ROOM
    longest_word = max(len(word) for label in [*labels, "model"] for word in label.split())
    for name in reversed([name for name in shown if not name.startswith(ALWAYS)]):
        if room(shown) < longest_word:
            shown.remove(name)
            optional = ()
    if room(shown) < longest_word and WITHIN in shown:
        widest[WITHIN] = max(len(word) for text in [WITHIN, *cells[WITHIN]] for word in text.split())
    longest_label = max(map(len, labels))
    for start in optional:
        more = [name for name in widest if name.startswith(start)]
        if room(shown + more) >= longest_label:
            shown += more
    return {name: size for name, size in widest.items() if name in shown}


def write_csv(results: Results, path: Path) -> None:
    """Write `results.csv`: one line a run, numbers in full, an empty cell where a value is missing.

    Args:
        results: The content of `results.json`.
        path: The file, replaced atomically.
    """
    runs = results.runs
    others = sorted({name for run in runs for name in run.other_metrics} - set(RUN_COLUMNS))
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(map(csv_cell, [*RUN_COLUMNS, *others]))
        for run in runs:
            values = [getattr(run, name) for name in RUN_COLUMNS]
            writer.writerow(map(csv_cell, [*values, *map(run.other_metrics.get, others)]))
