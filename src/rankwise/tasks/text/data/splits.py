"""Training, validation and test examples: given, or cut off by a seed; what they share is counted."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from rankwise.errors import DataError
from rankwise.streams import stream
from rankwise.tasks.text.data.examples import Example, classes_of
from rankwise.tasks.text.data.subset import drawn


def cut(examples: Sequence[Example], share: float, seed: int, what: str) -> tuple[list[Example], list[Example]]:
    """Cut off a share of the examples.

    Those with one and the same input stay together, so none is on both sides. The last examples of a label stay where
    they are: no label is to be known without having been learnt.

    Args:
        examples: The examples; their order is kept on both sides.
        share: How much to cut off, between 0 and 1; at least one input goes to each side.
        seed: Of the cut. It belongs to the data and is the same for all seeds of a sweep.
        what: "validation" or "test": each is its own cut.

    Returns:
        What stays, and what was cut off.

    Raises:
        DataError: The share is not between 0 and 1, or there are fewer than two different inputs.

    Examples:
        >>> from rankwise.tasks.text.data.examples import PlainText
        >>> rest, part = cut([PlainText(i, f"text {i}") for i in range(10)], 0.2, seed=0, what="test")
        >>> len(rest), len(part)
        (8, 2)
    """
    if not 0 < share < 1:
        raise DataError(f"The {what} share is {share:g}; it must lie between 0 and 1, such as 0.1.")
    groups: dict[object, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.source, []).append(example)
    inputs = list(groups)
    left = Counter(name for e in examples for name in classes_of(e))
    wanted, taken = share * len(examples), 0
    chosen: set[object] = set()
    for i in torch.randperm(len(inputs), generator=stream("text", what, seed)).tolist():
        if (chosen and taken >= wanted) or len(chosen) == len(inputs) - 1:
            break
        group = groups[inputs[i]]
        gone = Counter(name for e in group for name in classes_of(e))
        if all(left[name] > n for name, n in gone.items()):
            chosen.add(inputs[i])
            taken += len(group)
            left -= gone
    if not chosen:
        n, different = len(examples), len(inputs)
        what_there_is = (
            f"{n} example{'' if n == 1 else 's'} with {different} different input{'' if different == 1 else 's'}"
        )
        raise DataError(f"{what_there_is} can't be cut in two; give more, or a {what} file.")
    rest = [e for e in examples if e.source not in chosen]
    return rest, [e for e in examples if e.source in chosen]


@dataclass(frozen=True)
class Overlap:
    """The overlap of training and test examples.

    Args:
        same: Test examples whose input and answer are in the training data.
        same_input: Test examples whose input does, with another answer.
        n: How many test examples there are.
    """

    same: int
    same_input: int
    n: int

    def note(self, what: str) -> str | None:
        """A sentence, or None without an overlap."""
        if not self.same + self.same_input:
            return None
        return (
            f"{self.same:,} of {self.n:,} {what} examples are in the training data too, "
            f"{self.same_input:,} more share their input with it: figures on them flatter."
        )


def overlap(train: Sequence[Example], test: Sequence[Example]) -> Overlap:
    """Count test examples that are known from training; letter case and spacing do not make a difference.

    Examples:
        >>> from rankwise.tasks.text.data.examples import PromptPair
        >>> test = [PromptPair(1, "One ", "1"), PromptPair(2, "one", "I"), PromptPair(3, "two", "2")]
        >>> overlap([PromptPair(1, "one", "1")], test)
        Overlap(same=1, same_input=1, n=3)
    """
    inputs = {plainly(e.source) for e in train}
    known_pairs = {(plainly(e.source), plainly(e.answer)) for e in train}
    known = [e for e in test if plainly(e.source) in inputs]
    same = sum((plainly(e.source), plainly(e.answer)) in known_pairs for e in known)
    return Overlap(same, len(known) - same, len(test))


def plainly(value: object) -> str:
    """An input or an answer, each of its parts without letter case and spacing.

    Examples:
        >>> plainly((" One  two ", None)) == plainly(("one two", None))
        True
    """
    if isinstance(value, tuple):
        return repr([None if part is None else plainly(part) for part in value])  # pyright: ignore[reportUnknownVariableType]
    return " ".join(str(value).casefold().split())


@dataclass(frozen=True)
class ExampleSplits:
    """The examples of a task.

    Args:
        train: Training examples.
        validation: Validation examples.
        test: Test examples.
        notes: Notes for the user about them.
        places: Whether labels were rows of 0 and 1 with a place for each.
    """

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    notes: tuple[str, ...]
    places: bool = False


def split_examples(
    train: Sequence[Example],
    validation: Sequence[Example] | None = None,
    test: Sequence[Example] | None = None,
    *,
    validation_share: float = 0.1,
    test_share: float = 0.1,
    seed: int = 0,
    limits: Mapping[str, int | None] | None = None,
) -> ExampleSplits:
    """Complete the splits: what is not given is cut off the training examples, the test first.

    Args:
        train: Training examples.
        validation: Validation examples, where they are given.
        test: Test examples, where they are given.
        validation_share: How much is cut off for validation.
        test_share: How much is cut off for test.
        seed: Of the cuts and draws.
        limits: "train", "validation", "test" -> how many examples are used at most, drawn after the cuts.

    Raises:
        DataError: There are too few examples to cut, or a limit leaves a label without one.
    """
    rest, notes = list(train), list[str]()
    given = {"test": test, "validation": validation}
    shares = {"test": test_share, "validation": validation_share}
    parts: dict[str, list[Example]] = {}
    for what, examples in given.items():
        if examples is not None:
            parts[what] = list(examples)
            continue
        rest, parts[what] = cut(rest, shares[what], seed, what)
        notes.append(f"{len(parts[what]):,} of the training examples are cut off for {what} (seed {seed}).")
    parts["train"] = rest
    for what, limit in (limits or {}).items():
        examples = parts[what]
        if limit is not None and limit < len(examples):
            parts[what] = [examples[i] for i in drawn(examples, limit, seed, what)]
            labels, left = (
                {label for example in some for label in classes_of(example)} for some in (examples, parts[what])
            )
            if what == "train" and left != labels:
                raise DataError(
                    f"{limit:,} training examples are too few for {len(labels):,} labels: each must be learnt from at "
                    f"least one. Raise --limit-train; {len(labels):,} are enough."
                )
            name = "training" if what == "train" else what
            notes.append(f"{limit:,} of {len(examples):,} {name} examples are used, drawn with seed {seed}.")
    rest = parts.pop("train")
    for what, examples in parts.items():
        if note := overlap(rest, examples).note(what):
            notes.append(note)
    return ExampleSplits(tuple(rest), tuple(parts["validation"]), tuple(parts["test"]), tuple(notes))
