"""Labels as numbers: names in a fixed order, several at once, or numbers to predict."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from rankwise.errors import ConfigError, DataError, suggest
from rankwise.tasks.text.data.examples import Example, Label, Labelled
from rankwise.tasks.text.read.bad_lines import BadLineError
from rankwise.tasks.text.sidecar import write_sidecar
from rankwise.writing import read_regular

LABEL_KINDS = ("one", "several", "number")
"""One label a text, several (or none), or a number to predict."""

FILE = "labels.json"


@dataclass(frozen=True)
class Labels:
    """The labels of a classifier.

    Args:
        kind: One of `LABEL_KINDS`.
        names: The label names; their places are the model's outputs. A single one, "value", for numbers.
        places: Whether the data hold them as rows of 0 and 1 with a place for each.
    """

    kind: str
    names: tuple[str, ...]
    places: bool = False

    @property
    def problem_type(self) -> str:
        """transformers' name of this kind in a model's configuration."""
        return _PROBLEM_TYPES[self.kind]

    @property
    def by_number(self) -> dict[int, str]:
        """Output -> label, transformers' `id2label`."""
        return dict(enumerate(self.names))

    def check_same(
        self,
        folder: Path,
        whose: str = "the training data",
        rule: str = "an adapter is trained on with its own labels, in order",
    ) -> None:
        """Refuse an adapter whose outputs stand for other labels; one without `labels.json` is taken as it is.

        Args:
            folder: The adapter's.
            whose: Whose labels these here are, for the message.
            rule: Why they must be the same, likewise.

        Raises:
            DataError: Its labels are others, or in another order.
        """
        if not (folder / FILE).exists():
            return
        theirs = read_labels(folder)
        if theirs != self:
            shown = [", ".join(labels.names[:5]) for labels in (theirs, self)]
            raise DataError(
                f"The adapter in {folder} was trained for {len(theirs.names)} labels ({shown[0]}), and {whose} has "
                f"{len(self.names)} ({shown[1]}); {rule}."
            )

    def encode(self, examples: Sequence[Labelled], what: str) -> Tensor:
        """The labels as a tensor: (N,) whole numbers, (N, names) of 0 and 1, or (N, 1) numbers.

        Args:
            examples: The examples.
            what: "training", "validation" or "test", for messages.

        Raises:
            DataError: A label is not among the names, or no number.
        """
        if self.kind == "number":
            return torch.tensor([[_number(e)] for e in examples])
        place = {name: i for i, name in enumerate(self.names)}
        given = [_several(e.label) for e in examples]
        if self.kind == "one":
            for example, labels in zip(examples, given, strict=True):
                if len(labels) != 1:
                    raise BadLineError(
                        example.line, f" has {len(labels)} labels; give --labels several, or one label a line."
                    )
        unknown = {
            label: e.line for e, labels in zip(examples, given, strict=True) for label in labels if label not in place
        }
        if unknown:
            shown = ", ".join(f'"{label}" (line {line})' for label, line in list(unknown.items())[:5])
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            raise DataError(
                f"The {what} data has labels that the training data does not: {shown}{more}; nothing can learn them. "
                f"Leave those examples out, or mend them.{suggest(next(iter(unknown)), self.names)}"
            )
        if self.kind == "one":
            return torch.tensor([place[labels[0]] for labels in given])
        encoded = torch.zeros(len(given), len(self.names))
        for row, labels in enumerate(given):
            encoded[row, [place[label] for label in labels]] = 1
        return encoded

    def save(self, folder: Path) -> Path:
        """Write `labels.json` into a folder.

        Raises:
            OutputError: The folder can't be written.
        """
        content = {"kind": self.kind, "names": list(self.names), **({"places": True} if self.places else {})}
        return write_sidecar(folder / FILE, content)


_PROBLEM_TYPES = {"one": "single_label_classification", "several": "multi_label_classification", "number": "regression"}


def read_labels(folder: Path) -> Labels:
    """Read `labels.json` from a folder.

    Raises:
        DataError: It is missing or damaged.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Labels("one", ("no", "yes")).save(Path(folder))
        ...     read_labels(Path(folder))
        Labels(kind='one', names=('no', 'yes'), places=False)
    """
    path = folder / FILE
    try:
        content = json.loads(read_regular(path))
        kind, names = content["kind"], content["names"]
        texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if kind not in LABEL_KINDS or not texts or not names or len({*names}) != len(names):
            raise ValueError("no kind of label, or no different names")
        return Labels(kind, tuple(names), bool(content.get("places", False)))
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror}); it is saved next to an adapter.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f'{path} is damaged; it holds {{"kind": ..., "names": [...]}}.') from error


def find_labels(
    train: Sequence[Labelled], kind: str | None = None, names: Sequence[str] = (), *, places: bool = False
) -> Labels:
    """Find what a classifier is to predict.

    Args:
        train: The training examples.
        kind: One of `LABEL_KINDS`; None finds it: lists are several, numbers with a fraction are numbers, else one.
        names: Label names in an order of one's own; by default sorted (whole numbers by their value).
        places: Whether the data hold them as rows of 0 and 1 with a place for each.

    Raises:
        ConfigError: The kind is unknown, or names are given twice.
        DataError: The labels do not fit the kind, or there is only one.

    Examples:
        >>> find_labels([Labelled(1, "a", "10"), Labelled(2, "b", "9")])
        Labels(kind='one', names=('9', '10'), places=False)
        >>> find_labels([Labelled(1, "a", ("x", "y")), Labelled(2, "b", ())]).kind
        'several'
        >>> find_labels([Labelled(1, "a", 0.5), Labelled(2, "b", 1.5)]).kind
        'number'
        >>> find_labels([Labelled(1, "a", "3.8"), Labelled(2, "b", "5")]).kind
        'number'
    """
    if kind is not None and kind not in LABEL_KINDS:
        raise ConfigError(
            f'The kind of label "{kind}" is not known; there are {", ".join(LABEL_KINDS)}.{suggest(kind, LABEL_KINDS)}'
        )
    if len(set(names)) != len(names):
        raise ConfigError("A label is named twice; each is one output of the model.")
    found = kind or label_kind(train)
    if places and found != "several":
        raise ConfigError(
            f'--labels is "{found}", and the labels are rows of 0 and 1, which are several labels a text; leave it out.'
        )
    if found == "number":
        _check_told_apart(train)
        return Labels(found, ("value",))
    counts = {e.line: len(_several(e.label)) for e in train}
    if found == "one" and (wrong := next((line for line, n in counts.items() if n != 1), None)) is not None:
        raise DataError(f"Line {wrong} has {counts[wrong]} labels; give --labels several, or one label a line.")
    seen = {label for e in train for label in _several(e.label)}
    if len(seen) < 2:
        raise DataError(f"The training data has {len(seen)} different labels; a classifier needs at least 2.")
    return Labels(found, tuple(names) or tuple(sorted(seen, key=_order(seen))), places)


MOST_ROUNDED = 1e-3
"""Of the spread of the labels: the most that 32 bits may change a number to predict."""


def _check_told_apart(train: Sequence[Labelled]) -> None:
    """Refuse numbers that differ by less than 32 bits tell apart.

    Raises:
        DataError: They do.
    """
    numbers = [number for e in train if (number := _finite(e.label)) is not None]
    if not numbers or max(map(abs, numbers)) > torch.finfo(torch.float32).max:
        return  # named with its line when it is encoded
    values = torch.tensor(numbers, dtype=torch.float64)
    rounded = float((values - values.float().double()).abs().max())
    spread = float(values.std(correction=0))
    if spread and rounded > MOST_ROUNDED * spread:
        raise DataError(
            f"The labels are numbers around {float(values.median()):.10g} that differ by about {spread:.3g}, and 32 "
            f"bits round them by up to {rounded:.3g}; subtract a constant from them."
        )


def _finite(label: Label) -> float | None:
    if isinstance(label, tuple):
        return None
    return _number_in(str(label))


def _order(labels: Iterable[str]) -> Callable[[str], tuple[int, str]]:
    """Whole numbers by their value ("01" before "1", always), all others by their letters."""
    try:
        value = {label: int(label) for label in labels}
    except ValueError:
        return lambda label: (0, label)
    return lambda label: (value[label], label)


def label_kind(train: Sequence[Labelled]) -> str:
    """Tell from the labels what a classifier is to predict: one of `LABEL_KINDS`.

    Raises:
        DataError: Numbers have "nan" or "inf" among them, as tables write what is missing.

    Examples:
        >>> label_kind([Labelled(1, "a", "3.8"), Labelled(2, "b", "5")]), label_kind([Labelled(1, "a", "3")])
        ('number', 'one')
    """
    if any(isinstance(e.label, tuple) for e in train):
        return "several"
    if any(isinstance(e.label, float) and not e.label.is_integer() for e in train):
        return "number"
    # In a CSV file numbers are texts.
    texts = [e for e in train if isinstance(e.label, str)]
    numbers = [_number_in(str(e.label)) for e in texts]
    bad = next((e for e, n in zip(texts, numbers, strict=True) if n is None), None)
    if bad is None:
        return "number" if any(n and not n.is_integer() for n in numbers) else "one"
    if any(n is not None for n in numbers) and all(map(_is_number, (str(e.label) for e in texts))):
        raise BadLineError(
            bad.line,
            f' has the label "{bad.label}" among numbers; leave the line out, or give --labels one if it is a name.',
        )
    return "one"


def with_numbers(examples: Sequence[Example]) -> list[Example]:
    """Examples whose labels are numbers, also where a table held these as texts; other texts stay, to be named later.

    Examples:
        >>> [e.label for e in with_numbers([Labelled(1, "a", "3.50"), Labelled(2, "b", "?")])]
        [3.5, '?']
    """
    return [
        replace(e, label=number)
        if isinstance(e, Labelled) and isinstance(e.label, str) and (number := _number_in(e.label)) is not None
        else e
        for e in examples
    ]


def _is_number(text: str) -> bool:
    """Whether a text is a number, "nan" and "inf" too."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _number_in(text: str) -> float | None:
    """The finite number that a text is, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _several(label: Label) -> tuple[str, ...]:
    if isinstance(label, tuple):
        return label
    # 3.0 is how a table's column of whole numbers with a gap comes.
    return (str(int(label)) if isinstance(label, float) and label.is_integer() else str(label),)


def _number(example: Labelled) -> float:
    try:
        value = float(example.label)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        raise BadLineError(example.line, f' has the label "{example.label}"; a number is needed.') from None
    if not math.isfinite(value):
        raise BadLineError(example.line, f" has the label {value}; a finite number is needed.")
    if abs(value) > torch.finfo(torch.float32).max:
        raise BadLineError(
            example.line, f" has the label {value:g}, which is beyond what 32 bits hold; scale the labels."
        )
    return value
