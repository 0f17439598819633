"""The task `classify`: texts with labels. Each adapter has its own head, saved with it."""

from functools import partial
from pathlib import Path
from typing import Any

from rankwise.errors import ConfigError, DataError
from rankwise.sweeps.problem import Splits
from rankwise.tasks.text.data.label_notes import label_notes
from rankwise.tasks.text.data.labels import Labels, find_labels
from rankwise.tasks.text.encode.classify import ClassifyData, tokenize_classify
from rankwise.tasks.text.encode.tokens import pad_token_of
from rankwise.tasks.text.model.heads import MeanPooledClassifier, begin_at
from rankwise.tasks.text.model.models import load_text_model
from rankwise.tasks.text.options import TextOptions
from rankwise.tasks.text.score.floors import constant_rows
from rankwise.tasks.text.score.losses import CLASSIFY_LOSSES
from rankwise.tasks.text.score.metrics import metric_of
from rankwise.tasks.text.train.built_task import (
    SPLITS,
    BuiltTask,
    model_options,
    text_feed,
    texts_of,
    trained_inputs,
)
from rankwise.tasks.text.train.pooling import pooled_splits, widened
from rankwise.tasks.text.trained import read_trained


def _check_start(labels: Labels, pooled: bool, folder: Path) -> None:
    """Refuse an adapter that was trained for other labels, or with another head."""
    labels.check_same(folder)
    trained, pooling = read_trained(folder), "mean" if pooled else "model"
    if trained is not None and trained.pooling not in (None, pooling):
        raise ConfigError(
            f"The adapter in {folder} was trained with --pooling {trained.pooling}; give it here too, as its head fits "
            "no other."
        )


def ready_classify(options: TextOptions) -> BuiltTask:
    """Load the model with a head for the labels, and make tensors of the texts.

    Raises:
        ConfigError: There is no such model, or the kind of label is unknown.
        DataError: The texts can't be read, or their labels don't fit.
    """
    examples, label_names = texts_of(options)
    column = dict(options.examples.columns).get("label", "label")
    train: list[Any] = list(examples.train)
    labels = find_labels(train, options.form.labels, label_names.get(column, ()), places=examples.places)
    metric = metric_of(labels.kind, options.form.metric)
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
            options.form.max_length,
            skip_bad_lines=options.examples.skip_bad_lines,
        )
    data = {what: part.data for what, part in parts.items()}
    if options.examples.validation is None:
        fillers = {"input_ids": pad_token_of(loaded.tokenizer)[0], "attention_mask": 0, "token_type_ids": 0}
        data["train"], data["validation"] = widened([data["train"], data["validation"]], fillers)
    tensors = {what: {key: t.to(options.base.device) for key, t in part.items()} for what, part in data.items()}
    splits = Splits(tensors["train"], tensors["validation"], tensors["test"])
    if options.examples.validation is None:
        inputs = [example.source for what in ("train", "validation") for example in parts[what].examples]
        splits = pooled_splits(**tensors, inputs=inputs)
    if labels.kind == "number" and loaded.new_head:
        begin_at(loaded.model, loaded.new_head, float(parts["train"].data["labels"].median()))
    pooled = isinstance(loaded.model, MeanPooledClassifier)
    return BuiltTask(
        loaded=loaded,
        splits=splits,
        inputs=trained_inputs(examples, splits),
        feed=text_feed(loaded.call, splits),
        loss=CLASSIFY_LOSSES[labels.kind],
        metric=metric.function,
        metric_name=metric.name,
        higher_is_better=metric.higher_is_better,
        task_type=None if pooled else "SEQ_CLS",
        notes=[
            *examples.notes,
            *label_notes(labels, parts["train"].examples, options.form.labels),
            *loaded.notes,
            *dict.fromkeys(note for part in parts.values() for note in part.notes),
        ],
        beside=labels.save,
        constant=partial(constant_rows, labels, metric.function),
        check_start=partial(_check_start, labels, pooled),
        pad_token=loaded.pad_token,
    )
