"""Draw one scene into matplotlib axes: marks, bars, band, legend, labels."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

from rankwise.report.labels import Box, PointLabel, box_of, covered_share, meets, place_labels, shorten_to
from rankwise.report.points import BLUE, GRID, INK, MUTED, PAPER, PlotPoint, Scene

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.ticker import Formatter

TEXT_SIZE = 9

STATE_MARKS: dict[str, tuple[str, str]] = {"open": ("", PAPER), "not": ("X", PAPER)}
"""Marker and fill by what is known: open is hollow, shown not to lie within the tolerance a cross."""

STATE_WORDS = {
    "shown": "shown to be within the tolerance",
    "open": "open: neither shown",
    "not": "shown not to be within",
}

GAP = 4
"""Pixels between a text and the ends of a grid line."""

DIRECT_LABELS = 2
"""Label up to this many baselines directly; use a legend for more, since markers overlap."""

MOST_IN_LEGEND = 5
"""Of the baselines; the others are counted there."""

LARGER_MARKS = 5
"""Baselines whose marks in a legend grow from one to the next, since markers overlap."""

LEGEND_WIDTH = 0.55
"""Of the axes' width, of a text in the legend; longer ones lose their middle."""

LEGEND_HEIGHT = 0.75
"""Of the axes' height, that is cleared for a legend."""

LINE_STEP = 6
"""Points between two places of a line that a label should not cover."""

NEAR = 0.3
"""Of the height of marks, bars and band: so far beyond, adapters that were cut are shown too."""

PLAIN_NUMBERS = 1e-4, 1e6
"""Ticks of y that reach beyond are written with powers of ten."""


def draw_scene(ax: "Axes", scene: Scene, *, relative: bool, higher_is_better: bool) -> None:
    """Draw everything but the words around the axes.

    Args:
        ax: Empty, of its final size.
        scene: With at least one point.
        relative: Whether both axes are in percent.
        higher_is_better: Where the empty corner is.
    """
    _set_limits(ax, scene)
    dress(ax, relative=relative)
    if scene.band is not None:
        ax.axhspan(min(scene.band), max(scene.band), color=scene.band_colour, alpha=0.13, linewidth=0, zorder=0)
        ax.axhline(scene.band[0], color=scene.band_colour, linewidth=0.8, zorder=1)
    for line in scene.lines:
        ax.plot([p.x for p in line], [p.y for p in line], color=line[0].colour, linewidth=1, alpha=0.45, zorder=2)
    for cut in (scene.compressed, scene.repaired):
        _draw_compressed(ax, cut)
    for point in scene.published:
        ax.plot([point.x], [point.y], **_published_mark(), zorder=3)
    for point in scene.lora:
        _mark(ax, point, size=6.5, zorder=4)
    with_legend = len(scene.others) > DIRECT_LABELS
    for i, point in enumerate(scene.others):
        # Of several on one spot the first is filled, smallest and on top; the others show around it.
        _mark(ax, point, size=_size(i, with_legend), zorder=5 - 0.1 * i, hollow=with_legend and i > 0)
    hard, soft = _obstacles(ax, scene, with_legend)
    if with_legend or scene.published or scene.compressed or _states(scene) or len(scene.lines) > 1:
        legend = _legend(ax, scene, with_legend, higher_is_better, hard, soft)
        if any(meets(legend, one) for one in hard):
            _clear_a_strip(ax, legend, higher_is_better)
            hard, soft = _obstacles(ax, scene, with_legend)
            legend = _legend(ax, scene, with_legend, higher_is_better, hard, soft)
        hard.append(legend)
    if scene.band is not None:
        hard += _name_band(ax, scene.band, hard, soft)
    # The important first: a label keeps its place once it has one.
    named = sorted((*(() if with_legend else scene.others), *scene.lora), key=lambda point: not point.is_answer)
    cut_ones = (*scene.compressed, *scene.repaired)
    ships = [PointLabel("to ship", (p.x, p.y), p.colour, bold=True) for p in cut_ones if p.is_answer]
    place_labels(ax, [*ships, *map(_label, named)], hard, soft, TEXT_SIZE)
    _grid(ax)


def _draw_compressed(ax: "Axes", cut: Sequence[PlotPoint]) -> None:
    """Draw adapters that were cut as a line; a band for their intervals, as bars would lie over the others'."""
    if not cut:
        return
    xs, colour = [p.x for p in cut], cut[0].colour
    ax.plot(xs, [p.y for p in cut], color=colour, linewidth=1.1, linestyle=(0, (4, 2)), zorder=2)
    low, high = ([(p.interval or (p.y, p.y))[end] for p in cut] for end in (0, 1))
    ax.fill_between(xs, low, high, color=colour, alpha=0.1, linewidth=0, zorder=0.2)
    for point in cut:
        _mark(ax, replace(point, interval=None, is_answer=False), size=5, zorder=3.5)
        if point.is_answer:
            ax.plot([point.x], [point.y], "o", color=colour, markerfacecolor="none", markersize=16, zorder=6)


def _set_limits(ax: "Axes", scene: Scene) -> None:
    ax.set_xscale("log")
    xs = [point.x for point in scene.points]
    margin = 1.7 if max(xs) > min(xs) else 4
    ax.set_xlim(min(xs) / margin, max(xs) * margin)
    ys = [y for point in scene.points for y in (point.y, *(point.interval or ()))] + list(scene.band or ())
    low, high = min(ys), max(ys)
    # Adapters that lost much when they were cut may lie below the figure; those near its edge are shown.
    reach = NEAR * (high - low)
    near = [p.y for p in (*scene.compressed, *scene.repaired) if low - reach <= p.y <= high + reach]
    low, high = min(low, *near, low), max(high, *near, high)
    room = max(0.1 * (high - low), 0.005 * max(abs(low), abs(high)), 1e-9)
    ax.set_ylim(low - room, high + room)


def dress(ax: "Axes", *, relative: bool = False) -> None:
    """Give axes their ticks, x on a log scale, and the figures' colours; limits must be final."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    low, high = ax.get_xlim()
    decades = math.log10(high / low)
    steps = (1, 2, 5) if decades < 2.6 else (1, 3) if decades < 4 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1, max(1, round(decades / 7)))
    ticks = [step * 10.0**power for power in powers for step in steps]
    ax.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,g}%" if relative else _short_count(x)))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
    ax.yaxis.set_major_formatter(number_ticks(*ax.get_ylim(), percent=relative))
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(MUTED)
    ax.tick_params(labelcolor=INK, labelsize=TEXT_SIZE, length=3, color=MUTED)


def number_ticks(low: float, high: float, *, percent: bool = False) -> "Formatter":
    """Write each tick in full, so that none depends on a note at the axis' end; huge and tiny ones in powers of ten."""
    from matplotlib.ticker import FuncFormatter, PercentFormatter, ScalarFormatter

    if PLAIN_NUMBERS[0] <= max(abs(low), abs(high)) < PLAIN_NUMBERS[1]:
        return PercentFormatter() if percent else ScalarFormatter(useOffset=False)
    return FuncFormatter(lambda y, _: f"{re.sub(r'e([+-])0*', _exponent, f'{y:.3g}')}{'%' * percent}")


def _exponent(sign: "re.Match[str]") -> str:
    """1e-07 as 1e-7, and 1e+28 as 1e28: there is little room at the left."""
    return f"e{sign[1].strip('+')}"


def _grid(ax: "Axes") -> None:
    """Draw a line at each tick of y, interrupted where text stands; to be called last."""
    from matplotlib.collections import LineCollection

    legend = ax.get_legend()
    texts = [box_of(text) for text in ax.texts if text.get_text()] + ([] if legend is None else [box_of(legend)])
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    lines: list[list[tuple[float, float]]] = []
    for y in (float(tick) for tick in ax.get_yticks() if low <= tick <= high):
        (start, height), (end, _) = ax.transData.transform([(left, y), (right, y)]).tolist()
        behind = sorted((box[0] - GAP, box[2] + GAP) for box in texts if box[1] - GAP <= height <= box[3] + GAP)
        for text_start, text_end in [*behind, (end, end)]:
            if text_start > start:
                ends = ax.transData.inverted().transform([(start, height), (text_start, height)])
                lines.append([(float(x), y) for x, _ in ends])
            start = max(start, text_end)
    ax.add_collection(LineCollection(lines, colors=GRID, linewidths=0.8, zorder=0.5), autolim=False)


def _short_count(x: float) -> str:
    """1,000 to 500,000 in full, then 1M, 1B."""
    for unit, letter in ((1e9, "B"), (1e6, "M")):
        if x >= unit:
            return f"{x / unit:g}{letter}"
    return f"{x:,.0f}"


def _mark(ax: "Axes", point: PlotPoint, size: float, zorder: float, hollow: bool = False) -> None:
    bars = None
    if point.interval is not None:
        bars = [[max(0.0, point.y - point.interval[0])], [max(0.0, point.interval[1] - point.y)]]
    marker, face = STATE_MARKS.get(point.state, (point.marker, point.colour))
    face = "none" if hollow else face
    ax.errorbar(
        [point.x],
        [point.y],
        yerr=bars,
        fmt=marker or point.marker,
        color=point.colour,
        markerfacecolor=face,
        markersize=size,
        elinewidth=1.2,
        capsize=2.5,
        zorder=zorder,
    )
    if point.is_answer:
        ring: dict[str, Any] = {"color": INK, "markerfacecolor": "none", "markersize": 13, "markeredgewidth": 1.6}
        ax.plot([point.x], [point.y], "o", **ring, zorder=6)


def _states(scene: Scene) -> list[str]:
    """The legend of the marks, where they differ."""
    present = {point.state for point in scene.points}
    return [state for state in STATE_WORDS if state in present] if present & {"open", "not"} else []


def _published_mark() -> dict[str, Any]:
    return {"marker": "o", "color": MUTED, "markerfacecolor": "none", "markersize": 9, "linestyle": "none"}


def _label(point: PlotPoint) -> PointLabel:
    colour = INK if point.colour == BLUE else point.colour
    place = (point.x, point.y)
    if point.is_answer:
        return PointLabel(f"{point.label}, the answer", place, colour, bold=True, short=point.label)
    return PointLabel(point.label, place, colour)


def _size(i: int, with_legend: bool) -> float:
    """Of the mark of the baseline i, in points; in a legend each is larger than the one before, up to a limit."""
    return 7 + 2.5 * min(i, LARGER_MARKS) * with_legend


def _obstacles(ax: "Axes", scene: Scene, with_legend: bool) -> tuple[list[Box], list[Box]]:
    """Boxes in pixels: marks and bars, not to be covered, and curve and line, better not covered."""
    figure = ax.get_figure(root=True)
    pixel = (figure.dpi if figure else 72) / 72

    def at(x: float, y: float) -> tuple[float, float]:
        x, y = ax.transData.transform((x, y)).tolist()
        return x, y

    def around(centre: tuple[float, float], reach: float) -> Box:
        (x, y), d = centre, reach * pixel
        return x - d, y - d, x + d, y + d

    (low, high), (left, right) = ax.get_ylim(), ax.get_xlim()
    cut = [p for p in (*scene.compressed, *scene.repaired) if low <= p.y <= high and left <= p.x <= right]
    hard = [around(at(p.x, p.y), 7.5 if p.is_answer else 5.5) for p in (*scene.points, *cut)]
    hard += [around(at(p.x, p.y), 1 + _size(i, with_legend) / 2) for i, p in enumerate(scene.others)]
    soft: list[Box] = []
    for p in scene.points:
        if p.interval is not None:
            (x, low), (_, high) = at(p.x, min(p.y, p.interval[0])), at(p.x, max(p.y, p.interval[1]))
            hard.append((x - 2.5 * pixel, low, x + 2.5 * pixel, high))
    for a, b in (pair for line in (*scene.lines, scene.compressed, scene.repaired) for pair in pairwise(line)):
        (x0, y0), (x1, y1) = at(a.x, a.y), at(b.x, b.y)
        n = max(12, math.ceil(math.hypot(x1 - x0, y1 - y0) / (LINE_STEP * pixel)))
        soft += [around((x0 + (x1 - x0) * t / n, y0 + (y1 - y0) * t / n), 0.5) for t in range(1, n)]
    if scene.band is not None:
        low, high = ax.get_xlim()
        (left, y), (right, _) = at(low, scene.band[0]), at(high, scene.band[0])
        soft.append((left, y - pixel, right, y + pixel))
    return hard, soft


def _legend(
    ax: "Axes", scene: Scene, with_others: bool, higher_is_better: bool, hard: list[Box], soft: list[Box]
) -> Box:
    """Draw the legend in the corner where it covers least; return its box.

    Long names lose their middle, and of many baselines the last ones are counted.
    """
    from matplotlib.lines import Line2D

    marks: list[tuple[str, Line2D]] = []
    several = len(scene.lines) > 1
    beside = with_others or scene.published or (scene.compressed and not _states(scene))
    for line in scene.lines if beside or several else ():
        style = {"color": line[0].colour, "marker": line[0].marker, "linestyle": "-" if several else "none"}
        marks.append((line[0].kind or "LoRA", Line2D([], [], **style)))
    for state in _states(scene):
        marker, face = STATE_MARKS.get(state, ("o", BLUE))
        known: dict[str, Any] = {"color": BLUE, "marker": marker or "o", "markerfacecolor": face}
        marks.append((STATE_WORDS[state], Line2D([], [], **known, linestyle="none")))
    others = scene.others if with_others else ()
    for i, point in enumerate(others[:MOST_IN_LEGEND]):
        face = "none" if i else point.colour
        style: dict[str, Any] = {
            "color": point.colour,
            "marker": point.marker,
            "markerfacecolor": face,
            "linestyle": "none",
        }
        marks.append((point.label, Line2D([], [], **style, markersize=7)))
    if len(others) > MOST_IN_LEGEND:
        marks.append((f"and {len(others) - MOST_IN_LEGEND} more", Line2D([], [], linestyle="none")))
    for name, cut in (("compressed", scene.compressed), ("compressed and repaired", scene.repaired)):
        if cut:
            style: dict[str, Any] = {"color": cut[0].colour, "marker": cut[0].marker, "linestyle": (0, (4, 2))}
            marks.append((name, Line2D([], [], **style, markersize=5, linewidth=1)))
    if scene.published:
        marks.append(("published", Line2D([], [], **_published_mark())))

    frame = box_of(ax)
    room = LEGEND_WIDTH * (frame[2] - frame[0])

    def draw(corner: Any) -> Box:
        legend = ax.legend(
            [mark for _, mark in marks],
            [text for text, _ in marks],
            loc=corner,
            frameon=False,
            fontsize=TEXT_SIZE - 0.5,
            labelcolor=INK,
        )
        for text in legend.get_texts():
            shorten_to(text, room)
        return box_of(legend)

    empty, other = ("lower", "upper") if higher_is_better else ("upper", "lower")  # the curve levels off on the right
    corners = (f"{empty} right", f"{other} left", f"{other} right", f"{empty} left")
    cost: dict[str, int] = {}
    for corner in corners:
        box = draw(corner)
        cost[corner] = 10 * sum(covered_share(box, one) > 0 for one in hard) + sum(
            covered_share(box, one) > 0 for one in soft
        )
    return draw(min(corners, key=cost.__getitem__))


def _clear_a_strip(ax: "Axes", legend: Box, higher_is_better: bool) -> None:
    """Widen y, where the curve doesn't level off, by what a legend takes that would cover marks."""
    (low, high), frame = ax.get_ylim(), box_of(ax)
    share = min(LEGEND_HEIGHT, 1.1 * (legend[3] - legend[1]) / (frame[3] - frame[1]))
    wider = (high - low) / (1 - share)
    ax.set_ylim(*((high - wider, high) if higher_is_better else (low, low + wider)))


def _name_band(ax: "Axes", band: tuple[float, float], hard: list[Box], soft: list[Box]) -> list[Box]:
    """Label the band inside it, or beyond its edge, as far left as it meets nothing; return the text's box.

    It is left out where there is no such place.
    """
    text = ax.text(
        0.01, band[0], "within the tolerance", transform=ax.get_yaxis_transform(), fontsize=TEXT_SIZE - 0.5, color=MUTED
    )
    beyond = "top" if band[1] < band[0] else "bottom"
    heights = ((0.5 * sum(band), "center"), (band[1], beyond), (band[0], "bottom" if beyond == "top" else "top"))
    frame, (low, high) = box_of(ax), ax.get_ylim()
    width = (box_of(text)[2] - box_of(text)[0]) / (frame[2] - frame[0])
    lefts = [0.01 + (0.98 - width) * i / 12 for i in range(13)]
    # At the left end with the curves clear if that can be, else wherever marks and texts are.
    for avoided, ((y, alignment), left) in product((hard + soft, hard), product(heights, lefts)):
        text.set(x=left, y=min(max(y, low), high), verticalalignment=alignment)
        box = box_of(text)
        inside = frame[1] <= box[1] and box[3] <= frame[3]
        if alignment == "center":
            ends = [ax.transData.transform((1, end))[1] for end in band]
            inside &= abs(ends[0] - ends[1]) >= box[3] - box[1]
        if inside and not any(meets(box, other) for other in avoided):
            return [box]
    text.remove()
    return []
