"""The table of compressed adapters: trained ones cut to smaller ranks."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rankwise.report import numbers
from rankwise.results import Results
from rankwise.results.compressed import CompressedConfiguration
from rankwise.sweeps.choose.wording import probability

if TYPE_CHECKING:
    from rich.table import Table

STATES = {"shown": "shown", "not": "shown not", "open": "open"}


def cut_rows(results: Results) -> list[tuple[str, dict[str, str], bool]]:
    """Return (label, cells by heading, whether it is the one to ship) of every cut configuration; none where none was.

    Every row has the same headings.
    """
    compressed = results.compressed
    if not compressed:
        return []
    rows = [(c.label, dict(_cells(results, c, compressed.steps)), c.is_answer) for c in compressed.configurations]
    used = {heading for _, cells, _ in rows for heading, cell in cells.items() if cell}
    return [(label, {k: v for k, v in cells.items() if k in used}, ship) for label, cells, ship in rows]


def _cells(results: Results, c: CompressedConfiguration, steps: int | None) -> Iterator[tuple[str, str]]:
    trained = results.configuration(c.same_size)
    yield "parameters", numbers.count(c.parameters)
    yield "compressed", numbers.metric(c.mean)
    yield "95% interval", numbers.interval_text(c.interval) if c.interval else ""
    yield "seeds", str(c.n_seeds)
    yield "trained at that rank", "" if trained is None or trained.mean is None else numbers.metric(trained.mean)
    if steps is not None:
        yield f"repaired, {steps:,} steps", "" if c.repaired is None else numbers.metric(c.repaired.mean)
        yield (
            f"trained, {steps:,} steps more",
            "" if c.trained_longer is None else numbers.metric(c.trained_longer.mean),
        )
    within = "" if c.state is None else STATES[c.state]
    yield "within tolerance", within + ("" if c.p_within is None else f", {probability(c.p_within)}")


def cut_legend(results: Results) -> list[str]:
    """Return what the table shows, in sentences."""
    compressed = results.compressed
    if not compressed:
        return []
    what = f"test {numbers.words(results.metric.name)}"
    repaired = "" if compressed.steps is None else " Within tolerance: of repaired ones."
    return [
        f"Compressed: {what} of adapters of the largest rank trained, each update cut to its largest singular "
        f"values.{repaired}"
    ]


def cut_markdown(results: Results) -> str:
    """Return the table as Markdown; empty where there is none."""
    rows = cut_rows(results)
    if not rows:
        return ""
    headings = ["compressed adapters", *rows[0][1]]
    lines = ["| " + " | ".join(headings) + " |", "|---|" + "---:|" * len(rows[0][1])]
    for label, cells, ship in rows:
        texts = [label + (", to ship" if ship else ""), *cells.values()]
        lines.append("| " + " | ".join(f"**{text}**" if ship and text else text for text in texts) + " |")
    return "\n".join([*lines, "", *(f"- {line}" for line in cut_legend(results))]) + "\n"


LEFT_OUT = ("seeds", "95% interval", "trained, ", "trained at")
"""Columns that a narrow terminal leaves out, in this order."""


def cut_terminal(results: Results, width: int = 80) -> "Table | None":
    """Return the table for the end of a run; None where there is none.

    Args:
        results: The content of `results.json`.
        width: Columns of the terminal; where they are few, columns are left out, which table.md has.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    rows = cut_rows(results)
    if not rows:
        return None
    labels = [label + (" ◀ ship" if ship else "") for label, _, ship in rows]
    widest = {
        heading: max(map(len, [*heading.split(), *(cells[heading] for _, cells, _ in rows)])) for heading in rows[0][1]
    }
    for start in LEFT_OUT:
        if sum(widest.values()) + len(widest) + max(map(len, labels)) <= width:
            break
        widest = {heading: size for heading, size in widest.items() if not heading.startswith(start)}
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column("compressed", overflow="fold")
    for heading, size in widest.items():
        table.add_column(Text("test" if heading == "compressed" else heading), justify="right", width=size)
    for label, (_, cells, ship) in zip(labels, rows, strict=True):
        table.add_row(Text(label), *(Text(cells[heading]) for heading in widest), style="bold" if ship else None)
    return table
