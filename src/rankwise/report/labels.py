"""Put labels beside points so that they cover neither points nor one another."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

LEADER_FROM = 16
"""A label further off than this (points, 1/72 inch) gets a thin line to its point."""

SHIFT = {"left": 0.0, "bottom": 0.0, "center": 0.5, "right": 1.0, "top": 1.0}
"""Where the anchor lies in a text, as a share of its width or height, by alignment."""

COVERED = 1000.0
"""Cost of covering a label, a marker or the edge, in points of distance; a curve or bar under text is cheaper."""


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

    @property
    def leader(self) -> bool:
        return self.distance >= LEADER_FROM


def _places() -> Iterator[Place]:
    """Near ones first; at one distance above first, then the corners and sides, below last."""
    for distance in (7, 11, 16, 22, 29, 37, 46, 58):
        for dx, dy in ((0, 1), (1, 1), (-1, 1), (1, 0), (-1, 0), (0, -1), (1, -1), (-1, -1)):
            reach = distance if dx == 0 or dy == 0 else 0.75 * distance
            ha = {0: "center", 1: "left", -1: "right"}[dx]
            va = {0: "center", 1: "bottom", -1: "top"}[dy]
            yield Place((float(dx * reach), float(dy * reach)), ha, va, float(distance + 2 * (dy < 0)))


PLACES = tuple(_places())


def place_labels(
    ax: "Axes", labels: Sequence[Label], hard: Sequence["Bbox"], soft: Sequence["Bbox"], size: float
) -> None:
    """Write each label at the cheapest of a fixed set of places around its point, in the order given.

    Greedy: a label keeps its place once it has one, so the important ones come first. The same input gives the
    same places.

    Args:
        ax: Where; limits and size must be final.
        labels: What to write.
        hard: Boxes (in pixels) not to cover.
        soft: Boxes (in pixels) better not covered.
        size: Of the text, in points.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    figure = ax.get_figure(root=True)
    if figure is None:
        return
    renderer = FigureCanvasAgg(figure).get_renderer()
    pixel = figure.dpi / 72
    taken, frame = list(hard), ax.get_window_extent(renderer)
    for label in labels:
        text = ax.annotate(
            label.text,
            label.xy,
            xytext=(0, 0),
            textcoords="offset points",
            color=label.colour,
            fontsize=size,
            fontweight="bold" if label.bold else "normal",
            zorder=6,
        )
        x, y = ax.transData.transform(label.xy)
        written = text.get_window_extent(renderer)

        def box_at(place: Place, x: float = x, y: float = y, written: "Bbox" = written) -> "Bbox":
            dx, dy = place.offset
            left = x + dx * pixel - SHIFT[place.ha] * written.width
            low = y + dy * pixel - SHIFT[place.va] * written.height
            return Bbox([[left, low], [left + written.width, low + written.height]]).padded(1.5 * pixel)

        def cost(place: Place, x: float = x, y: float = y) -> float:
            box = box_at(place)
            covered = sum(_overlap(box, other) for other in taken) + 1 - _overlap(box, frame)
            crossed = place.leader and any(_crosses((x, y), place.offset, pixel, other) for other in taken)
            return (
                place.distance + COVERED * covered + 25 * sum(_overlap(box, other) > 0 for other in soft) + 60 * crossed
            )

        best = min(PLACES, key=cost)  # the first of equals
        taken.append(box_at(best))
        text.set_position(best.offset)
        text.set_horizontalalignment(best.ha)
        text.set_verticalalignment(best.va)
        if best.leader:
            ax.annotate(
                "",
                label.xy,
                xytext=(0.92 * best.offset[0], 0.92 * best.offset[1]),
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": label.colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4},
                zorder=2,
            )


def _crosses(mark: tuple[float, float], offset: tuple[float, float], pixel: float, box: "Bbox") -> bool:
    """Whether the line from the edge of a mark to its label runs through a box."""
    steps = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    return any(box.contains(mark[0] + t * offset[0] * pixel, mark[1] + t * offset[1] * pixel) for t in steps)


def _overlap(box: "Bbox", other: "Bbox") -> float:
    """The share of `box` that `other` covers."""
    width = min(box.x1, other.x1) - max(box.x0, other.x0)
    height = min(box.y1, other.y1) - max(box.y0, other.y0)
    return width * height / (box.width * box.height) if width > 0 and height > 0 else 0.0
