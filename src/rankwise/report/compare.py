"""Several runs side by side: each configuration's test metric in every run, and paired differences where runs share
their test data.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rankwise.errors import ConfigError
from rankwise.report import numbers
from rankwise.report.figures import figure_kind, own_style
from rankwise.report.plot import dress
from rankwise.report.points import GRID, INK, LORA_STYLE, OTHER_STYLES, drawable
from rankwise.results import Results, read_results
from rankwise.sweeps.choose.statistics import interval
from rankwise.sweeps.storage.working_copy import shown
from rankwise.writing import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PREDICTIONS = "predictions.npz"

STYLES = (LORA_STYLE, *OTHER_STYLES[:-1])
"""Colour and shape of the runs in turn; after the last, the colours come again with other shapes."""

LEGEND_COLUMNS, MOST_LETTERS = 2, 40
"""Of the figure's legend, and of a run's name in it."""


@dataclass(frozen=True)
class Cell:
    """One configuration in one run.

    Args:
        mean: Its test metric; None where it has none.
        interval: 95% interval of it.
        trainable_parameters: Its size.
        is_answer: Whether it is the run's answer.
        difference: Its test metric minus that of the first run that has the configuration, example by example; None in
            that run, and where the two do not share their test data.
        difference_interval: 95% interval of the difference.
    """

    mean: float | None
    interval: tuple[float, float] | None
    trainable_parameters: int
    is_answer: bool
    difference: float | None = None
    difference_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class RunComparison:
    """Runs side by side.

    Args:
        names: What the runs are called.
        metric: What all of them are judged by.
        higher_is_better: Whether more of it is better.
        rows: Label of a configuration -> its cell in each run, None where the run has no such configuration.
        notes: What can't be compared, and why.
    """

    names: tuple[str, ...]
    metric: str
    higher_is_better: bool
    rows: dict[str, tuple[Cell | None, ...]]
    notes: tuple[str, ...]


def compare_runs(directories: Sequence[Path]) -> RunComparison:
    """Compare finished runs.

    Args:
        directories: Run directories, two or more.

    Raises:
        ConfigError: There are fewer than two, or they are judged by different metrics.
        OutputError: One holds no results.
    """
    if len(directories) < 2:
        raise ConfigError(f"{len(directories)} run is given; two or more are compared.")
    runs = [_Run(directory) for directory in directories]
    metrics = {run.results.metric.name for run in runs}
    if len(metrics) > 1:
        raise ConfigError(
            f"The runs are judged by different metrics ({', '.join(sorted(metrics))}), which can't be compared."
        )
    labels = dict.fromkeys(label for run in runs for label in run.configurations)
    notes: list[str] = []
    names = _names(directories)
    unlike = [name for name, run in zip(names, runs, strict=True) if run.test != runs[0].test]
    if unlike:
        notes.append(
            f"The test data of {', '.join(unlike)} is not that of {names[0]}: means stand side by side, and no "
            "difference is taken."
        )
    return RunComparison(
        names=names,
        metric=runs[0].results.metric.name,
        higher_is_better=runs[0].results.metric.higher_is_better,
        rows={label: tuple(_cells(label, runs)) for label in labels},
        notes=tuple(notes),
    )


class _Run:
    """A run's results, and its metric on each test example."""

    def __init__(self, directory: Path) -> None:
        self.results: Results = read_results(directory)
        self.configurations = {c.label: c for c in self.results.configurations}
        test = self.results.data.test
        self.test = test.n, test.sha256
        path = directory / PREDICTIONS
        self._rows: dict[str, np.ndarray] = {}
        if path.is_file():
            with np.load(path, allow_pickle=False) as file:
                self._rows = {key.removeprefix("test/"): file[key] for key in file if key.startswith("test/")}
        self._seeds = {run.name: run.seed for run in self.results.runs if run.seed is not None}

    def rows(self, label: str) -> dict[int, np.ndarray]:
        """Seed -> metric of each test example."""
        names = self.configurations[label].runs if label in self.configurations else []
        return {self._seeds[name]: self._rows[name] for name in names if name in self._rows and name in self._seeds}


def _cells(label: str, runs: Sequence[_Run]) -> list[Cell | None]:
    first = next(run for run in runs if label in run.configurations)
    cells: list[Cell | None] = []
    for run in runs:
        c = run.configurations.get(label)
        if c is None:
            cells.append(None)
            continue
        paired = None if run is first or run.test != first.test else _difference(run.rows(label), first.rows(label))
        cells.append(
            Cell(
                mean=c.mean,
                interval=c.interval,
                trainable_parameters=c.trainable_parameters,
                is_answer=c.is_answer,
                difference=None if paired is None else paired[0],
                difference_interval=None if paired is None else paired[1],
            )
        )
    return cells


def _difference(ours: dict[int, np.ndarray], theirs: dict[int, np.ndarray]) -> tuple[float, tuple[float, float]] | None:
    """The mean difference and its interval: seed by seed where the runs share seeds, else of the means over seeds."""
    if not ours or not theirs:
        return None
    shared = sorted(ours.keys() & theirs.keys())
    if shared:
        values = np.stack([ours[seed].astype(np.float64) - theirs[seed].astype(np.float64) for seed in shared])
    else:
        values = (np.mean(list(ours.values()), 0) - np.mean(list(theirs.values()), 0))[None].astype(np.float64)
    return float(values.mean()), interval(values)


def _names(directories: Sequence[Path]) -> tuple[str, ...]:
    """The folders' last names where these differ, else their whole paths."""
    short = [directory.resolve().name for directory in directories]
    return tuple(short) if len({*short}) == len(short) else tuple(map(shown, directories))


def cell_words(cell: Cell | None) -> str:
    """A cell in words.

    Examples:
        >>> cell_words(Cell(0.912, (0.9, 0.92), 100, True))
        '0.912 (0.900 to 0.920) *'
    """
    if cell is None:
        return numbers.MISSING
    ends = "" if cell.interval is None else f" ({numbers.interval_text(cell.interval)})"
    return f"{numbers.metric(cell.mean)}{ends}{' *' if cell.is_answer else ''}"


def difference_words(cell: Cell | None) -> str:
    """A paired difference in words.

    Examples:
        >>> difference_words(Cell(0.9, None, 1, False, 0.0123, (-0.001, 0.02)))
        '+0.0123 (-0.0010 to +0.0200)'
    """
    if cell is None or cell.difference is None or cell.difference_interval is None:
        return ""
    low, high = cell.difference_interval
    return f"{cell.difference:+.4f} ({low:+.4f} to {high:+.4f})"


def draw_comparison(comparison: RunComparison, path: Path) -> Path:
    """Draw each run's test metric against its trainable parameters.

    Args:
        comparison: The runs.
        path: The figure's file; its ending says of which kind.

    Returns:
        The file.

    Raises:
        OutputError: Its ending is that of no figure, or it can't be written.
    """
    kind = figure_kind(path)
    with replacing(path) as temporary, own_style():
        build_comparison(comparison).savefig(temporary, format=kind)
    return path


def build_comparison(comparison: RunComparison) -> "Figure":
    """Return the figure: a line for each run, its answer ringed, and a legend above the axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-len(comparison.names) // LEGEND_COLUMNS)
    figure = Figure(figsize=(7.4, 4.6 + 0.22 * rows), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.add_subplot()
    ax.set_xscale("log")
    for i, name in enumerate(comparison.names):
        cells = [cells[i] for cells in comparison.rows.values()]
        points = sorted(
            ((c.trainable_parameters, c.mean, c) for c in cells if c is not None and c.trainable_parameters
             and c.mean is not None and math.isfinite(c.mean)), key=lambda point: point[0]
        )  # fmt: skip
        # Side by side, so that the intervals of runs of one size can be distinguished.
        xs = [x * 1.04 ** (i - (len(comparison.names) - 1) / 2) for x, _, _ in points]
        ys = [y for _, y, _ in points]
        ends = [c.interval if c.interval and all(map(math.isfinite, c.interval)) else (y, y) for _, y, c in points]
        errors = [[max(0.0, y - low) for y, (low, _) in zip(ys, ends, strict=True)],
                  [max(0.0, high - y) for y, (_, high) in zip(ys, ends, strict=True)]]  # fmt: skip
        colour, marker = STYLES[i % len(STYLES)][0], STYLES[(i + i // len(STYLES)) % len(STYLES)][1]
        label = drawable(numbers.shortened_middle(name, MOST_LETTERS))
        ax.errorbar(xs, ys, yerr=errors, color=colour, marker=marker, markersize=5, linewidth=1, capsize=2, label=label)
        for x, (_, y, c) in zip(xs, points, strict=True):
            if c.is_answer:
                ax.plot([x], [y], "o", color=INK, markerfacecolor="none", markersize=12, markeredgewidth=1.4)
    ax.margins(0.06)
    dress(ax)
    ax.set_xlabel("trainable parameters (log scale)", color=INK)
    ax.set_ylabel(f"test {numbers.words(comparison.metric)}", color=INK)
    ax.grid(axis="y", color=GRID, linewidth=0.7)
    ax.set_axisbelow(True)
    if comparison.names:
        columns = min(LEGEND_COLUMNS, len(comparison.names))
        figure.legend(loc="outside upper left", ncols=columns, frameon=False, fontsize=9, labelcolor=INK)
    return figure
