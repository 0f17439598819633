"""The task `classify`: texts with labels. Each adapter has a head of its own, saved with it."""

from collections.abc import Mapping
from typing import Any

from rankwise.errors import DataError
from rankwise.sweeps.problem import Splits
from rankwise.tasks.text.classify import ClassifyData, tokenize_classify
from rankwise.tasks.text.heads import MeanPooledClassifier
from rankwise.tasks.text.labels import find_labels
from rankwise.tasks.text.losses import CLASSIFY_LOSSES
from rankwise.tasks.text.metrics import CLASSIFY_METRICS
from rankwise.tasks.text.models import load_text_model
from rankwise.tasks.text.options import TextOptions
from rankwise.tasks.text.ready import SPLITS, Ready, model_options
from rankwise.tasks.text.splits import Splits as Examples


def ready_classify(options: TextOptions, examples: Examples, label_names: Mapping[str, tuple[str, ...]]) -> Ready:
    """Load the model with a head for the labels, and make tensors of the texts.

    Args:
        options: The settings.
        examples: The texts.
        label_names: Names of labels by column, where the data gives them in an order.

    Raises:
        ConfigError: There is no such model, or the kind of label is unknown.
        DataError: Labels don't fit.
    """
    column = dict(options.columns).get("label", "label")
    train: list[Any] = list(examples.train)
    labels = find_labels(train, options.labels, label_names.get(column, ()), places=examples.places)
    loaded = load_text_model(options.model, "classify", labels, model_options(options))
    labels = loaded.labels or labels
    parts: dict[str, ClassifyData] = {}
    for what, name in SPLITS.items():
        rows: list[Any] = list(getattr(examples, what))
        if not rows:
            raise DataError(f"The {name} data is empty.")
        parts[what] = tokenize_classify(
            rows,
            labels,
            loaded.tokenizer,
            loaded.config,
            name,
            options.max_length,
            skip_bad_lines=options.skip_bad_lines,
        )
    tensors = {what: {key: t.to(options.device) for key, t in part.data.items()} for what, part in parts.items()}
    metric = CLASSIFY_METRICS[labels.kind]
    pooled = isinstance(loaded.model, MeanPooledClassifier)
    return Ready(
        loaded=loaded,
        splits=Splits(**tensors),
        call=loaded.call,
        loss=CLASSIFY_LOSSES[labels.kind],
        metric=metric.by_row,
        metric_name=metric.name,
        higher_is_better=metric.higher_is_better,
        task_type=None if pooled else "SEQ_CLS",
        notes=[*examples.notes, *loaded.notes, *dict.fromkeys(note for part in parts.values() for note in part.notes)],
        beside=labels.save,
        check_start=labels.check_same,
    )
