"""A base and its adapters on a file of texts."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rankwise.errors import DataError
from rankwise.tasks.text.data.forms import read_examples
from rankwise.tasks.text.data.seen import seen_notes
from rankwise.tasks.text.data.subset import drawn
from rankwise.tasks.text.groups import Writing
from rankwise.tasks.text.read.sources import read_records
from rankwise.tasks.text.use.evaluating.answers import check_answers, evaluate_answers
from rankwise.tasks.text.use.evaluating.classifiers import evaluate_classifiers
from rankwise.tasks.text.use.evaluating.completions import evaluate_completions
from rankwise.tasks.text.use.evaluating.result import SEED, Evaluation
from rankwise.tasks.text.use.served import BASE_NAME, ServedModel


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
        check_answers(adapted, examples)
    names = [*([] if adapted.loaded.new_head else [BASE_NAME]), *adapted.names]
    rows: list[Any] = list(examples)
    if limit is not None and limit < len(rows):
        rows = [rows[i] for i in drawn(rows, limit, SEED, "test")]
        notes.append(f"{limit:,} of {len(examples):,} examples are used, drawn with seed {SEED}.")
    notes += seen_notes(adapted.names, adapted.folders, rows, data)
    if adapted.task == "classify":
        found = evaluate_classifiers(adapted, names, rows, data, skip_bad_lines)
        return replace(found, notes=[*notes, *found.notes])
    figures, skipped = evaluate_completions(adapted, names, rows, skip_bad_lines)
    notes += skipped
    if generate:
        more, left_out = evaluate_answers(adapted, names, examples, generate, writing or Writing(), skip_bad_lines)
        figures = {name: own | more.get(name, {}) for name, own in figures.items()}
        notes += left_out
    return Evaluation(data=data, figures=figures, notes=notes)
