"""A trainer's data sets, put together into batches by its own collator when a batch needs them."""

import hashlib
import pickle
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from rankwise.errors import DataError

ROWS_KEY = "rows"
"""Of a data set: the numbers of its examples, those of all data sets counted on."""

CHECKSUMS = "checksums"
"""Of a data set: a checksum of some of its examples, by which a resumed run knows it again."""

LOOKED_AT = 64
"""Examples of a data set that its checksum is taken of."""

LABELS = "labels"


@dataclass(frozen=True, eq=False)
class Collated:
    """Turns numbers of examples into batches; `Feed.prepare` of trainers.

    Args:
        parts: (data set, collator) of training, validation and test data.
    """

    parts: Sequence[tuple[Any, Callable[[list[Any]], Any]]]

    def __call__(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The batch that the collator makes of these examples: every tensor (*rows, ...).

        Raises:
            DataError: It makes something else.
        """
        rows = batch[ROWS_KEY]
        made = self.of(rows.flatten().tolist())
        return {key: tensor.unflatten(0, rows.shape).to(rows.device) for key, tensor in made.items()}

    def of(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """The batch of some examples, in this order; all of one data set.

        Raises:
            DataError: The collator makes something else than tensors with a row for each example.
        """
        starts = [0, *accumulate(len(data) for data, _ in self.parts)]
        part = bisect_right(starts, numbers[0]) - 1
        data, collate = self.parts[part]
        made: Any = collate([data[i - starts[part]] for i in numbers])
        if not isinstance(made, Mapping):
            raise DataError(
                f"The trainer's collator makes a {type(made).__name__}; a sweep needs a mapping of tensors."
            )
        tensors = {str(key): value for key, value in made.items() if isinstance(value, Tensor)}
        for key, tensor in tensors.items():
            if tensor.dim() == 0 or len(tensor) != len(numbers):
                raise DataError(
                    f'The trainer\'s collator makes "{key}" of shape {tuple(tensor.shape)} from {len(numbers)} '
                    "examples; a sweep needs a row for each example (no packing, no flattening)."
                )
        return tensors

    def check(self) -> None:
        """Refuse a collator that draws at random: a batch must be the same whenever it is made.

        Raises:
            DataError: It makes two different batches of the same examples.
        """
        numbers = range(min(4, len(self.parts[0][0])))
        first, again = self.of(numbers), self.of(numbers)
        if any(key not in again or not torch.equal(tensor, again[key]) for key, tensor in first.items()):
            raise DataError(
                "The trainer's collator (or data set) gives other values when it is called again, such as random masks "
                "or augmentation; a sweep needs the same examples each time. Draw them once, into the data set."
            )

    def numbered(self, part: int, device: torch.device) -> dict[str, Tensor]:
        """A data set as `sweep` takes it: numbers of examples, and a checksum.

        Raises:
            DataError: It has no length.
        """
        data = self.parts[part][0]
        if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
            raise DataError(f"The trainer's data set is a {type(data).__name__} without a length; a sweep needs one.")
        start = sum(len(before) for before, _ in self.parts[:part])
        numbers = torch.arange(start, start + len(data), device=device)
        return {ROWS_KEY: numbers, CHECKSUMS: torch.full_like(numbers, _checksum(data))}


def _checksum(data: Any) -> int:
    """Of examples from all over a data set."""
    places = torch.linspace(0, len(data) - 1, min(LOOKED_AT, len(data))).long().unique().tolist()
    digest = hashlib.blake2b(pickle.dumps([data[i] for i in places]), digest_size=7)
    return int.from_bytes(digest.digest(), "little")
