"""A folder with all that an evaluation of classifiers found: predictions, figures of each label, confusion matrices."""

import json
import re
from pathlib import Path

from rankwise.errors import OutputError
from rankwise.tasks.text.score.classes import draw_confusion, write_classes, write_confusion
from rankwise.tasks.text.use.evaluating.result import Evaluation
from rankwise.tasks.text.use.prediction_files import write_predictions
from rankwise.writing import read_regular, replacing

WRITTEN = ("figures.json", "predictions.csv", "classes.csv")
"""Files of an evaluation, beside those of its confusion matrices."""


def check_report(folder: Path) -> None:
    """Refuse a folder with files that an evaluation would replace and that are not of an earlier one.

    Raises:
        OutputError: There is one.
    """
    try:
        figures = json.loads(read_regular(folder / WRITTEN[0]))
    except (OSError, ValueError, RecursionError):
        figures = None
    if isinstance(figures, dict) and {"data", "figures", "notes"} <= figures.keys():
        return
    names = [*WRITTEN, *(path.name for path in folder.glob("confusion-*"))]
    if found := next((name for name in names if (folder / name).exists()), None):
        raise OutputError(f"{folder} holds {found}, which is no file of an evaluation; give --report another folder.")


def write_evaluation(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write `figures.json`; of classifiers `predictions.csv` and `classes.csv`; where a text has one label,
    `confusion-ADAPTER.csv` and `.png`.

    Args:
        evaluation: From `evaluate_texts`.
        folder: Where; made if it is not there. Files of an earlier evaluation are replaced.

    Returns:
        The files.

    Raises:
        OutputError: One can't be written, or would replace a file that is no evaluation's.
    """
    check_report(folder)
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
