"""A number that each forward pass moves: what outputs will be after many passes, which no probe makes.

It is given the values that it will have then, and the outputs are compared.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from rankwise.errors import PackError
from rankwise.lora.base.attributes import Place
from rankwise.pack.model.probe import same

LATER = (10, 100, 1000, 5040, 10_000, 100_000, 1_000_000)
"""Passes after which it is looked: powers of ten, and a number that everything up to 10 divides."""

LENGTHS = (10, 1000)
"""Entries that are added to a list which grows."""


def refuse_counts(moved: Sequence[tuple[Place, float]], outputs: Tensor, run: Callable[[], Tensor]) -> None:
    """Raise where outputs depend on a number that a forward pass moves. The numbers are as before.

    Args:
        moved: What `Attributes.moved` found after one pass.
        outputs: Those that follow from the numbers as they are.
        run: Returns outputs of the same rows.

    Raises:
        PackError: They do.
    """
    for place, by in moved:
        name, holder, key = place
        before = list(holder) if key is None else holder[key]
        for later in _later(before, by):
            try:
                _put(holder, key, later)
                alike = same(run(), outputs)
            except (RuntimeError, ValueError, IndexError, KeyError, TypeError, ArithmeticError, PackError):
                alike = False
            finally:
                _put(holder, key, before)
            if not alike:
                raise PackError(
                    f'The outputs depend on "{name}", which each forward pass changes (by {by:g} here): they would be '
                    "others after more passes, and the runs of a pack, which pass together, would share the count. "
                    "Make the model a function of its inputs and weights, or hold that number fixed."
                )


def _later(before: Any, by: float) -> Iterator[Any]:
    """What a number, or a list, will be."""
    if isinstance(before, list):
        entries: list[Any] = before
        yield from (entries + entries[-1:] * more for more in LENGTHS if entries)
        return
    for passes in LATER:
        yield before + by * passes
        # And where it comes to a round number itself, before the pass or in it.
        if isinstance(before, int) and abs(before) < passes and by in (1, -1):
            yield from (passes * by, int(passes * by - by))


def _put(holder: Any, key: Any, value: Any) -> None:
    if key is not None:
        holder[key] = value
        return
    holder.clear()
    holder.extend(value)
