"""A loss or metric written for one adapter, applied to each adapter of a pack.

A function `f(outputs, batch)` sees one adapter's outputs and its batch, as in any training loop. Two kinds:

- it returns one value a row (then the adapter's loss is their mean): it is called once on the rows of all adapters;
- it returns a scalar: it is called under `torch.vmap`, or where vmap can't, in a loop.

Either may be a pair (sums, what to divide them by): a loss over tokens then is a mean over the tokens of the whole
step, into however many parts the step is cut.

Batches are handed out lazily: only the parts that the function reads are repeated for the adapters.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rankwise.errors import PackError
from rankwise.pack.batches import Batch, lazily
from rankwise.pack.groups import Groups
from rankwise.pack.probe import same

Result = Tensor | tuple[Tensor, Tensor]

PerBatch = Callable[[Any, Batch], Result]


class PerAdapter:
    """f(outputs, batch) for every adapter at once.

    Args:
        function: The function written for one adapter.
        what: Its role, for messages: "loss" or "metric".
    """

    def __init__(self, function: PerBatch, what: str) -> None:
        self._function, self._what = function, what
        self._by_row: bool | None = None
        self._vmap = True
        self.notes: list[str] = []

    def mean(self, outputs: Tensor, batch: Batch, groups: Groups) -> Tensor:
        """One number an adapter: (K,)."""
        got = self._apply(outputs, batch, groups)
        if isinstance(got, Tensor):
            return got.mean(1) if got.dim() == 2 else got
        total, weight = (t.sum(1) if t.dim() == 2 else t for t in got)
        return total / weight

    def totals(self, outputs: Tensor, batch: Batch, groups: Groups) -> tuple[Tensor, Tensor]:
        """What the mean is made of, to be added over parts of a batch: (K,) and (K,).

        The second is the sum of the counts the function returns; where it returns none, the number of rows.
        """
        got = self._apply(outputs, batch, groups)
        if isinstance(got, Tensor):
            rows = outputs.new_full((outputs.shape[0],), outputs.shape[1], dtype=got.dtype)
            return (got.sum(1) if got.dim() == 2 else got * rows), rows
        total, weight = (t.sum(1) if t.dim() == 2 else t for t in got)
        return total, weight

    def rows(self, outputs: Tensor, batch: Batch, groups: Groups) -> tuple[Tensor, Tensor | None]:
        """A value for each row, and of a function that returns sums and counts, each row's count: (K, rows).

        What a function returns for a batch as a whole is shared out: each row has the scalar, or its part of the sum.

        Args:
            outputs: (K, rows, ...).
            batch: The step's batches; every tensor (G, rows, ...).
            groups: Which batch each adapter reads.

        Raises:
            PackError: The function returns neither a scalar nor one value a row.
        """
        got = self._apply(outputs, batch, groups)
        n = outputs.shape[1]
        if isinstance(got, Tensor):
            return (got if got.dim() == 2 else got.unsqueeze(1).expand(-1, n)), None
        sums, counts = (t if t.dim() == 2 else (t / n).unsqueeze(1).expand(-1, n) for t in got)
        return sums, counts

    def _apply(self, outputs: Tensor, batch: Batch, groups: Groups) -> Result:
        got = self._called(outputs, batch, groups)
        # A mean over many values of half precision would have three digits.
        return exact(got) if isinstance(got, Tensor) else (exact(got[0]), exact(got[1]))

    def _called(self, outputs: Tensor, batch: Batch, groups: Groups) -> Result:
        if self._by_row is None:
            self._by_row = self._returns_rows(outputs, batch, groups)
        if self._by_row:
            flat = lazily(batch, lambda t: groups.fan_out(t).flatten(0, 1))
            got = self._function(outputs.flatten(0, 1), flat)
            shape = outputs.shape[:2]
            return got.view(shape) if isinstance(got, Tensor) else (got[0].view(shape), got[1].view(shape))
        # Of one adapter vmap would only make more, smaller operations.
        if self._vmap and len(outputs) > 1:
            index = torch.tensor(groups.batch_of, device=outputs.device)
            try:
                return torch.vmap(
                    lambda out, g: self._function(out, lazily(batch, lambda t: t.index_select(0, g.view(1)).squeeze(0)))
                )(outputs, index)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:
                self._vmap = False
                self.notes.append(
                    f"The {self._what} is computed for one run after another: it does something that torch.vmap can't "
                    "map over runs, such as .item() or a branch on values. One value a row would spare that."
                )
        alone = [self._function(out, _of_one(batch, g)) for out, g in zip(outputs, groups.batch_of, strict=True)]
        if isinstance(alone[0], Tensor):
            return torch.stack(alone)  # pyright: ignore[reportArgumentType]
        totals, weights = zip(*alone, strict=True)
        return torch.stack(totals), torch.stack(weights)

    def _returns_rows(self, outputs: Tensor, batch: Batch, groups: Groups) -> bool:
        with torch.no_grad():
            got = self._function(outputs[0], _of_one(batch, groups.batch_of[0]))
        rows = outputs.shape[1]
        values = got if isinstance(got, tuple) else (got,)
        if len(values) > 2 or not all(
            isinstance(v, Tensor) and tuple(v.shape) in ((), (rows,)) and v.dim() == values[0].dim()  # pyright: ignore[reportUnnecessaryIsInstance]
            for v in values
        ):
            shapes = [f"shape {tuple(v.shape)}" if isinstance(v, Tensor) else type(v).__name__ for v in values]  # pyright: ignore[reportUnnecessaryIsInstance]
            raise PackError(
                f"The {self._what} returned {' and '.join(shapes)} for a batch of {rows} rows; it must return a scalar "
                "tensor or one value a row, or a pair of these: sums and what to divide them by."
            )
        if values[0].dim() == 1 and rows > 1:
            self._refuse_mixed(values, outputs[0], _of_one(batch, groups.batch_of[0]))
        return values[0].dim() == 1

    @torch.no_grad()
    def _refuse_mixed(self, values: tuple[Tensor, ...], outputs: Tensor, batch: Batch) -> None:
        """Raise where a row's value isn't what it is among other rows: those of all adapters are to be passed at once.

        The first row alone finds what all rows enter; every other row, what only some do (the row before, a row with
        tokens where the first has none).
        """
        for rows in (slice(0, 1), slice(0, None, 2), slice(1, None, 2)):
            part = self._function(outputs[rows], lazily(batch, lambda t, rows=rows: t[rows]))
            part = part if isinstance(part, tuple) else (part,)
            if not all(same(v[rows], p) for v, p in zip(values, part, strict=True)):
                raise PackError(
                    f"The {self._what} returned one value a row, but rows have other values when they are alone. "
                    "Values of rows must not depend on other rows: return one scalar for the batch (a contrastive "
                    "loss), or sums and what to divide them by (a mean over tokens)."
                )


def exact(values: Tensor) -> Tensor:
    """Values of half precision in float32, all others as they are.

    Examples:
        >>> exact(torch.ones(2, dtype=torch.bfloat16)).dtype, exact(torch.ones(2, dtype=torch.float64)).dtype
        (torch.float32, torch.float64)
    """
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _of_one(batch: Batch, g: int) -> Batch:
    return lazily(batch, lambda t: t[g])
