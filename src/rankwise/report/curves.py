"""The third figure: training and validation loss of every configuration, epoch by epoch."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from rankwise.report.labels import shorten_to
from rankwise.report.plot import number_ticks
from rankwise.report.points import BLUE, GRID, INK, MUTED, VERMILLION
from rankwise.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FILE = "curves.csv"
COLUMNS_READ = ("run", "step", "train_loss", "validation_loss")

PANELS_A_ROW = 4
"""Panels side by side."""

MOST_PANELS = 16
"""More configurations than that are not drawn; the file has them all."""

HIGHEST = 4.0
"""Losses above so many times the median run's highest one are cut off: one run that diverges would flatten the rest."""


@dataclass(frozen=True)
class Curve:
    """The losses of one run.

    Args:
        steps: Steps taken, at the end of each epoch.
        train: Mean training loss of the epoch.
        validation: Validation loss after it.
    """

    steps: list[int]
    train: list[float]
    validation: list[float]


def read_curves(directory: Path) -> dict[str, Curve]:
    """Read the curves of a run directory by run; none where there is no such file."""
    curves: dict[str, Curve] = {}
    try:
        with (directory / FILE).open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                run, step, train, validation = (row[name] for name in COLUMNS_READ)
                curve = curves.setdefault(run, Curve([], [], []))
                curve.steps.append(int(step))
                curve.train.append(float(train))
                curve.validation.append(float(validation))
    except OSError:
        return {}
    return curves


def panels(results: Results, curves: Mapping[str, Curve]) -> list[tuple[str, list[Curve]]]:
    """Return (label, curves of its runs at the chosen learning rate) of each configuration that has any."""
    found = [(c.label, [curves[run] for run in c.runs if run in curves]) for c in results.configurations]
    return [(label, of) for label, of in found if of]


def build_curves(results: Results, curves: Mapping[str, Curve], width: float) -> "Figure | None":
    """Return the figure: a panel for each configuration, all of one scale; None where there is nothing to draw.

    Args:
        results: The content of `results.json`.
        curves: From `read_curves`.
        width: In inches.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    every = panels(results, curves)
    shown = every[:MOST_PANELS]
    if not shown:
        return None
    across = min(PANELS_A_ROW, len(shown))
    down = -(-len(shown) // across)
    figure = Figure(figsize=(width, 1.0 + (3.4 if down == 1 and across == 1 else 1.9) * down), dpi=160)
    high = figure.get_size_inches()[1]
    axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    figure.subplots_adjust(
        left=0.62 / width, right=1 - 0.15 / width, top=1 - 0.85 / high, bottom=0.55 / high, wspace=0.12, hspace=0.32
    )
    for ax, (label, of) in zip(axes.flat, shown, strict=False):
        _draw_panel(ax, label, of)
    for ax in list(axes.flat)[len(shown) :]:
        ax.set_visible(False)
    # Where the last row has gaps, the panel above shows the steps.
    for ax in list(axes.flat)[max(0, len(shown) - across) : len(shown)]:
        ax.tick_params(labelbottom=True)
    first = axes.flat[0]
    top = _top(curve for _, of in shown for curve in of)
    if top is not None and top < first.get_ylim()[1]:
        first.set_ylim(top=top)
    first.yaxis.set_major_formatter(number_ticks(*first.get_ylim()))
    left_out = f", of the first {len(shown)} of {len(every)} configurations" if len(every) > len(shown) else ""
    heading = f"Loss by epoch{left_out}"
    figure.text(0.18 / width, 1 - 0.16 / high, heading, weight="bold", size=11.5, color=INK, va="top")
    figure.supxlabel("steps", fontsize=9, color=INK, y=0.08 / high)
    lines = [
        Line2D([], [], color=MUTED, linewidth=1.1, linestyle=(0, (4, 2)), label="training, mean of the epoch"),
        Line2D([], [], color=BLUE, linewidth=1.5, label="validation, after it"),
        Line2D([], [], color=VERMILLION, marker="o", markersize=3.2, linestyle="none", label="lowest"),
    ]
    figure.legend(
        handles=lines,
        loc="upper left",
        bbox_to_anchor=(0.1 / width, 1 - 0.34 / high),
        ncols=3,
        frameon=False,
        fontsize=8,
        labelcolor=INK,
        handlelength=2.2,
        columnspacing=1.4,
    )
    return figure


def _draw_panel(ax: "Axes", label: str, curves: Sequence[Curve]) -> None:
    """Draw the losses of one configuration's runs."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for curve in curves:
        alpha = max(0.35, 1 / len(curves))
        ax.plot(curve.steps, curve.train, color=MUTED, linewidth=1.1, linestyle=(0, (4, 2)), alpha=alpha)
        mark = "o" if len(curve.steps) == 1 else None
        ax.plot(curve.steps, curve.validation, color=BLUE, linewidth=1.5, alpha=alpha, marker=mark)
        # A run that diverged has losses that are no numbers.
        finite = [i for i, loss in enumerate(curve.validation) if math.isfinite(loss)]
        if finite:
            best = min(finite, key=curve.validation.__getitem__)
            ax.plot(curve.steps[best], curve.validation[best], "o", color=VERMILLION, markersize=3.2, zorder=4)
    title = ax.set_title(label, fontsize=9, color=INK, loc="left")
    shorten_to(title, ax.get_window_extent().width)
    ax.grid(axis="y", color=GRID, linewidth=0.7)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(MUTED)
    ax.tick_params(labelcolor=INK, labelsize=8, length=2.5, color=MUTED)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _steps(x)))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=5))


def _top(curves: Iterable[Curve]) -> float | None:
    """The highest loss to show: all of them, unless some run's lie far above the others'."""
    highest = [
        max(finite) for curve in curves if (finite := [*filter(math.isfinite, (*curve.train, *curve.validation))])
    ]
    if not highest or max(highest) <= HIGHEST * median(highest):
        return None
    return HIGHEST * median(highest)


def _steps(x: float) -> str:
    """Steps in few letters.

    Examples:
        >>> _steps(950), _steps(20000), _steps(2.5e6)
        ('950', '20k', '2.5M')
    """
    if x >= 1e6:
        return f"{x / 1e6:g}M"
    return f"{x / 1e3:g}k" if x >= 1e4 else f"{x:g}"
