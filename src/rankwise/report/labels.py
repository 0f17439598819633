"""Place labels next to points so that they overlap neither points nor each other."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rankwise.report.numbers import shortened_middle

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.text import Text

Box = tuple[float, float, float, float]
"""Left, low, right, high, in pixels."""

LEADER_FROM = 16
"""A label further off than this (points, 1/72 inch) gets a thin line to its point."""

MARK_REACH = 11
"""Reach of the largest mark, from its centre to a corner of its box, in points; a leader may run through its own."""

LEADER_STEPS = 20
"""Points along a leader at which it is looked at."""

MOST_LABELS = 40
"""Of one figure: the first, and others evenly chosen. More can't be read."""

PASSES = 3
"""Rounds in which every label may move to a better place."""

SHIFT = {"left": 0.0, "bottom": 0.0, "center": 0.5, "right": 1.0, "top": 1.0}
"""Where the anchor lies in a text, as a share of its width or height, by alignment."""

COVERED, MET, CROSSED, TOUCHED = 1000.0, 300.0, 60.0, 25.0
"""Costs, in points of distance: of covering a label, a mark, a bar or the edge of the axes (by the share covered, and
for meeting it at all); of a leader through a label or mark; of text over a curve."""

MOST_WIDTH = 0.42
"""Of the axes' width, of a label; longer ones lose their middle."""

FEWEST_LETTERS = 5
"""Of a shortened text."""

EPSILON = 1e-6
"""Of a pixel: boxes that share an edge don't meet."""


@dataclass(frozen=True)
class PointLabel:
    """A text and the point it belongs to.

    Args:
        text: What to write.
        xy: The point, in data coordinates.
        colour: Of the text.
        bold: Whether it stands out.
        short: What to write where there is no room for the text; None for nothing.
    """

    text: str
    xy: tuple[float, float]
    colour: str
    bold: bool = False
    short: str | None = None


@dataclass(frozen=True)
class LabelPosition:
    """Where a label can go: offset of its anchor in points, alignment there, and how far off that is."""

    offset: tuple[float, float]
    ha: Any
    va: Any
    distance: float


@dataclass(frozen=True)
class PlacedLabel:
    """A label at a place: its box with a little room, the text's own, and points along its leader (none when it
    stands close)."""

    place: LabelPosition
    box: Box
    text: Box
    leader: tuple[tuple[float, float], ...]


def _places() -> Iterator[LabelPosition]:
    """Near ones first; at one distance above first, then the corners and sides, below last."""
    for distance in (7, 11, 16, 22, 29, 37, 46, 58, 74, 94):
        for dx, dy in ((0, 1), (1, 1), (-1, 1), (1, 0), (-1, 0), (0, -1), (1, -1), (-1, -1)):
            reach = distance if dx == 0 or dy == 0 else 0.75 * distance
            ha = {0: "center", 1: "left", -1: "right"}[dx]
            va = {0: "center", 1: "bottom", -1: "top"}[dy]
            yield LabelPosition((float(dx * reach), float(dy * reach)), ha, va, float(distance + 2 * (dy < 0)))


LABEL_PLACES = tuple(_places())


def place_labels(
    ax: "Axes", labels: Sequence[PointLabel], hard: Sequence[Box], soft: Sequence[Box], size: float
) -> None:
    """Write each label at the cheapest of a fixed set of places around its point.

    One label after the other takes the best place that is left, the first given first, then each may move again.
    A label that would still meet another, a hard box or the edge is left out: a figure of a hundred points has no room
    for a hundred names. The same input gives the same places.

    Args:
        ax: Where; limits and size must be final.
        labels: What to write, the most important first. Long ones are shortened.
        hard: Boxes not to cover.
        soft: Boxes better not covered.
        size: Of the text, in points.
    """
    figure = ax.get_figure(root=True)
    if figure is None:
        return
    frame = box_of(ax)
    if len(labels) > MOST_LABELS:
        labels = [labels[i] for i in np.linspace(0, len(labels) - 1, MOST_LABELS).astype(int)]
    texts = [
        ax.annotate(
            label.text,
            label.xy,
            xytext=(0, 0),
            textcoords="offset points",
            color=label.colour,
            fontsize=size,
            fontweight="bold" if label.bold else "normal",
            zorder=6,
        )
        for label in labels
    ]
    candidates: list[list[PlacedLabel]] = []
    for label, text in zip(labels, texts, strict=True):
        shorten_to(text, MOST_WIDTH * (frame[2] - frame[0]))
        x, y = ax.transData.transform(label.xy).tolist()
        extent = text.get_window_extent()
        candidates.append([_put(place, x, y, extent.width, extent.height, figure.dpi / 72) for place in LABEL_PLACES])
    chosen = choose_places(candidates, frame, hard, soft)
    clear = clear_of_all(chosen, frame, hard)
    shorter = [
        label if ok or label.short is None else replace(label, text=label.short, short=None)
        for label, ok in zip(labels, clear, strict=True)
    ]
    if shorter != list(labels):
        for text in texts:
            text.remove()
        place_labels(ax, shorter, hard, soft, size)
        return
    for i, (label, text) in enumerate(zip(labels, texts, strict=True)):
        if not clear[i]:
            text.remove()
            continue
        place = chosen[i].place
        text.set_position(place.offset)
        text.set_horizontalalignment(place.ha)
        text.set_verticalalignment(place.va)
        if chosen[i].leader:
            ax.annotate(
                "",
                label.xy,
                xytext=(0.92 * place.offset[0], 0.92 * place.offset[1]),
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": label.colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4},
                zorder=2,
            )


def choose_places(
    candidates: Sequence[Sequence[PlacedLabel]], frame: Box, hard: Sequence[Box], soft: Sequence[Box]
) -> list[PlacedLabel]:
    """Return the place of each label.

    Args:
        candidates: For each label its possible places, equally many.
        frame: What no label may leave.
        hard: Boxes not to cover.
        soft: Boxes better not covered.
    """
    if not candidates:
        return []
    boxes = np.array([[placed.box for placed in places] for places in candidates])
    leaders = np.full((*boxes.shape[:2], LEADER_STEPS, 2), np.nan)
    for i, places in enumerate(candidates):
        for j, placed in enumerate(places):
            if placed.leader:
                leaders[i, j, : len(placed.leader)] = placed.leader
    # What does not depend on the other labels is counted once.
    own = np.array([[placed.place.distance for placed in places] for places in candidates])
    own += COVERED * (1 - _overlaps(boxes, np.array([frame]))[..., 0])
    # What lies further off than a label reaches costs nothing and is left out.
    reach = np.concatenate([boxes[..., :2].min(1), boxes[..., 2:].max(1)], axis=1)
    for i in range(len(candidates)):
        fixed, light = _near(reach[i], hard), _near(reach[i], soft)
        covered = _overlaps(boxes[i], fixed)
        own[i] += (
            COVERED * covered.sum(-1) + MET * (covered > 0).sum(-1) + CROSSED * _crosses(leaders[i], fixed).any(-1)
        )
        own[i] += TOUCHED * (_overlaps(boxes[i], light) > 0).sum(-1)
    close = _overlaps(reach, reach) > 0
    np.fill_diagonal(close, False)
    chosen = np.full(len(candidates), -1)
    for turn in range(PASSES):
        # The first one, the most important, never gives way to the others.
        for i in range(min(turn, 1), len(candidates)):
            others = np.flatnonzero((chosen >= 0) & close[i])
            theirs, their_leaders = boxes[others, chosen[others]], leaders[others, chosen[others]]
            crossed = _crosses(leaders[i], theirs) | _crosses(their_leaders, boxes[i]).T
            cost = own[i] + COVERED * _overlaps(boxes[i], theirs).sum(-1) + CROSSED * crossed.sum(-1)
            chosen[i] = cost.argmin()
    return [places[j] for places, j in zip(candidates, chosen, strict=True)]


def clear_of_all(chosen: Sequence[PlacedLabel], frame: Box, hard: Sequence[Box]) -> list[bool]:
    """Tell of each placed label whether its text lies in the frame and meets no hard box and no earlier clear label.

    Args:
        chosen: The labels, the most important first.
        frame: What no label may leave.
        hard: Boxes not to be met.
    """
    taken, clear = list(hard), list[bool]()
    for placed in chosen:
        box = placed.text
        inside = frame[0] <= box[0] and frame[1] <= box[1] and box[2] <= frame[2] and box[3] <= frame[3]
        clear.append(bool(inside) and not any(meets(box, other) for other in taken))
        if clear[-1]:
            taken.append(box)
    return clear


def _near(reach: np.ndarray, boxes: Sequence[Box]) -> np.ndarray:
    """Return those of the boxes that a label can touch: (n, 4)."""
    array = np.array(boxes).reshape(-1, 4)
    return array[(_overlaps(array, reach[None])[:, 0] > 0)] if len(array) else array


def _overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the share of each box that each other one covers: (..., 4) and (n, 4) to (..., n)."""
    low = np.maximum(boxes[..., None, :2], others[:, :2])
    high = np.minimum(boxes[..., None, 2:], others[:, 2:])
    area = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    return (high - low).clip(min=0).prod(-1) / np.maximum(area, 1e-9)[..., None]


def _crosses(leaders: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Test which leaders cross which boxes: (..., steps, 2) and (n, 4) to (..., n)."""
    x, y = leaders[..., None, :, 0], leaders[..., None, :, 1]
    left, low, right, high = (boxes[:, i, None] for i in range(4))
    return np.any((left <= x) & (x <= right) & (low <= y) & (y <= high), axis=-1)


def _put(place: LabelPosition, x: float, y: float, width: float, height: float, pixel: float) -> PlacedLabel:
    dx, dy = place.offset[0] * pixel, place.offset[1] * pixel
    left, low, room = x + dx - SHIFT[place.ha] * width, y + dy - SHIFT[place.va] * height, 1.5 * pixel
    leader = ()
    if place.distance >= LEADER_FROM:
        steps = (
            step / LEADER_STEPS
            for step in range(LEADER_STEPS)
            if step / LEADER_STEPS * math.hypot(*place.offset) > MARK_REACH
        )
        leader = tuple((x + step * dx, y + step * dy) for step in steps)
    box = (left - room, low - room, left + width + room, low + height + room)
    return PlacedLabel(place, box, (left, low, left + width, low + height), leader)


def shorten_to(text: "Text", room: float) -> None:
    """Leave out the middle of a drawn text until it is at most `room` pixels wide."""
    whole = text.get_text()
    most = len(whole)
    while (width := text.get_window_extent().width) > room and most > FEWEST_LETTERS:
        most = max(FEWEST_LETTERS, min(most - 1, int(most * room / width)))
        text.set_text(shortened_middle(whole, most))


def meets(box: Box, other: Box) -> bool:
    """Tell whether two boxes have a point inside both.

    Examples:
        >>> meets((0.0, 0.0, 2.0, 2.0), (1.0, 1.0, 3.0, 3.0)), meets((0.0, 0.0, 2.0, 2.0), (2.0, 0.0, 3.0, 2.0))
        (True, False)
    """
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    return bool(width > EPSILON and height > EPSILON)


def box_of(artist: "Artist") -> Box:
    """Return where something drawn lies."""
    box = artist.get_window_extent()
    return float(box.x0), float(box.y0), float(box.x1), float(box.y1)


def covered_share(box: Box, other: Box) -> float:
    """Return the share of `box` that `other` covers.

    Examples:
        >>> covered_share((0.0, 0.0, 2.0, 2.0), (1.0, 0.0, 5.0, 5.0))
        0.5
        >>> covered_share((0.0, 0.0, 2.0, 2.0), (3.0, 0.0, 5.0, 5.0))
        0.0
    """
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    return width * height / ((box[2] - box[0]) * (box[3] - box[1])) if width > 0 and height > 0 else 0.0
