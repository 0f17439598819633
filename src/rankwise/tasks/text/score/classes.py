"""Figures of each label, and which labels are confused."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from rankwise.shown import csv_cell, shortened
from rankwise.tasks.text.data.labels import Labels
from rankwise.tasks.text.score.metrics import confusion, predict_labels
from rankwise.writing import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_NUMBERED = 15
"""Labels up to which the cells of a confusion matrix have their numbers written in."""


MOST_NAMED = 150
"""Labels up to which rows and columns of a drawn confusion matrix have their names."""

MOST_LETTERS = 40
"""Of a label's name in a drawing."""

LETTER_WIDTH = 0.62
"""Of an average letter, as a share of the text's size."""

MOST_INCHES = 24.0
"""The longest side of a drawn confusion matrix."""


@dataclass(frozen=True)
class ClassFigures:
    """Figures of one label.

    Args:
        n: How many examples have it.
        precision: Share of the examples it was predicted for that have it; 0 where it was predicted for none.
        recall: Share of the examples with it that it was predicted for; 0 where there are none.
        f1: Their harmonic mean.
    """

    n: int
    precision: float
    recall: float
    f1: float


def class_figures(outputs: Float[Tensor, "rows C"], right: Tensor, labels: Labels) -> dict[str, ClassFigures]:
    """Precision, recall and F1 of each label, from a classifier's outputs on a whole data set; none for numbers.

    Examples:
        >>> outputs = torch.tensor([[2.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
        >>> class_figures(outputs, torch.tensor([0, 1, 0]), Labels("one", ("a", "b")))["a"]
        ClassFigures(n=2, precision=1.0, recall=0.5, f1=0.6666666666666666)
    """
    if labels.kind == "number":
        return {}
    said = predict_labels(outputs, labels.kind)
    if labels.kind == "one":
        counts = confusion(said, right, len(labels.names))
        hits, true, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    else:
        hits, true, predicted = (said * right).sum(0), right.sum(0), said.sum(0)
    rows = zip(labels.names, hits.tolist(), true.tolist(), predicted.tolist(), strict=True)
    return {name: ClassFigures(int(t), h / max(p, 1), h / max(t, 1), 2 * h / max(t + p, 1)) for name, h, t, p in rows}


def write_classes(figures: Mapping[str, Mapping[str, ClassFigures]], path: Path) -> Path:
    """Write adapter -> label -> figures as a CSV file.

    Raises:
        OutputError: It can't be written.
    """
    import csv

    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("adapter", "label", "n", "precision", "recall", "f1"))
        for adapter, classes in figures.items():
            for label, it in classes.items():
                writer.writerow(
                    (csv_cell(adapter), csv_cell(label), it.n, *(f"{x:.6g}" for x in (it.precision, it.recall, it.f1)))
                )
    return path


def write_confusion(counts: Float[Tensor, "n n"], labels: Labels, path: Path) -> Path:
    """Write a confusion matrix as a CSV file: a row for each right label, a column for each predicted one.

    Raises:
        OutputError: It can't be written.
    """
    import csv

    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("label", *map(csv_cell, labels.names)))
        for name, row in zip(labels.names, counts.long().tolist(), strict=True):
            writer.writerow((csv_cell(name), *row))
    return path


def draw_confusion(counts: Float[Tensor, "n n"], labels: Labels, title: str, path: Path) -> Path:
    """Draw a confusion matrix, each row in shares of its label's examples, as a PNG file.

    Raises:
        OutputError: It can't be written.
    """
    with replacing(path) as temporary:
        build_confusion(counts, labels, title).savefig(temporary, format="png", dpi=150, bbox_inches="tight")
    return path


def build_confusion(counts: Float[Tensor, "n n"], labels: Labels, title: str) -> "Figure":
    """Return the figure of a confusion matrix."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    n = len(labels.names)
    side = min(max(4.0, 0.16 * n if n > MOST_NUMBERED else 0.45 * n), MOST_INCHES)
    text = 8 if n <= MOST_NUMBERED else 6
    names = [shortened(name, MOST_LETTERS) for name in labels.names] if n <= MOST_NAMED else []
    # The names stand outside the matrix, which must not shrink for them.
    outside = LETTER_WIDTH * text / 72 * max(map(len, names), default=0)
    figure = Figure(figsize=(side + outside + 1.7, side + outside + 1.0), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.add_subplot()
    shares = (counts / counts.sum(1, keepdim=True).clamp_min(1)).tolist()
    # By the root of the share, so that a few mistakes among many examples are seen.
    image = ax.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
    if names:
        ax.set_xticks(range(n), names, rotation=90, fontsize=text, parse_math=False)
        ax.set_yticks(range(n), names, fontsize=text, parse_math=False)
    where = "" if n <= MOST_NAMED else f" (of {n:,}, in the order of the CSV file)"
    ax.set(xlabel=f"predicted{where}", ylabel=f"right label{where}")
    ax.set_title(shortened(title, MOST_LETTERS), fontsize=10, parse_math=False)
    if n <= MOST_NUMBERED:
        for i, row in enumerate(counts.long().tolist()):
            for j, number in enumerate(row):
                if number:
                    ax.text(j, i, _in_a_cell(number), ha="center", va="center", fontsize=text,
                            color="white" if shares[i][j] > 0.35 else "black")  # fmt: skip
    bar = figure.colorbar(image, ax=ax, shrink=0.6)
    bar.set_label("share of the right label's examples", fontsize=text)
    bar.ax.tick_params(labelsize=text)
    return figure


def _in_a_cell(count: int) -> str:
    """A count in at most five letters or so.

    Examples:
        >>> _in_a_cell(1234), _in_a_cell(123456), _in_a_cell(98765432)
        ('1,234', '123k', '99M')
    """
    if count < 10_000:
        return f"{count:,}"
    return f"{count / 1e3:.0f}k" if count < 999_500 else f"{count / 1e6:.0f}M"


def most_confused(counts: Float[Tensor, "n n"], labels: Labels, most: int = 3) -> list[tuple[str, str, int]]:
    """The pairs that are mixed up most often: (right label, predicted label, how often)."""
    wrong = counts.clone().fill_diagonal_(0)
    places = wrong.flatten().argsort(descending=True, stable=True)[:most].tolist()
    pairs = [(divmod(place, len(labels.names)), int(wrong.flatten()[place])) for place in places]
    return [(labels.names[i], labels.names[j], n) for (i, j), n in pairs if n > 0]


def confusion_of(outputs: Float[Tensor, "rows C"], right: Tensor, labels: Labels) -> Tensor | None:
    """The confusion matrix; None unless each text has one label."""
    return (
        confusion(torch.as_tensor(predict_labels(outputs, "one")), right, len(labels.names))
        if labels.kind == "one"
        else None
    )
