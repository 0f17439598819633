"""Predictions as CSV and as lines of JSON, the adapters side by side."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rankwise.errors import ConfigError, suggest
from rankwise.shown import csv_cell, json_line
from rankwise.tasks.text.data.examples import Labelled
from rankwise.tasks.text.use.prediction import Prediction
from rankwise.writing import replacing

FORMATS = ("csv", "jsonl")

Predictions = Mapping[str, Sequence[Prediction]]
"""Adapter -> its predictions, in the order of the texts."""


def format_of(path: Path) -> str:
    """The format that a file's name asks for.

    Raises:
        ConfigError: It asks for none.

    Examples:
        >>> format_of(Path("predictions.csv"))
        'csv'
    """
    ending = path.suffix.lower().removeprefix(".")
    if ending not in FORMATS:
        raise ConfigError(
            f'{path} ends in "{path.suffix}"; predictions are written as .csv or .jsonl.{suggest(ending, FORMATS)}'
        )
    return ending


def write_predictions(
    texts: Sequence[Labelled], predictions: Predictions, path: Path, *, every: bool = False, known: bool = False
) -> Path:
    """Write predictions into a file, whole or not at all.

    Args:
        texts: What was labelled.
        predictions: Of each adapter.
        path: A .csv or .jsonl file.
        every: Whether the probabilities of all labels are written, or those of the predicted ones alone.
        known: Whether the right labels are known, and written too.

    Raises:
        ConfigError: The file's name asks for no known format.
        OutputError: It can't be written.
    """
    kind = format_of(path)
    content = predictions_as(kind, texts, predictions, every=every, known=known)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(content)
    return path


def predictions_as(
    kind: str, texts: Sequence[Labelled], predictions: Predictions, *, every: bool = False, known: bool = False
) -> str:
    """Predictions in one of `FORMATS`, as `write_predictions` writes them."""
    records = list(_records(texts, predictions, every, known))
    if kind == "jsonl":
        return "".join(json_line(record) + "\n" for record in records)
    only = next(iter(predictions)) if len(predictions) == 1 else None
    rows = [_flat(record, only) for record in records]
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writerow({name: csv_cell(name) for name in rows[0]})
    writer.writerows(rows)
    return table.getvalue()


def _records(texts: Sequence[Labelled], predictions: Predictions, every: bool, known: bool) -> Iterator[dict[str, Any]]:
    pairs = any(text.text_pair is not None for text in texts)
    for i, text in enumerate(texts):
        record: dict[str, Any] = {"text": text.text}
        if pairs:
            record["text_pair"] = text.text_pair
        if known:
            record["label"] = text.label
        yield record | {"predictions": {name: _plain(said[i], every) for name, said in predictions.items()}}


def _plain(said: Prediction, every: bool) -> dict[str, Any]:
    if isinstance(said.label, float):
        return {"value": said.label}
    plain: dict[str, Any] = {"label": said.label, "probability": said.probability}
    return {**plain, "probabilities": dict(said.probabilities)} if every else plain


def _flat(record: Mapping[str, Any], only: str | None) -> dict[str, Any]:
    """A record as a row of a table: a column for each value; several labels as a JSON list, as they are read."""
    row = {key: _cell(value) for key, value in record.items() if key != "predictions"}
    for name, said in record["predictions"].items():
        # "label" holds the right label where it is known.
        prefix = f"{name}." if only is None else "predicted_" if "label" in record else ""
        for key, value in said.items():
            if key == "probabilities":
                row |= {f"{prefix}p({label})": p for label, p in value.items()}
            else:
                row[f"{prefix}{key}"] = _cell(value)
    return row


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, tuple | list) else csv_cell(value)
