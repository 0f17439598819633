"""A part of the examples, drawn by a seed."""

from collections.abc import Sequence

import torch

from rankwise.errors import DataError
from rankwise.streams import stream
from rankwise.tasks.text.data.examples import Example, classes_of


def drawn(examples: Sequence[Example], n: int, seed: int, what: str) -> list[int]:
    """Draw some of the examples.

    Every example is as likely as any other, except that one of each label is drawn first: a label is lost only where
    there is no room for all. Of two numbers the larger one's examples hold the smaller one's.

    Args:
        examples: The examples.
        n: How many; all where there are no more.
        seed: Of the draw.
        what: What they are for; each is its own draw.

    Returns:
        Places of the drawn ones, rising.

    Raises:
        DataError: n is less than 1.

    Examples:
        >>> from rankwise.tasks.text.data.examples import PlainText
        >>> places = drawn([PlainText(i, f"text {i}") for i in range(10)], 3, seed=0, what="test")
        >>> len(places), places == sorted(places)
        (3, True)
    """
    if n < 1:
        raise DataError(f"The number of {what} examples is {n}; it must be at least 1.")
    seen: set[str] = set()
    first: list[int] = []
    others: list[int] = []
    for i in torch.randperm(len(examples), generator=stream("subset", what, seed)).tolist():
        new = {*classes_of(examples[i])} - seen
        seen |= new
        (first if new else others).append(i)
    return sorted([*first, *others][:n])
