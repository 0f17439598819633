"""The figures: the metric against trainable parameters, both relative to the baseline, and the losses by epoch.

Colours are Okabe & Ito's, which colour-blind readers can distinguish; shapes differ too.

References:
    Okabe & Ito, Color Universal Design, 2008. https://jfly.uni-koeln.de/color/
"""

import io
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rankwise.errors import OutputError
from rankwise.report import numbers
from rankwise.report.curves import Curve, build_curves, read_curves
from rankwise.report.plot import draw_scene
from rankwise.report.points import INK, MUTED, scene
from rankwise.report.words import stands_alone
from rankwise.results import Results
from rankwise.writing import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURES = ("accuracy_vs_parameters", "relative")
CURVES = "curves"
KINDS = ("png", "svg")
MOST_LETTERS = 48
"""Of a name in a title."""
MARGIN = 0.05
"""Inches that stay free at the left end of a figure."""

FULL_SIZE, PAGE_SIZE = (7.4, 4.8), (5.6, 4.4)
"""Inches. The page's are small, so that their text is large enough on a phone."""


ENDINGS = ("png", "svg", "pdf")
"""Endings of a file that a user names for a figure."""


def figure_kind(path: Path) -> str:
    """The kind of figure that a file's name asks for, one of `ENDINGS`.

    Raises:
        OutputError: It asks for none of them.

    Examples:
        >>> figure_kind(Path("spectra.SVG"))
        'svg'
    """
    kind = path.suffix.removeprefix(".").lower()
    if kind not in ENDINGS:
        raise OutputError(f"{path} ends in none of {', '.join(f'.{kind}' for kind in ENDINGS)}; name such a file.")
    return kind


def draw_figures(results: Results, directory: str | Path) -> list[Path]:
    """Draw the figures as PNG and SVG; the same results give the same bytes.

    A figure for which there is nothing to draw (no test metric yet; nothing to be relative to; one configuration alone,
    which has no trade-off) is left out.

    Args:
        results: The content of `results.json`.
        directory: Where to.

    Returns:
        The files written: `accuracy_vs_parameters.png|svg`, `relative.png|svg`, `curves.png|svg`.

    Raises:
        OutputError: The directory can't be written.
    """
    written: list[Path] = []
    curves = read_curves(Path(directory))
    for name in (*FIGURES, CURVES):
        with own_style():
            if name == CURVES:
                figure = build_curves(results, curves, FULL_SIZE[0])
            else:
                figure = build_figure(results, name, FULL_SIZE)
            if figure is not None:
                written += save_figure(figure, Path(directory), name)
                continue
            for kind in KINDS:
                (Path(directory) / f"{name}.{kind}").unlink(missing_ok=True)  # one of earlier results
    return written


def save_figure(figure: "Figure", directory: Path, name: str) -> list[Path]:
    """Write a figure as PNG and SVG; the same figure gives the same bytes."""
    paths = [directory / f"{name}.{kind}" for kind in KINDS]
    for path, kind in zip(paths, KINDS, strict=True):
        with replacing(path) as temporary:
            figure.savefig(temporary, format=kind, metadata=_no_metadata(kind))
    return paths


def figure_svg(results: Results, name: str) -> str | None:
    """Return one figure as SVG text in the page's size, or None where there is nothing to draw.

    Args:
        results: The content of `results.json`.
        name: One of `FIGURES`.
    """
    with own_style():
        return as_svg(build_figure(results, name, PAGE_SIZE))


def curves_svg(results: Results, curves: Mapping[str, Curve]) -> str | None:
    """Return the losses by epoch as SVG text, in the same way.

    Args:
        results: The content of `results.json`.
        curves: From `read_curves`.
    """
    with own_style():
        return as_svg(build_curves(results, curves, FULL_SIZE[0]))


def as_svg(figure: "Figure | None") -> str | None:
    """Return a figure as SVG text; None where there is none."""
    if figure is None:
        return None
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata=_no_metadata("svg"), transparent=True)
    return text.getvalue()


def _no_metadata(kind: str) -> dict[str, None]:
    """No date and no version: the same results must give the same bytes."""
    return {"Software": None} if kind == "png" else {"Date": None, "Creator": None, "Format": None, "Type": None}


@contextmanager
def own_style() -> Generator[None]:
    """matplotlib's defaults, whatever the user's own style file says, and ids in SVG that don't change."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.hashsalt": "rankwise", "font.size": 10, "axes.linewidth": 0.8})
        # A "$" in a name is a dollar sign.
        matplotlib.rcParams["text.parse_math"] = False
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the font has no such letter: a box
            yield


def build_figure(results: Results, name: str, size: tuple[float, float]) -> "Figure | None":
    """Return one of `FIGURES`, of this size in inches, or None where there is nothing to draw."""
    from matplotlib.figure import Figure

    relative = name == "relative"
    shown = scene(results, relative=relative)
    if (not shown.lora and not shown.others) or stands_alone(results):
        return None
    figure = Figure(figsize=size, dpi=160)
    wide, high = size
    ax = figure.add_axes((0.85 / wide, 0.62 / high, 1 - 1.05 / wide, 1 - 1.32 / high))
    metric = numbers.words(results.metric.name)
    title = f"Test {metric} against trainable parameters"
    if relative and results.relative_to is not None:
        title = f"Relative to {numbers.shortened_middle(results.relative_to.label, MOST_LETTERS)}"
    _heading(figure, title, _subtitle(results))
    share = "% of its " if relative else ""
    ax.set_xlabel(f"{share}trainable parameters (log scale)", color=INK)
    ax.set_ylabel(f"{share}test {metric}", color=INK)
    draw_scene(ax, shown, relative=relative, higher_is_better=results.metric.higher_is_better)
    _make_room(ax)
    return figure


def _make_room(ax: "Axes") -> None:
    """Move the left end of the axes where tick labels are so wide that the label beside them would be cut off."""
    figure = ax.get_figure(root=True)
    box = ax.yaxis.get_tightbbox()
    if figure is None or box is None:
        return
    missing = MARGIN - box.x0 / figure.dpi
    if missing > 0:
        left, bottom, wide, high = ax.get_position().bounds
        share = missing / figure.get_figwidth()
        ax.set_position((left + share, bottom, wide - share, high))


def _heading(figure: "Figure", title: str, subtitle: str) -> None:
    """Write title and subtitle at the top left, smaller where they would not fit."""
    wide, high = figure.get_size_inches()
    for text, down, size, weight, colour in ((title, 0.18, 11.5, "bold", INK), (subtitle, 0.42, 8.5, "normal", MUTED)):
        written = figure.text(0.18 / wide, 1 - down / high, text, weight=weight, size=size, color=colour, va="top")
        written.set_fontsize(min(size, size * (wide - 0.3) * figure.dpi / written.get_window_extent().width))


def _subtitle(results: Results) -> str:
    seeds = {c.n_seeds for c in results.configurations if c.mean is not None}
    many = f"{min(seeds)} to {max(seeds)} seeds" if len(seeds) > 1 else f"{min(seeds)} seed{'s' * (seeds != {1})}"
    parts = [f"means of {many} with 95% intervals" if seeds != {1} else "1 seed, 95% intervals of test sampling only"]
    if results.base.metric is not None:
        parts.append(f"the base before fine-tuning: {numbers.metric(results.base.metric)}")
    if not results.metric.higher_is_better:
        parts.append("lower is better")
    return "; ".join(parts)
