"""What the figures show, as plain numbers: the points, and the band that is good enough."""

from collections.abc import Iterator
from dataclasses import dataclass

from rankwise.report.schema import Results
from rankwise.report.words import answer_name, configuration

INK, MUTED, GRID, PAPER = "#1b1f24", "#667080", "#e3e6ea", "#ffffff"
BLUE, VERMILLION, ORANGE, GREEN, PURPLE = "#0072b2", "#d55e00", "#e69f00", "#009e73", "#cc79a7"

LORA_STYLE = (BLUE, "o")
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
    """

    label: str
    x: float
    y: float
    interval: tuple[float, float] | None = None
    colour: str = MUTED
    marker: str = "o"
    is_answer: bool = False
    state: str = ""


@dataclass(frozen=True)
class Scene:
    """All that one figure shows.

    Args:
        lora: By rank.
        others: Baselines, the reference first.
        published: Somebody else's numbers.
        band: The reference's metric, and the least (or most) that is still good enough.
        band_colour: The reference's.
    """

    lora: tuple[PlotPoint, ...]
    others: tuple[PlotPoint, ...]
    published: tuple[PlotPoint, ...]
    band: tuple[float, float] | None
    band_colour: str

    @property
    def points(self) -> tuple[PlotPoint, ...]:
        """Everything that has a mark."""
        return (*self.lora, *self.others, *self.published)


def scene(results: Results, *, relative: bool) -> Scene:
    """Return what a figure shows; on a log axis nothing that has no parameters.

    Args:
        results: The content of `results.json`.
        relative: Both axes in percent of `relative_to`.
    """
    parameters, metric = ("relative_parameters", "relative_metric") if relative else ("trainable_parameters", "mean")
    percent, unit = (100, (results["relative_to"] or {}).get("metric")) if relative else (1, 1)
    if not unit or unit < 0:
        return Scene((), (), (), None, MUTED)
    reference = results["answer"]["reference"] if results["answer"] else None
    lora: list[PlotPoint] = []
    others: list[PlotPoint] = []
    drawn = [c for c in results["configurations"] if c["mean"] is not None and c[metric] is not None and c[parameters]]
    styles = iter(OTHER_STYLES * (1 + len(drawn) // len(OTHER_STYLES)))
    for c in sorted(drawn, key=lambda c: (c["name"] != reference, c[parameters])):
        colour, marker = LORA_STYLE if c["method"] == "lora" else next(styles)
        ends = None if c["interval"] is None else tuple(end * percent / unit for end in c["interval"])
        answer = c["name"] == answer_name(results)
        label, x, y = drawable(c["label"]), c[parameters] * percent, c[metric] * percent
        point = PlotPoint(label, x, y, ends, colour, marker, answer, c.get("state") or "")
        (lora if c["method"] == "lora" else others).append(point)
    lora.sort(key=lambda point: point.x)
    held_against = configuration(results, reference)
    colour = VERMILLION if held_against is not None and held_against["method"] != "lora" else BLUE
    band = _band(results, percent / unit)
    return Scene(tuple(lora), tuple(others), tuple(_published(results, relative)), band, colour)


def drawable(label: str) -> str:
    """Return a label that matplotlib draws: it leaves those out of a legend that begin with "_".

    Examples:
        >>> drawable("_x"), drawable("r = 8")
        (' _x', 'r = 8')
    """
    return f" {label}" if label.startswith("_") else label


def _published(results: Results, relative: bool) -> Iterator[PlotPoint]:
    for row in (results["published"] or {}).get("rows", []):
        if relative and row["relative_parameters"] and row["relative_metric"] is not None:
            yield PlotPoint(row["label"], 100 * row["relative_parameters"], 100 * row["relative_metric"])
        elif not relative and row["trainable_parameters"] and row["metric"] is not None:
            yield PlotPoint(row["label"], row["trainable_parameters"], row["metric"])


def _band(results: Results, scale: float) -> tuple[float, float] | None:
    answer = results["answer"]
    reference = configuration(results, answer["reference"]) if answer else None
    if answer is None or reference is None or reference["mean"] is None or answer["tolerance"] is None:
        return None
    sign = -1 if results["metric"]["higher_is_better"] else 1
    return reference["mean"] * scale, (reference["mean"] + sign * answer["tolerance"]) * scale
