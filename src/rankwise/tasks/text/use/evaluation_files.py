"""A folder with all that an evaluation of classifiers found: predictions, figures of each label, confusion matrices."""

import json
import re
from pathlib import Path

from rankwise.tasks.text.score.classes import draw_confusion, write_classes, write_confusion
from rankwise.tasks.text.use.evaluating import Evaluation
from rankwise.tasks.text.use.prediction_files import write_predictions
from rankwise.writing import replacing


def write_evaluation(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write `figures.json`; of classifiers `predictions.csv` and `classes.csv`; where a text has one label,
    `confusion-ADAPTER.csv` and `.png`.

    Args:
        evaluation: From `evaluate_texts`.
        folder: Where; made if it is not there. Files of an earlier evaluation are replaced.

    Returns:
        The files.

    Raises:
        OutputError: One can't be written.
    """
    with replacing(folder / "figures.json") as temporary:
        temporary.write_text(json.dumps(evaluation.plain(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    files = [folder / "figures.json"]
    if evaluation.predictions and evaluation.labels is not None:
        files.append(
            write_predictions(evaluation.examples, evaluation.predictions, folder / "predictions.csv", known=True)
        )
        if any(evaluation.classes.values()):
            files.append(write_classes(evaluation.classes, folder / "classes.csv"))
        for name, counts in evaluation.confusions.items():
            stem = f"confusion-{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}"
            files.append(write_confusion(counts, evaluation.labels, folder / f"{stem}.csv"))
            files.append(draw_confusion(counts, evaluation.labels, name, folder / f"{stem}.png"))
    return files
