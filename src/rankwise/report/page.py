"""The page: `report.html`, one file that needs nothing else, readable on a phone and in the dark."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from rankwise.report import numbers
from rankwise.report.curves import Curve, read_curves
from rankwise.report.cut.cut_table import cut_legend, cut_rows
from rankwise.report.figures import CURVES, FIGURES, curves_svg, figure_svg
from rankwise.report.points import BLUE, GRID, INK, MUTED, VERMILLION
from rankwise.report.subspaces.compared import Subspaces
from rankwise.report.subspaces.figure import NAME as SUBSPACES
from rankwise.report.subspaces.figure import subspaces_svg
from rankwise.report.subspaces.rows import subspace_legend, subspace_rows
from rankwise.report.table import legend, table_rows
from rankwise.report.words import after_headline, answer_name, headline, stands_alone
from rankwise.results import ConfigurationResult, Results, RunResult, plain
from rankwise.results.origin import SearchedRate
from rankwise.results.outcomes import MeanInterval
from rankwise.writing import replacing

if TYPE_CHECKING:
    from markupsafe import Markup

PAGE_COLOURS = {INK: "--ink", MUTED: "--muted", GRID: "--line", BLUE: "--blue", VERMILLION: "--vermillion"}
"""Colours of the figures that turn with the page's dark mode."""

RUN_HEADINGS = ("run", "parameters", "validation", "test", "best step", "steps", "time", "status")


@dataclass(frozen=True)
class RateRow:
    """The learning rates tried for one configuration.

    Args:
        label: Of the configuration.
        cells: Mean validation metric by learning rate, in the order of the table's columns; empty if not tried.
        chosen: Index of the cell that was chosen.
    """

    label: str
    cells: list[str]
    chosen: int | None


def write_page(results: Results, directory: str | Path, subspaces: Subspaces | None = None) -> Path:
    """Write `report.html`: the answer, the table, the figures, how each was chosen and how it was run.

    Args:
        results: The content of `results.json`.
        directory: Where to.
        subspaces: The comparison of its adapters' directions, where there is one.

    Returns:
        The file.

    Raises:
        OutputError: The directory can't be written.
    """
    path = Path(directory) / "report.html"
    with replacing(path) as temporary:
        temporary.write_text(page(results, read_curves(Path(directory)), subspaces), encoding="utf-8")
    return path


def page(results: Results, curves: Mapping[str, Curve] | None = None, subspaces: Subspaces | None = None) -> str:
    """Return the page as text; the same results give the same page.

    Args:
        results: The content of `results.json`.
        curves: The losses of its runs, where they are there.
        subspaces: As for `write_page`.
    """
    from jinja2 import Environment, StrictUndefined

    template = resources.files("rankwise.report").joinpath("page.html.jinja").read_text("utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["commands"] = _commands
    rates, rate_rows = rate_table(results)
    if stands_alone(results) and len(rates) < 2:
        rate_rows = []  # nothing was chosen
    return environment.from_string(template).render(
        task=results.task,
        question="One training" if stands_alone(results) else "How many trainable parameters?",
        metric=numbers.words(results.metric.name),
        higher_is_better=results.metric.higher_is_better,
        headline=headline(results),
        explanation=after_headline(results),
        rows=table_rows(results),
        legend=legend(results),
        cut_rows=cut_rows(results),
        cut_legend=cut_legend(results),
        figures=[(name, svg) for name in FIGURES if (svg := inline_svg(results, name))],
        curves=inline(curves_svg(results, curves or {}), CURVES, "Loss by epoch"),
        subspaces=None
        if subspaces is None
        else inline(subspaces_svg(subspaces), SUBSPACES, "Which directions the updates share"),
        subspace_rows=[] if subspaces is None else subspace_rows(subspaces),
        subspace_legend=[] if subspaces is None else subspace_legend(subspaces),
        rates=rates,
        rate_rows=rate_rows,
        other_names=[numbers.words(name) for name in other_names(results)],
        other_rows=list(other_rows(results)),
        run_headings=RUN_HEADINGS,
        runs=[_run_cells(run) for run in results.runs],
        facts=list(facts(results)),
    )


def inline_svg(results: Results, name: str) -> str:
    """Return a figure to stand inside the page, or an empty string where there is nothing to draw.

    Ids get the figure's name in front, because one document has two figures.
    """
    words = numbers.words(results.metric.name)
    title = f"Test {words} against trainable parameters" + (", relative" if name == "relative" else "")
    return inline(figure_svg(results, name), name, title)


def inline(svg: str | None, name: str, title: str) -> str:
    """Return a figure to stand inside the page; an empty string where there is none.

    Args:
        svg: As matplotlib writes it.
        name: The figure's.
        title: For those who don't see it.
    """
    if svg is None:
        return ""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for colour, variable in PAGE_COLOURS.items():
        svg = svg.replace(colour, f"var({variable})")
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg", f'<svg role="img" aria-label="{_attribute(title)}"', 1)


def _attribute(text: str) -> str:
    return re.sub(r"[^\w ,.%()=-]", "", text)


def _commands(text: str) -> "Markup":
    """A sentence with its commands, which stand between backticks, set as code."""
    from markupsafe import Markup, escape

    # The text is escaped before it is marked up.
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def rate_table(results: Results) -> tuple[list[str], list[RateRow]]:
    """Return the learning rates tried, as column headings, and each configuration's results.

    A cell is the mean validation metric over the seeds that have one; runs that diverged or failed are counted.
    """
    rates = sorted({run.lr for run in results.runs if run.lr is not None})
    rows: list[RateRow] = []
    for c in results.configurations:
        runs = list(all_runs(results, c))
        cells = [_rate_cell([run for run in runs if run.lr == rate]) for rate in rates]
        if any(cells):
            rows.append(RateRow(c.label, cells, rates.index(c.lr) if c.lr in rates else None))
    used = [i for i in range(len(rates)) if any(row.cells[i] for row in rows)]
    rows = [
        RateRow(row.label, [row.cells[i] for i in used], used.index(row.chosen) if row.chosen in used else None)
        for row in rows
    ]
    return [numbers.learning_rate(rates[i]) for i in used], rows


def _rate_cell(runs: list[RunResult]) -> str:
    values = [run.validation_metric for run in runs if run.validation_metric is not None]
    lost = [(sum(run.status == status for run in runs), status) for status in ("diverged", "failed")]
    parts = [numbers.metric(sum(values) / len(values))] if values else []
    return ", ".join(parts + [f"{n} {status}" for n, status in lost if n])


def all_runs(results: Results, c: ConfigurationResult) -> Iterator[RunResult]:
    """Yield every run of a configuration, at all learning rates.

    A run that does not name its configuration belongs to the one that lists it, else to the only one of its
    method and rank.
    """
    kinds = [(other.method, other.r) for other in results.configurations]
    listed = {name: other.name for other in results.configurations for name in other.runs}
    alone = kinds.count((c.method, c.r)) == 1
    for run in results.runs:
        owner = run.configuration or listed.get(run.name)
        if owner == c.name or (owner is None and alone and (run.method, run.r) == (c.method, c.r)):
            yield run


def other_names(results: Results) -> list[str]:
    """Return the names of the further metrics, forgetting among them, in the order of their first mention."""
    return list(dict.fromkeys(name for c in results.configurations for name in c.other_metrics))


def other_rows(results: Results) -> Iterator[tuple[str, list[str]]]:
    """Yield (label, mean and interval of each of `other_names`) for every configuration that has any."""
    for c in results.configurations:
        if c.other_metrics:
            yield c.label, [_with_interval(c.other_metrics.get(name)) for name in other_names(results)]


def _with_interval(value: MeanInterval | None) -> str:
    if value is None:
        return ""
    ends = f" ({numbers.interval_text(value.interval)})" if value.interval else ""
    return numbers.metric(value.mean) + ends


def _run_cells(run: RunResult) -> list[str]:
    status = run.status + (f" ({run.reason})" if run.reason else "")
    return [
        run.name,
        numbers.count(run.trainable_parameters),
        numbers.metric(run.validation_metric),
        numbers.metric(run.metric),
        numbers.count(run.best_step),
        numbers.count(run.steps),
        numbers.duration_text(run.seconds),
        status,
    ]


def facts(results: Results) -> Iterator[tuple[str, str]]:
    """Yield (what, value): all that is needed to run the sweep again and to know that it is the same."""
    yield "command", results.command
    yield "started", results.started
    yield "took", numbers.duration_text(results.seconds)
    yield "device", results.device
    yield "versions", ", ".join(f"{name} {version}" for name, version in results.versions.items() if version)
    base = results.base
    yield "base", f"{base.name}, {numbers.count(base.parameters)} parameters{_sha(base.sha256)}"
    for name, part in results.data.splits.items():
        yield f"{name} data", f"{numbers.count(part.n)} examples{_sha(part.sha256)}"
    for name, value in plain(results.grid).items():
        if name != "search" and value not in (None, []):
            start = "" if stands_alone(results) else "grid: "
            yield start + numbers.words(name), ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    if results.grid.search:
        yield "search", "; ".join(map(_searched, results.grid.search))
    answer = results.answer
    if answer is not None and answer_name(results) is not None and answer.adapter:
        yield "adapter", answer.adapter
    yield "configuration", results.config_hash


def _searched(rate: SearchedRate) -> str:
    """A learning rate that was looked at, and how it did: "r8 at 0.001: 0.947"."""
    value = rate.status if rate.validation_metric is None else numbers.metric(rate.validation_metric)
    return f"{rate.configuration} at {numbers.learning_rate(rate.lr)}: {value}"


def _sha(digest: str | None) -> str:
    return f", SHA-256 {digest}" if digest else ""
