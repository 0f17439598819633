"""Notes about labels: how they were read, and which may be mistakes."""

import json
import unicodedata
from collections.abc import Sequence

from rankwise.tasks.text.data.examples import Labelled
from rankwise.tasks.text.data.labels import Labels

SEPARATORS = ("|", ";", ",")
"""Separators of several labels in a text."""


def label_notes(labels: Labels, train: Sequence[Labelled], kind: str | None) -> list[str]:
    """Doubts about labels, in words.

    Args:
        labels: What was found.
        train: The training examples.
        kind: What kind the user asked for, if any.

    Examples:
        >>> examples = [Labelled(1, "x", "3.9"), Labelled(2, "y", "3.10")]
        >>> label_notes(Labels("number", ("value",)), examples, None)
        ['The labels are read as numbers to predict, from 3.1 to 3.9; --labels one reads them as names.']
    """
    if labels.kind == "number":
        numbers = [float(e.label) for e in train if not isinstance(e.label, tuple)]
        taken = "The labels are read as numbers to predict"
        span = f"from {min(numbers):g} to {max(numbers):g}"
        return [] if kind == "number" else [f"{taken}, {span}; --labels one reads them as names."]
    return [*_alike(labels.names), *_joined(labels.names)]


def _alike(names: Sequence[str]) -> list[str]:
    """Labels that a reader would not tell apart."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(" ".join(unicodedata.normalize("NFKC", name).casefold().split()), []).append(name)
    several = [group for group in groups.values() if len(group) > 1]
    if not several:
        return []
    shown = ", ".join(json.dumps(name, ensure_ascii=_same_looks(several[0])) for name in several[0])
    more = f" ({len(several) - 1:,} more such cases)" if len(several) > 1 else ""
    return [
        f"The labels {shown} are different labels{more}, though they differ only in letter case, spaces or how letters "
        "are encoded."
    ]


def _same_looks(names: Sequence[str]) -> bool:
    return len({unicodedata.normalize("NFC", name) for name in names}) < len(names)


def _joined(names: Sequence[str]) -> list[str]:
    """Labels that look like several: fewer parts than labels."""
    for separator in SEPARATORS:
        joined = [name for name in names if separator in name]
        parts = {part.strip() for name in names for part in name.split(separator)}
        if joined and "" not in parts and len(parts) < len(names):
            several = json.dumps([part.strip() for part in joined[0].split(separator)], ensure_ascii=False)
            return [
                f'{len(joined):,} labels, such as "{joined[0]}", are taken as one label each; several labels of a text '
                f"are written as a list, {several}, with --labels several."
            ]
    return []
