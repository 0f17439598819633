"""The figure: similarity of leading directions between ranks and between seeds, as the paper's figures 3 and 4."""

from pathlib import Path
from typing import TYPE_CHECKING

from rankwise.report.figures import as_svg, own_style, save_figure
from rankwise.report.points import INK, MUTED
from rankwise.report.subspaces.compared import DirectionOverlap, Subspaces

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

NAME = "subspaces"

MOST_MODULES = 3
"""Rows: the first module, the one in the middle, the last."""


def draw_subspaces(found: Subspaces, directory: Path) -> list[Path]:
    """Write the figure into a run directory, as PNG and SVG.

    Raises:
        OutputError: It can't be written.
    """
    with own_style():
        return save_figure(build_subspaces(found), directory, NAME)


def subspaces_svg(found: Subspaces) -> str | None:
    """Return the figure as SVG text."""
    with own_style():
        return as_svg(build_subspaces(found))


def build_subspaces(found: Subspaces) -> "Figure":
    """Return the figure: a row for each module shown, a column for each comparison.

    Args:
        found: At least one comparison.
    """
    from matplotlib.figure import Figure

    paths = list(found.overlaps[0].by_module)
    places = sorted({0, len(paths) // 2, len(paths) - 1})[:MOST_MODULES]
    shown = [paths[i] for i in places]
    down, across = len(shown), len(found.overlaps)
    figure = Figure(figsize=(1.4 + 3.4 * across, 1.1 + 2.3 * down), dpi=160, layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - 0.5 / (1.1 + 2.3 * down)))  # type: ignore[union-attr]
    axes = figure.subplots(down, across, squeeze=False)
    images: list[AxesImage] = []
    for row, path in zip(axes, shown, strict=True):
        for ax, overlap in zip(row, found.overlaps, strict=True):
            images.append(_draw(ax, overlap, path))
    figure.colorbar(images[-1], ax=axes, label="similarity of the first i and j directions", pad=0.02)
    high = figure.get_size_inches()[1]
    heading = "Which directions the updates share"
    figure.text(0.02, 1 - 0.12 / high, heading, weight="bold", size=11.5, color=INK, va="top")
    return figure


def _draw(ax: "Axes", overlap: DirectionOverlap, path: str) -> "AxesImage":
    values = overlap.by_module[path]
    i, j = values.shape
    image = ax.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto", extent=(0.5, j + 0.5, i + 0.5, 0.5))
    ax.set_title(
        f"{path}: {overlap.leading[path]:.2f} of the first 8, random {overlap.random[path]:.2f}"
        if min(i, j) >= 8
        else f"{path}: {overlap.leading[path]:.2f}, random {overlap.random[path]:.2f}",
        fontsize=8,
        color=INK,
        loc="left",
    )
    ax.set_ylabel(f"i ({overlap.one})", fontsize=7.5, color=INK)
    ax.set_xlabel(f"j ({overlap.other})", fontsize=7.5, color=INK)
    ax.tick_params(labelsize=7, color=MUTED)
    return image
