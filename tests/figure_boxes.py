"""What a figure shows, as boxes in pixels: texts, points and bars, and which texts meet something."""

import itertools
from collections.abc import Iterator

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text

Box = tuple[float, float, float, float]


def box_of(artist: Artist) -> Box:
    box = artist.get_window_extent()
    return float(box.x0), float(box.y0), float(box.x1), float(box.y1)


def meets(a: Box, b: Box) -> bool:
    return min(a[2], b[2]) - max(a[0], b[0]) > 1e-6 and min(a[3], b[3]) - max(a[1], b[1]) > 1e-6


def texts_of(figure: Figure) -> list[Text]:
    """Every text that is drawn; the figure must have been drawn."""
    found = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    for ax in figure.axes:
        if not ax.get_visible():
            continue
        found += [*ax.texts, ax.xaxis.label, ax.yaxis.label, *_titles(ax)]
        found += [text for legend in ax.findobj(Legend) for text in legend.get_texts()]
        for axis, (low, high) in ((ax.xaxis, sorted(ax.get_xlim())), (ax.yaxis, sorted(ax.get_ylim()))):
            found += [axis.get_offset_text()]
            for tick in axis.get_major_ticks():
                if low <= tick.get_loc() <= high:
                    found += [tick.label1, tick.label2]
    return [text for text in dict.fromkeys(found) if text.get_visible() and text.get_text().strip()]


def _titles(ax: Axes) -> tuple[Text, ...]:
    return ax.title, ax._left_title, ax._right_title  # pyright: ignore


def _drawn(ax: Axes) -> Iterator[Box]:
    """Points and bars in view, and grid lines that are made as such."""
    pixel = ax.figure.dpi / 72
    frame = box_of(ax)
    for line in ax.lines:
        if line.get_marker() in ("", " ", "None", None):
            continue
        reach = line.get_markersize() / 2 * pixel
        high = 0.5 if line.get_marker() == "_" else reach  # the end of a bar is flat
        for x, y in line.get_transform().transform(line.get_xydata()).tolist():
            if frame[0] <= x <= frame[2] and frame[1] <= y <= frame[3]:
                yield x - reach, y - high, x + reach, y + high
    for lines in ax.collections:
        if isinstance(lines, LineCollection):
            for segment in lines.get_segments():
                (x0, y0), (x1, y1) = lines.get_transform().transform(segment).tolist()
                yield min(x0, x1) - 0.5, min(y0, y1) - 0.5, max(x0, x1) + 0.5, max(y0, y1) + 0.5


def collisions(figure: Figure, *, grows: bool = False) -> list[str]:
    """What meets what: text and text, a point, a bar or, unless it grows with its texts, the figure's edge."""
    FigureCanvasAgg(figure).draw()
    boxes = {text: box_of(text) for text in texts_of(figure)}
    edge = box_of(figure)
    found = [
        f'"{one.get_text()}" meets "{other.get_text()}"'
        for (one, a), (other, b) in itertools.combinations(boxes.items(), 2)
        if meets(a, b)
    ]
    drawn = [box for ax in figure.axes if ax.get_visible() for box in _drawn(ax)]
    for text, box in boxes.items():
        found += [f'"{text.get_text()}" meets a point or bar at {other}' for other in drawn if meets(box, other)]
        if not grows and not (edge[0] <= box[0] and edge[1] <= box[1] and box[2] <= edge[2] and box[3] <= edge[3]):
            found.append(f'"{text.get_text()}" leaves the figure')
    return found
