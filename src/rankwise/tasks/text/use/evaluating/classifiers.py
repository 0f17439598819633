"""Figures of classifiers: of their outputs, label by label, and of the best constant answer."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from rankwise.errors import DataError
from rankwise.report.adapter_run import head_alone
from rankwise.tasks.text.data.examples import Labelled
from rankwise.tasks.text.data.labels import Labels
from rankwise.tasks.text.encode.classify import tokenize_classify
from rankwise.tasks.text.score.classes import class_figures, confusion_of
from rankwise.tasks.text.score.floors import FLOORS, floor_outputs
from rankwise.tasks.text.score.losses import CLASSIFY_LOSSES
from rankwise.tasks.text.score.metrics import classify_figures
from rankwise.tasks.text.use.evaluating.result import Evaluation, Figures
from rankwise.tasks.text.use.outputs import classifier_outputs
from rankwise.tasks.text.use.predicting import predictions_of
from rankwise.tasks.text.use.served import BASE_NAME, ServedModel


def evaluate_classifiers(
    adapted: ServedModel, names: Sequence[str], rows: Sequence[Any], data: str, skip: bool
) -> Evaluation:
    """Figures of a base and its adapters on labelled texts, and of the best constant answer.

    Args:
        adapted: Model and adapters.
        names: Of those to evaluate.
        rows: The examples.
        data: Where they come from.
        skip: Whether examples that can't be used are left out.

    Raises:
        DataError: There are no labels, or they are unknown.
    """
    loaded, labels = adapted.loaded, adapted.labels
    if labels is None:
        raise DataError("There are no labels to compare with.")
    longest = adapted.one_way().max_length
    prepared = tokenize_classify(rows, labels, loaded.tokenizer, loaded.config, "test", longest, skip_bad_lines=skip)
    outputs = {name: classifier_outputs(adapted, name, prepared.data) for name in names}
    return replace(
        classifier_evaluation(data, prepared.examples, labels, prepared.data["labels"], outputs),
        notes=[*prepared.notes, *([] if BASE_NAME in names else [no_head_note(adapted.folders)])],
    )


def no_head_note(folders: Sequence[Path]) -> str:
    """Why the base has no figures, and how it did with a head in the run of one of the adapters.

    Args:
        folders: Of the adapters.
    """
    alone = next(filter(None, map(head_alone, folders)), None)
    return " ".join(filter(None, ["The base has no figures: it has no head that is trained for these labels.", alone]))


def classifier_evaluation(
    data: str, examples: Sequence[Labelled], labels: Labels, right: Tensor, outputs: Mapping[str, Tensor]
) -> Evaluation:
    """All figures of classifiers' outputs.

    Args:
        data: Where the examples come from.
        examples: The examples.
        labels: What is predicted.
        right: The right answers, from `Labels.encode`.
        outputs: Name -> logits of the examples.
    """
    with_floor = {FLOORS[labels.kind]: floor_outputs(labels, right), **outputs}
    confusions = {name: confusion_of(found, right, labels) for name, found in outputs.items()}
    return Evaluation(
        data=data,
        figures={name: _figures(found, right, labels.kind) for name, found in with_floor.items()},
        notes=(),
        labels=labels,
        examples=examples,
        predictions={name: predictions_of(found, labels) for name, found in outputs.items()},
        classes={name: class_figures(found, right, labels) for name, found in outputs.items()},
        confusions={name: counts for name, counts in confusions.items() if counts is not None},
    )


def _figures(outputs: Tensor, right: Tensor, kind: str) -> Figures:
    loss = CLASSIFY_LOSSES[kind](outputs, {"labels": right})
    mean = loss if isinstance(loss, Tensor) else loss[0] / loss[1]
    figures = classify_figures(outputs, right, kind)
    return {"loss": float(mean.mean()), **{key: float(value) for key, value in figures.items()}}
