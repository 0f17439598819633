"""Put labels beside points so that they cover neither points nor one another."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

Box = tuple[float, float, float, float]
"""Left, low, right, high, in pixels."""

LEADER_FROM = 16
"""A label further off than this (points, 1/72 inch) gets a thin line to its point."""

MARK = 11
"""Reach of the largest mark, from its centre to a corner of its box, in points; a leader may run through its own."""

PASSES = 3
"""How often every label may look for a better place, now that the others have theirs."""

SHIFT = {"left": 0.0, "bottom": 0.0, "center": 0.5, "right": 1.0, "top": 1.0}
"""Where the anchor lies in a text, as a share of its width or height, by alignment."""

COVERED, CROSSED, TOUCHED = 1000.0, 60.0, 25.0
"""Costs, in points of distance: of covering a label, a mark or the edge of the axes (by the share covered); of a
leader through a label or mark; of text over a curve or bar."""


@dataclass(frozen=True)
class Label:
    """A text and the point it belongs to.

    Args:
        text: What to write.
        xy: The point, in data coordinates.
        colour: Of the text.
        bold: Whether it stands out.
    """

    text: str
    xy: tuple[float, float]
    colour: str
    bold: bool = False


@dataclass(frozen=True)
class Place:
    """Where a label can go: offset of its anchor in points, alignment there, and how far off that is."""

    offset: tuple[float, float]
    ha: Any
    va: Any
    distance: float


@dataclass(frozen=True)
class Placed:
    """A label at a place: its box, and points along its leader (none when it stands close)."""

    place: Place
    box: Box
    leader: tuple[tuple[float, float], ...]


def _places() -> Iterator[Place]:
    """Near ones first; at one distance above first, then the corners and sides, below last."""
    for distance in (7, 11, 16, 22, 29, 37, 46, 58):
        for dx, dy in ((0, 1), (1, 1), (-1, 1), (1, 0), (-1, 0), (0, -1), (1, -1), (-1, -1)):
            reach = distance if dx == 0 or dy == 0 else 0.75 * distance
            ha = {0: "center", 1: "left", -1: "right"}[dx]
            va = {0: "center", 1: "bottom", -1: "top"}[dy]
            yield Place((float(dx * reach), float(dy * reach)), ha, va, float(distance + 2 * (dy < 0)))


PLACES = tuple(_places())


def place_labels(ax: "Axes", labels: Sequence[Label], hard: Sequence[Box], soft: Sequence[Box], size: float) -> None:
    """Write each label at the cheapest of a fixed set of places around its point.

    One label after the other takes the best place that is left, the first given first, then each may move again.
    The same input gives the same places.

    Args:
        ax: Where; limits and size must be final.
        labels: What to write.
        hard: Boxes not to cover.
        soft: Boxes better not covered.
        size: Of the text, in points.
    """
    figure = ax.get_figure(root=True)
    if figure is None:
        return
    frame = box_of(ax)
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
    candidates: list[list[Placed]] = []
    for label, text in zip(labels, texts, strict=True):
        x, y = ax.transData.transform(label.xy).tolist()
        extent = text.get_window_extent()
        candidates.append([_put(place, x, y, extent.width, extent.height, figure.dpi / 72) for place in PLACES])
    # What does not depend on the other labels is counted once.
    own = [[_own_cost(placed, frame, hard, soft) for placed in places] for places in candidates]
    chosen: dict[int, Placed] = {}
    for _ in range(PASSES):
        for i, places in enumerate(candidates):
            others = [placed for j, placed in chosen.items() if j != i]
            costs = [cost + _shared_cost(placed, others) for placed, cost in zip(places, own[i], strict=True)]
            chosen[i] = places[costs.index(min(costs))]
    for i, (label, text) in enumerate(zip(labels, texts, strict=True)):
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


def _put(place: Place, x: float, y: float, width: float, height: float, pixel: float) -> Placed:
    dx, dy = place.offset[0] * pixel, place.offset[1] * pixel
    left, low, room = x + dx - SHIFT[place.ha] * width, y + dy - SHIFT[place.va] * height, 1.5 * pixel
    leader = ()
    if place.distance >= LEADER_FROM:
        steps = (step / 20 for step in range(20) if step / 20 * math.hypot(*place.offset) > MARK)
        leader = tuple((x + step * dx, y + step * dy) for step in steps)
    return Placed(place, (left - room, low - room, left + width + room, low + height + room), leader)


def _own_cost(placed: Placed, frame: Box, hard: Sequence[Box], soft: Sequence[Box]) -> float:
    covered = 1 - overlap(placed.box, frame) + sum(overlap(placed.box, other) for other in hard)
    crossed = any(_crosses(placed, other) for other in hard)
    touched = sum(overlap(placed.box, other) > 0 for other in soft)
    return placed.place.distance + COVERED * covered + CROSSED * crossed + TOUCHED * touched


def _shared_cost(placed: Placed, others: Sequence[Placed]) -> float:
    covered = sum(overlap(placed.box, other.box) for other in others)
    crossed = sum(_crosses(placed, other.box) or _crosses(other, placed.box) for other in others)
    return COVERED * covered + CROSSED * crossed


def _crosses(placed: Placed, box: Box) -> bool:
    """Whether a label's leader runs through a box."""
    left, low, right, high = box
    return any(left <= x <= right and low <= y <= high for x, y in placed.leader)


def box_of(artist: "Artist") -> Box:
    """Return where something drawn lies."""
    box = artist.get_window_extent()
    return box.x0, box.y0, box.x1, box.y1


def overlap(box: Box, other: Box) -> float:
    """Return the share of `box` that `other` covers.

    Examples:
        >>> overlap((0.0, 0.0, 2.0, 2.0), (1.0, 0.0, 5.0, 5.0))
        0.5
        >>> overlap((0.0, 0.0, 2.0, 2.0), (3.0, 0.0, 5.0, 5.0))
        0.0
    """
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    return width * height / ((box[2] - box[0]) * (box[3] - box[1])) if width > 0 and height > 0 else 0.0
