"""From the places of files to examples in splits: the one call that a task makes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rankwise.tasks.text.data.examples import Example, Labelled
from rankwise.tasks.text.data.forms import find_places, read_examples
from rankwise.tasks.text.data.label_values import are_lists, place_names
from rankwise.tasks.text.data.labels import label_kind, with_numbers
from rankwise.tasks.text.data.splits import ExampleSplits, split_examples
from rankwise.tasks.text.read.sources import Records, read_records


@dataclass(frozen=True, kw_only=True)
class TextData:
    """The sources of a task's examples.

    Args:
        data: Training examples: a file (.jsonl, .json, .csv, .tsv, .parquet) or a hub name.
        validation: Validation examples; None cuts them off the training examples.
        test: Test examples; None cuts them off the training examples. For a hub name, "validation" or "test" alone
            may name a split of that data set.
        columns: Role -> column, where a column is not called as its role (prompt, completion, text, label, ...).
        validation_share: How much is cut off for validation.
        test_share: How much is cut off for test.
        split_seed: Of the cuts and draws; the same for all seeds of a sweep.
        labels: One of `LABEL_KINDS`; None where the kind is to be seen from the data. Of "several", a text such as
            '["a", "b"]' is a list of them.
        skip_bad_lines: Leave out what can't be read, and say so.
        limit_train: How many training examples are used at most, drawn after the cuts; None for all.
        limit_validation: How many validation examples.
        limit_test: How many test examples.
    """

    data: str | Path
    validation: str | Path | None = None
    test: str | Path | None = None
    columns: Mapping[str, str] | None = None
    validation_share: float = 0.1
    test_share: float = 0.1
    split_seed: int = 0
    labels: str | None = None
    skip_bad_lines: bool = False
    limit_train: int | None = None
    limit_validation: int | None = None
    limit_test: int | None = None


def load_examples(where: TextData, task: str) -> tuple[ExampleSplits, dict[str, tuple[str, ...]]]:
    """Read, understand and split the examples of a task.

    Args:
        where: The files.
        task: "sft" or "classify".

    Returns:
        The splits, and the names of labels by column where the source gives them in an order.

    Raises:
        DataError: A file is missing, empty, or can't be understood.
    """
    notes: list[str] = []
    label_names: dict[str, tuple[str, ...]] = {}
    column = dict(where.columns or {}).get("label", "label")

    def read(place: str | Path, split: str) -> Records:
        records = read_records(place, split=split, skip_bad_lines=where.skip_bad_lines)
        notes.extend(records.notes)
        label_names.update({key: value for key, value in records.label_names.items() if key not in label_names})
        return records

    first = read(where.data, "train")
    several = where.labels == "several"
    if task == "classify" and where.labels is None and are_lists(row.values.get(column) for row in first.rows):
        several = True
        notes.append(
            f"{first.source}: each label is written as a list, so a text may have several labels; --labels one takes "
            "them for names."
        )
    places = find_places(first, column, several=several) if task == "classify" else None
    if places is not None:
        label_names.setdefault(column, place_names(places))
        notes.append(f"{first.source}: each label is a row of 0 and 1; its {places} places stand for {places} labels.")

    def make(records: Records) -> list[Example]:
        examples, said = read_examples(
            records, task, where.columns, several=several, places=places, skip_bad_lines=where.skip_bad_lines
        )
        notes.extend(said)
        return examples

    train = make(first)
    # Before the cuts, which leave the last example of each name where it is.
    numbers = (
        task == "classify" and (where.labels or label_kind([e for e in train if isinstance(e, Labelled)])) == "number"
    )
    if numbers:
        train = with_numbers(train)
    others = [
        None if place is None else make(read(where.data if place == split else place, split))
        for split, place in (("validation", where.validation), ("test", where.test))
    ]
    splits = split_examples(
        train,
        *others,
        validation_share=where.validation_share,
        test_share=where.test_share,
        seed=where.split_seed,
        limits={"train": where.limit_train, "validation": where.limit_validation, "test": where.limit_test},
    )
    return replace(splits, notes=(*notes, *splits.notes), places=places is not None), label_names
