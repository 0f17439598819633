"""The content of the figures, as plain numbers: the points, and the band that is good enough."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from rankwise.report.words import answer_name
from rankwise.results import ConfigurationResult, Results
from rankwise.results.origin import PublishedRow
from rankwise.results.outcomes import MeanInterval

INK, MUTED, GRID, PAPER = "#1b1f24", "#667080", "#e3e6ea", "#ffffff"
BLUE, VERMILLION, ORANGE, GREEN, PURPLE = "#0072b2", "#d55e00", "#e69f00", "#009e73", "#cc79a7"

LORA_STYLES = ((BLUE, "o"), ("#56b4e9", "v"), (PURPLE, "P"), (GREEN, "^"), (INK, "X"), (ORANGE, "D"))
"""Colour and shape of adapters, one for each kind (variant, initialisation, ...), in turn."""

LORA_STYLE = LORA_STYLES[0]
OTHER_STYLES = ((VERMILLION, "s"), (ORANGE, "D"), (PURPLE, "P"), (GREEN, "^"), (INK, "X"))
"""Colour and shape of what is not LoRA, in turn; the reference takes the first."""


@dataclass(frozen=True)
class PlotPoint:
    """One mark.

    Args:
        label: In words.
        x: Trainable parameters, or their percentage.
        y: The test metric, or its percentage.
        interval: Of y.
        colour: Of mark and label.
        marker: As matplotlib names shapes.
        is_answer: Whether it is the recommended one.
        state: "shown", "not" or "open": whether it lies within the tolerance; "" where that is no question.
        kind: Of an adapter, what tells it apart from others of its rank: "pissa".
    """

    label: str
    x: float
    y: float
    interval: tuple[float, float] | None = None
    colour: str = MUTED
    marker: str = "o"
    is_answer: bool = False
    state: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Scene:
    """The content of one figure.

    Args:
        lora: By rank.
        others: Baselines, the reference first.
        compressed: Adapters that were cut to smaller ranks, by size.
        repaired: The same after a short further training.
        published: Somebody else's numbers.
        band: The reference's metric, and the least (or most) that is still good enough.
        band_colour: The reference's.
    """

    lora: tuple[PlotPoint, ...]
    others: tuple[PlotPoint, ...]
    compressed: tuple[PlotPoint, ...]
    repaired: tuple[PlotPoint, ...]
    published: tuple[PlotPoint, ...]
    band: tuple[float, float] | None
    band_colour: str

    @property
    def lines(self) -> list[tuple[PlotPoint, ...]]:
        """Adapters of one kind each, by rank: a line in the figure."""
        kinds = dict.fromkeys(point.kind for point in self.lora)
        return [tuple(point for point in self.lora if point.kind == kind) for kind in kinds]

    @property
    def points(self) -> tuple[PlotPoint, ...]:
        """Everything that the axes must hold: a curve of cut adapters may fall out of them, as far as it falls."""
        return (*self.lora, *self.others, *self.published)


def scene(results: Results, *, relative: bool) -> Scene:
    """Return what a figure shows; on a log axis nothing that has no parameters.

    Args:
        results: The content of `results.json`.
        relative: Both axes in percent of `relative_to`.
    """
    unit = 1.0
    if relative:
        unit = None if results.relative_to is None else results.relative_to.metric
    if not unit or not 0 < unit < math.inf:
        return Scene((), (), (), (), (), None, MUTED)
    scale = 100 / unit if relative else 1.0
    reference = None if results.answer is None else results.answer.reference
    lora: list[PlotPoint] = []
    others: list[PlotPoint] = []
    drawn = [(c, spot) for c in results.configurations if (spot := _spot(c, relative)) is not None]
    kinds = list(dict.fromkeys(_kind(c) for c in results.configurations if c.method == "lora"))
    styles = iter(OTHER_STYLES * (1 + len(drawn) // len(OTHER_STYLES)))
    for c, (x, y) in sorted(drawn, key=lambda one: (one[0].name != reference, one[1][0])):
        kind = _kind(c) if c.method == "lora" else ""
        colour, marker = LORA_STYLES[kinds.index(kind) % len(LORA_STYLES)] if c.method == "lora" else next(styles)
        ends = None
        if c.interval is not None and all(map(math.isfinite, c.interval)):
            ends = (c.interval[0] * scale, c.interval[1] * scale)
        answer = c.name == answer_name(results)
        # With several kinds the legend names them; only the answer's mark does so too.
        short = len(kinds) > 1 and c.method == "lora" and not answer and c.label.startswith(f"r = {c.r}")
        point = PlotPoint(
            drawable(f"r = {c.r}" if short else c.label), x, y, ends, colour, marker, answer, c.state or "", kind
        )
        (lora if c.method == "lora" else others).append(point)
    lora.sort(key=lambda point: point.x)
    held_against = results.configuration(reference)
    colour = VERMILLION if held_against is not None and held_against.method != "lora" else BLUE
    band = _band(results, scale)
    compressed, repaired = (tuple(_compressed(results, scale, relative, repaired=also)) for also in (False, True))
    published = tuple(_published(results, relative))
    return Scene(tuple(lora), tuple(others), compressed, repaired, published, band, colour)


def _kind(c: ConfigurationResult) -> str:
    """What tells an adapter apart from others of its rank, as its label says it: "r = 8 pissa" -> "pissa"."""
    begin = f"r = {c.r} "
    return c.label.removeprefix(begin) if c.label.startswith(begin) else ""


def _spot(c: ConfigurationResult | PublishedRow, relative: bool) -> tuple[float, float] | None:
    """The position of a model's mark; None if a figure is missing or infinite, or 0 parameters can't be shown."""
    metric = c.metric if isinstance(c, PublishedRow) else c.mean
    x, y = (c.relative_parameters, c.relative_metric) if relative else (c.trainable_parameters, metric)
    # A row that somebody else has published may have its share alone.
    known = isinstance(c, PublishedRow) if metric is None else math.isfinite(metric)
    if not known or not x or y is None or not math.isfinite(y):
        return None
    return (100 * x, 100 * y) if relative else (x, y)


def drawable(label: str) -> str:
    """Return a label that matplotlib draws: it leaves those out of a legend that begin with "_".

    Examples:
        >>> drawable("_x"), drawable("r = 8")
        (' _x', 'r = 8')
    """
    return f" {label}" if label.startswith("_") else label


def _compressed(results: Results, scale: float, relative: bool, *, repaired: bool) -> Iterator[PlotPoint]:
    """The adapters that were cut, smallest first, as they are or repaired; marked is the one to ship."""
    of_repaired = bool(results.compressed) and results.compressed.steps is not None
    total = results.relative_to.trainable_parameters if relative and results.relative_to is not None else 100
    configurations = results.compressed.configurations if results.compressed else []
    for c in sorted(configurations, key=lambda c: c.parameters):
        one = c.repaired if repaired else MeanInterval(mean=c.mean, interval=c.interval)
        if one is not None and one.mean is not None and math.isfinite(one.mean) and c.parameters and total:
            x = 100 * c.parameters / total if relative else float(c.parameters)
            ends = None if one.interval is None else (one.interval[0] * scale, one.interval[1] * scale)
            style = (PURPLE, "v") if repaired else (GREEN, "d")
            yield PlotPoint(
                drawable(c.label), x, one.mean * scale, ends, *style, c.is_answer and repaired == of_repaired
            )


def _published(results: Results, relative: bool) -> Iterator[PlotPoint]:
    for row in [] if results.published is None else results.published.rows:
        if (spot := _spot(row, relative)) is not None:
            yield PlotPoint(row.label, *spot)


def _band(results: Results, scale: float) -> tuple[float, float] | None:
    answer = results.answer
    reference = None if answer is None else results.configuration(answer.reference)
    if answer is None or reference is None or reference.mean is None or answer.tolerance is None:
        return None
    sign = -1 if results.metric.higher_is_better else 1
    band = reference.mean * scale, (reference.mean + sign * answer.tolerance) * scale
    return band if all(map(math.isfinite, band)) else None
