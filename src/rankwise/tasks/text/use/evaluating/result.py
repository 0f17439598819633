"""The results of an evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from rankwise.tasks.text.data.examples import Labelled
from rankwise.tasks.text.data.labels import Labels
from rankwise.tasks.text.score.classes import ClassFigures
from rankwise.tasks.text.use.prediction import Prediction

Figures = dict[str, float]

SEED = 0
"""Of draws: a sweep's own, so that both use the same test examples."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The results of an evaluation.

    Args:
        data: The file, as the user gave it.
        figures: Name -> figure -> value: of classifiers the floor first; then the base, unless its head is not trained.
        notes: Notes for the user.
        labels: A classifier's.
        examples: The labelled texts, in the order of the predictions.
        predictions: Of base and adapters, of a classifier.
        classes: Name -> label -> figures of it, likewise; none for numbers.
        confusions: Name -> how often each label (row) was predicted as each (column), where a text has one label.
    """

    data: str
    figures: Mapping[str, Figures]
    notes: Sequence[str]
    labels: Labels | None = None
    examples: Sequence[Labelled] = ()
    predictions: Mapping[str, Sequence[Prediction]] = field(default_factory=dict[str, Sequence[Prediction]])
    classes: Mapping[str, Mapping[str, ClassFigures]] = field(default_factory=dict[str, Mapping[str, ClassFigures]])
    confusions: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    def plain(self) -> dict[str, Any]:
        """The content of the JSON file, without results that have files of their own."""
        content: dict[str, Any] = {"data": self.data, "figures": self.figures, "notes": list(self.notes)}
        if any(self.classes.values()):
            content["classes"] = {
                name: {label: asdict(figures) for label, figures in classes.items()}
                for name, classes in self.classes.items()
            }
        return content
