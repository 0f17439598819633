"""Figures of a base and its adapters on a file of examples."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from rankwise.errors import DataError
from rankwise.report.adapter_run import head_alone
from rankwise.tasks.text.data.examples import Chat, Labelled, PlainText, SftExample, has_more
from rankwise.tasks.text.data.forms import read_examples
from rankwise.tasks.text.data.labels import Labels
from rankwise.tasks.text.data.seen import seen_notes
from rankwise.tasks.text.data.subset import drawn
from rankwise.tasks.text.encode.batches import as_tensors
from rankwise.tasks.text.encode.chat import answer_text
from rankwise.tasks.text.encode.classify import tokenize_classify
from rankwise.tasks.text.encode.sft import tokenize_sft
from rankwise.tasks.text.encode.templates import Template, chat_template
from rankwise.tasks.text.encode.tokens import text_config
from rankwise.tasks.text.groups import Writing
from rankwise.tasks.text.read.bad_lines import usable
from rankwise.tasks.text.read.sources import read_records
from rankwise.tasks.text.score.classes import ClassFigures, class_figures, confusion_of
from rankwise.tasks.text.score.floors import FLOORS, floor_outputs
from rankwise.tasks.text.score.generated import check_scorers, group_references, score_texts
from rankwise.tasks.text.score.losses import CLASSIFY_LOSSES
from rankwise.tasks.text.score.metrics import classify_figures, perplexity_of
from rankwise.tasks.text.score.vocabulary import TokenLoss, lean_head, row_loss
from rankwise.tasks.text.use.generating import check_writes, with_room, write_texts
from rankwise.tasks.text.use.outputs import classifier_outputs, outputs_of
from rankwise.tasks.text.use.predicting import predictions_of
from rankwise.tasks.text.use.prediction import Prediction
from rankwise.tasks.text.use.served import BASE_NAME, ServedModel

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


def evaluate_texts(
    adapted: ServedModel,
    data: str,
    *,
    columns: Mapping[str, str] | None = None,
    split: str = "test",
    skip_bad_lines: bool = False,
    limit: int | None = None,
    generate: int = 0,
    writing: Writing | None = None,
) -> Evaluation:
    """Figures of the base and of each adapter on examples; of classifiers, of the best constant answer too.

    Args:
        adapted: Model and adapters.
        data: A file, or a hub name.
        columns: Role -> column, where a column is not called as its role.
        split: Of a hub data set.
        skip_bad_lines: Leave out what can't be read, and say so.
        limit: How many examples are used at most, drawn as a sweep draws its test examples; None for all.
        generate: For so many inputs, drawn from the whole file, answers are written and compared with all references
            of the input; 0 for none.
        writing: How they are written.

    Raises:
        ConfigError: The adapters were trained in ways whose figures can't be compared; answers are asked of a
            classifier, or what scores them is not installed.
        DataError: The file can't be read, or its labels are unknown.
    """
    records = read_records(data, split=split, skip_bad_lines=skip_bad_lines)
    labels = adapted.labels
    several = labels is not None and labels.kind == "several"
    examples, notes = read_examples(
        records,
        adapted.task,
        columns,
        several=several,
        places=len(labels.names) if labels is not None and labels.places else None,
        skip_bad_lines=skip_bad_lines,
    )
    if not examples:
        raise DataError(f"{data} has no examples.")
    notes = [*adapted.notes, *records.notes, *notes]
    if generate:
        _check_written(adapted, examples)
    names = [*([] if adapted.loaded.new_head else [BASE_NAME]), *adapted.names]
    rows: list[Any] = list(examples)
    if limit is not None and limit < len(rows):
        rows = [rows[i] for i in drawn(rows, limit, SEED, "test")]
        notes.append(f"{limit:,} of {len(examples):,} examples are used, drawn with seed {SEED}.")
    notes += seen_notes(adapted.names, adapted.folders, rows, data)
    if adapted.task == "classify":
        found = _classify(adapted, names, rows, data, skip_bad_lines)
        return replace(found, notes=[*notes, *found.notes])
    figures, said = _sft(adapted, names, rows, skip_bad_lines)
    if generate:
        more, also = _written(adapted, names, examples, generate, writing or Writing(), skip_bad_lines)
        figures = {name: own | more.get(name, {}) for name, own in figures.items()}
        said = [*said, *also]
    return Evaluation(data=data, figures=figures, notes=[*notes, *said])


def _classify(adapted: ServedModel, names: Sequence[str], rows: Sequence[Any], data: str, skip: bool) -> Evaluation:
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


def _sft(
    adapted: ServedModel, names: Sequence[str], rows: Sequence[Any], skip: bool
) -> tuple[dict[str, Figures], Sequence[str]]:
    loaded = adapted.loaded
    prepared = tokenize_sft(rows, loaded.tokenizer, loaded.config, adapted.one_way(), skip_bad_lines=skip)
    data = as_tensors(prepared, shift=loaded.shift)
    device = next(loaded.model.parameters()).device
    found: dict[str, Figures] = {}
    for name in names:
        total = count = 0.0
        with adapted.acting(name):
            head = lean_head(loaded.model, loaded.call, {key: value[:2].to(device) for key, value in data.items()})
        numbers = 1 if head is not None else text_config(loaded.config).vocab_size
        for _, outputs in outputs_of(adapted, name, data, TokenLoss(loaded.call, head), numbers):
            sums, counts = row_loss(outputs, {})
            total, count = total + float(sums.double().sum()), count + float(counts.sum())
        found[name] = {"loss": total / count, "perplexity": perplexity_of(total / count)}
    return found, prepared.notes


def _check_written(adapted: ServedModel, examples: Sequence[Any]) -> None:
    """Find what stands against writing answers, before anything is computed."""
    check_writes(adapted)
    check_scorers()
    if any(isinstance(example, PlainText) for example in examples):
        raise DataError("Plain texts have no prompts to answer; leave out --generate.")


def _written(
    adapted: ServedModel, names: Sequence[str], examples: Sequence[Any], n: int, writing: Writing, skip: bool
) -> tuple[dict[str, Figures], list[str]]:
    """Figures of answers to n inputs, those left out that have no room for one."""
    template = Template(adapted.loaded.tokenizer, adapted.way(BASE_NAME).date)

    def answer_of(example: SftExample) -> str:
        if isinstance(example, Chat) and has_more(example):
            return answer_text(template, example)
        return example.answer

    with chat_template(adapted.loaded.tokenizer, adapted.way(BASE_NAME).chat_template):
        made, _ = usable(examples, answer_of, "examples", skip=skip)
    inputs, answers = group_references([example for example, _ in made], [answer for _, answer in made])
    places = drawn(inputs, n, SEED, "generate")
    fitting, said = with_room(adapted, [BASE_NAME], [inputs[i] for i in places], writing, skip_bad_lines=skip)
    places = [places[i] for i in fitting]
    prompts, references = [inputs[i] for i in places], [answers[i] for i in places]
    counted = f"with {sum(map(len, references)):,} references"
    said.append(f"Answers were written for {len(prompts):,} of {len(inputs):,} inputs, {counted}.")
    found: dict[str, Figures] = {}
    for name in names if prompts else ():
        written = write_texts(adapted, name, prompts, writing)
        found[name] = score_texts([text.strip() for text in written], references)
    return found, said
