"""A loss or metric written for one adapter, applied to each adapter of a pack.

A function `f(outputs, batch)` sees one adapter's outputs and its batch, as in any training loop. Two kinds:

- it returns one value a row (then the adapter's loss is their mean): it is called once on the rows of all adapters;
- it returns a scalar: it is called under `torch.vmap`, or where vmap can't, in a loop.

A scalar hides how rows differ, and its mean over parts of a data set depends on how the set is cut unless it is a mean
of rows. So a scalar metric is taken of each row alone, and refused where their mean isn't its value for all of them
(sums, F1); a scalar loss is taken of as many rows as a step has.

Either may be a pair (sums, what to divide them by): a loss over tokens then is a mean over the tokens of the whole
step, into however many parts the step is cut. A metric may be a `CountMetric` too: a function of sums over the rows.

Batches are handed out lazily: only the parts that the function reads are repeated for the adapters.
"""

import warnings
from collections.abc import Callable, Sequence
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankwise.errors import PackError
from rankwise.pack.batches import Batch, lazily
from rankwise.pack.counts import CountMetric, ratio_rows
from rankwise.pack.faults import Function, Values, in_words, on_each
from rankwise.pack.groups import Groups
from rankwise.pack.memory import ran_out
from rankwise.pack.model.probe import same
from rankwise.pack.noise.generators import Generators

RowValues = Tensor | tuple[Tensor, Tensor]

PerBatch = Callable[[Any, Batch], Any]
"""f(outputs, batch) of one adapter: a tensor or a number, or a pair of these (sums, what to divide them by)."""


class PerAdapter:
    """f(outputs, batch) for every adapter at once.

    Args:
        function: The function written for one adapter.
        what: Its role, for messages: "loss" or "metric".
        piece: Where it returns a scalar: of how many rows `rows` takes it at a time. With 1 it must be a mean of rows.
        spare: Whether an error that it raises on the outputs of some adapters spares the others: these have no value
            (NaN) then, and are in `failed`.
    """

    def __init__(self, function: PerBatch, what: str, *, piece: int = 1, spare: bool = False) -> None:
        self._user, self._what, self.piece, self._spare = function, what, piece, spare
        self._counted = function if isinstance(function, CountMetric) else None
        if self._counted is not None and what == "loss":
            raise PackError("A CountMetric can't be a loss: it has no gradient. Give it as the metric.")
        self._by_row: bool | None = None
        self._vmap = True
        self.notes: list[str] = []
        self.failed: dict[int, str] = {}
        """Adapters on which the function raised, by their place in the pack, and what; whoever reads it empties it."""

    def mean(self, outputs: Tensor, batch: Batch, groups: Groups) -> Tensor:
        """One number an adapter: (K,)."""
        return means_of_rows(self.values(outputs, batch, groups))

    def values(self, outputs: Tensor, batch: Batch, groups: Groups) -> Tensor:
        """What `means_of_rows` takes: the values of each adapter's rows (K, rows), or its number (K,)."""
        return self._on_each(self._values, outputs, batch, groups)[0]

    def _values(self, outputs: Tensor, batch: Batch, groups: Groups) -> Values:
        got = self._apply(outputs, batch, groups)
        if isinstance(got, Tensor):
            return got, None
        total, weight = (t.sum(1) if t.dim() == 2 else t for t in got)
        return total / weight, None

    def _on_each(self, function: Function, outputs: Tensor, batch: Batch, groups: Groups, *width: int) -> Values:
        if not self._spare:
            return function(outputs, batch, groups)
        values, errors = on_each(function, outputs, batch, groups, width)
        if errors:
            self.failed |= {k: in_words(self._what, error) for k, error in errors.items()}
        return values

    def totals(self, outputs: Tensor, batch: Batch, groups: Groups) -> tuple[Tensor, Tensor]:
        """Sum and count of the mean, to be added over parts of a batch: (K,) and (K,).

        The second is the sum of the counts the function returns; where it returns none, the number of rows.
        """
        total, weight = self._on_each(self._totals, outputs, batch, groups)
        return total, torch.ones_like(total) if weight is None else weight

    def _totals(self, outputs: Tensor, batch: Batch, groups: Groups) -> Values:
        got = self._apply(outputs, batch, groups)
        if isinstance(got, Tensor):
            rows = outputs.new_full((outputs.shape[0],), outputs.shape[1], dtype=got.dtype)
            return (got.sum(1) if got.dim() == 2 else got * rows), rows
        total, weight = (t.sum(1) if t.dim() == 2 else t for t in got)
        return total, weight

    def rows(self, outputs: Tensor, batch: Batch, groups: Groups) -> tuple[Tensor, Tensor | None]:
        """A value for each row, and of a function that returns sums and counts, each row's count: (K, rows); what each
        row counts of a `CountMetric`: (K, rows, C). For `joined`.

        Args:
            outputs: (K, rows, ...).
            batch: The step's batches; every tensor (G, rows, ...).
            groups: Which batch each adapter reads.

        Raises:
            PackError: The function returns neither a scalar nor one value a row; or a scalar that is no mean of rows,
                and its values are to be those of single rows.
        """
        return self._on_each(self._rows, outputs, batch, groups, outputs.shape[1])

    def _rows(self, outputs: Tensor, batch: Batch, groups: Groups) -> Values:
        if self.is_by_row(outputs, batch, groups):
            got = self._apply(outputs, batch, groups)
        else:
            got = self._in_pieces(outputs, batch, groups, self.piece)
            if self.piece == 1:
                self._refuse_unless_mean(self._apply(outputs, batch, groups), got, outputs.shape[1])
        return (got, None) if isinstance(got, Tensor) else got

    def joined(self, parts: Sequence[tuple[Tensor, Tensor | None]]) -> Tensor:
        """Parts of a data set from `rows` as one: what each row adds to the mean, for every adapter, (K, n)."""
        form, counted = max((values for values, _ in parts), key=Tensor.dim), any(c is not None for _, c in parts)
        # A part on which the function raised for every adapter is NaN (K, rows), without counts.
        alike = [v if v.dim() == form.dim() else v.unsqueeze(2).expand(-1, -1, form.shape[2]) for v, _ in parts]
        values = torch.cat(alike, dim=1)
        if self._counted is not None:
            return self._counted.rows(values) if values.dim() == 3 else values
        if not counted:
            return values
        return ratio_rows(values, torch.cat([torch.ones_like(v) if c is None else c for v, c in parts], dim=1))

    @torch.no_grad()
    def require_mean(self, outputs: Tensor, batch: Batch, groups: Groups) -> None:
        """Raise where the function returns a scalar that is no mean of rows. Arguments as for `rows`."""
        if not self.is_by_row(outputs, batch, groups):
            single = self._in_pieces(outputs, batch, groups, 1)
            self._refuse_unless_mean(self._apply(outputs, batch, groups), single, outputs.shape[1])

    def _refuse_unless_mean(self, of_batch: RowValues, single: RowValues, n: int) -> None:
        """Raise where a scalar of all rows isn't the mean of the values of single rows; of a pair, the sum."""
        pairs = [(of_batch, single)] if isinstance(of_batch, Tensor) else list(zip(of_batch, single, strict=True))
        for k in range(len(pairs[0][0])):
            for of_all, of_one in pairs:
                joined = of_one[k].mean() if isinstance(of_batch, Tensor) else of_one[k].sum()
                # A run that diverges has no value to compare.
                if of_all[k].isfinite() and not same(joined, of_all[k]):
                    raise PackError(
                        f"The {self._what} of {n} rows is {float(of_all[k]):.4g}, and {float(joined):.4g} from its "
                        "values for each row alone: it is no mean of rows (a sum, F1, weights of classes, a mean over "
                        "some rows), so it would depend on how many rows pass at once. Return one value a row, or "
                        "a pair: sums and what to divide them by"
                        + ("." if self._what == "loss" else "; for F1 and the like give a rankwise.CountMetric.")
                    )

    def _in_pieces(self, outputs: Tensor, batch: Batch, groups: Groups, size: int) -> RowValues:
        """A scalar of so many rows at a time, for each of its rows: (K, rows); of a pair, shared out among them."""
        n = outputs.shape[1]
        pieces: list[RowValues] = []
        for start, stop in ((0, n // size * size), (n // size * size, n)):
            if start == stop:
                continue
            length = min(size, stop - start)
            count = (stop - start) // length

            def cut(t: Tensor, start: int = start, stop: int = stop, length: int = length) -> Tensor:
                return t[:, start:stop].unflatten(1, (-1, length)).flatten(0, 1)

            index = [g * count + j for g in groups.batch_of for j in range(count)]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a single row many functions have no value, and warn
                got = self._scalars(cut(outputs), lazily(batch, cut), index)
            pairs = isinstance(got, tuple)
            spread = [
                (exact(t) / (length if pairs else 1)).view(-1, count).repeat_interleave(length, 1)
                for t in (got if isinstance(got, tuple) else (got,))
            ]
            pieces.append((spread[0], spread[1]) if pairs else spread[0])
        if isinstance(pieces[0], Tensor):
            return torch.cat(pieces, 1)  # pyright: ignore[reportArgumentType, reportCallIssue]
        sums, counts = (torch.cat(part, 1) for part in zip(*pieces, strict=True))
        return sums, counts

    def _function(self, outputs: Any, batch: Batch) -> Any:
        """The result of the user's function, as tensors; checked by `_returns_rows`."""
        got: Any = self._user(outputs, batch)
        return tuple(_tensor(one) for one in got) if isinstance(got, tuple) else _tensor(got)  # pyright: ignore[reportUnknownVariableType]

    def _refuse_draw(self, outputs: Tensor, batch: Batch) -> Any:
        """Classify the function's result.

        Raises:
            PackError: It depends on random numbers.
        """
        got, drawn = Generators().drawn_by(lambda: self._function(outputs, batch))
        # Whoever checks types draws too, and nothing depends on it.
        if drawn and not _alike(got, self._function(outputs, batch)):
            raise PackError(
                f"The {self._what} draws random numbers from {drawn}, so it would be another one at each call, and in "
                "each pack. Draw them in the model's forward or in call=..., where model.training says whether to, and "
                "where they follow from seed and step."
            )
        return got

    def _apply(self, outputs: Tensor, batch: Batch, groups: Groups) -> RowValues:
        got = self._called(outputs, batch, groups)
        # A mean over many values of half precision would have three digits.
        return exact(got) if isinstance(got, Tensor) else (exact(got[0]), exact(got[1]))

    def is_by_row(self, outputs: Tensor, batch: Batch, groups: Groups) -> bool:
        """Whether the function returns one value a row. Arguments as for `rows`."""
        if self._by_row is None:
            self._by_row = self._returns_rows(outputs, batch, groups)
        return self._by_row

    @property
    def by_row(self) -> bool:
        """Whether the function was seen to return one value a row."""
        return bool(self._by_row)

    @property
    def scalar(self) -> bool:
        """Whether the function was seen to return one value a batch."""
        return self._by_row is False

    def _called(self, outputs: Tensor, batch: Batch, groups: Groups) -> RowValues:
        if not self.is_by_row(outputs, batch, groups):
            return self._scalars(outputs, batch, groups.batch_of)
        flat = lazily(batch, lambda t: groups.fan_out(t).flatten(0, 1))
        got = self._function(outputs.flatten(0, 1), flat)
        shape = outputs.shape[:2]
        if self._counted is not None:
            return got.unflatten(0, shape)
        return got.view(shape) if isinstance(got, Tensor) else (got[0].view(shape), got[1].view(shape))

    def _scalars(self, outputs: Tensor, batch: Batch, batch_of: Sequence[int]) -> RowValues:
        """The function of each of the outputs (N, rows, ...) and its own batch: (N,)."""
        # Of one adapter vmap would only make more, smaller operations.
        if self._vmap and len(outputs) > 1:
            index = torch.tensor(batch_of, device=outputs.device)
            try:
                return torch.vmap(
                    lambda out, g: self._function(out, lazily(batch, lambda t: t.index_select(0, g.view(1)).squeeze(0)))
                )(outputs, index)
            except RuntimeError as error:
                if ran_out(error):
                    raise
                self._vmap = False
                self.notes.append(
                    f"The {self._what} is computed for one run after another: it does something that torch.vmap can't "
                    "map over runs, such as .item() or a branch on values. One value a row would spare that."
                )
        alone = [self._function(out, _of_one(batch, g)) for out, g in zip(outputs, batch_of, strict=True)]
        if isinstance(alone[0], Tensor):
            return torch.stack(alone)  # pyright: ignore[reportArgumentType]
        totals, weights = zip(*alone, strict=True)
        return torch.stack(totals), torch.stack(weights)

    def _returns_rows(self, outputs: Tensor, batch: Batch, groups: Groups) -> bool:
        with torch.no_grad():
            got = self._refuse_draw(outputs[0], _of_one(batch, groups.batch_of[0]))
        rows = outputs.shape[1]
        values: tuple[Any, ...] = got if isinstance(got, tuple) else (got,)
        if self._counted is not None:
            if not isinstance(got, Tensor) or got.dim() != 2 or len(got) != rows:
                shape = f"shape {tuple(got.shape)}" if isinstance(got, Tensor) else type(got).__name__
                raise PackError(
                    f"The counts of a CountMetric have {shape} for a batch of {rows} rows; they must be one row of "
                    "numbers for each row: (rows, C)."
                )
            if rows > 1:
                self._refuse_mixed((exact(got),), outputs[0], _of_one(batch, groups.batch_of[0]))
            return True
        if len(values) not in (1, 2) or not all(
            isinstance(v, Tensor)  # pyright: ignore[reportUnnecessaryIsInstance]
            and tuple(v.shape) in ((), (rows,))
            and v.dim() == values[0].dim()
            and not v.is_complex()
            for v in values
        ):
            raise PackError(
                f"The {self._what} returned {' and '.join(map(_form, values))} for a batch of {rows} rows; it must "
                "return a scalar tensor or one value a row, or a pair of these: sums and what to divide them by."
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
            if not all(same(v[rows], p.to(v.dtype)) for v, p in zip(values, part, strict=True)):
                raise PackError(
                    f"The {self._what} returned one value a row, but rows have other values when they are alone. "
                    "Values of rows must not depend on other rows: return one scalar for the batch (a contrastive "
                    "loss), or sums and what to divide them by (a mean over tokens)."
                )


def means_of_rows(values: Tensor) -> Tensor:
    """Each adapter's mean of its rows: (K,)."""
    return values.mean(1) if values.dim() == 2 else values


def exact(values: Tensor) -> Tensor:
    """Values of half precision, whole numbers and booleans in float32, all others as they are.

    Examples:
        >>> exact(torch.ones(2, dtype=torch.bfloat16)).dtype, exact(torch.ones(2, dtype=torch.float64)).dtype
        (torch.float32, torch.float64)
    """
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def _tensor(value: Any) -> Any:
    """A number or an array as a tensor; anything else as it is."""
    if isinstance(value, Tensor):
        return value  # what the checks below, which cost more, would say
    if isinstance(value, np.ndarray | np.generic):
        # An array that can't be written to makes torch warn.
        return torch.from_numpy(np.array(value)) if value.dtype.kind in "biuf" else value
    return torch.tensor(float(value)) if isinstance(value, Number) else value  # pyright: ignore[reportArgumentType]


def _alike(one: Any, other: Any) -> bool:
    pairs = zip(*(got if isinstance(got, tuple) else (got,) for got in (one, other)), strict=True)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return all(same(a, b) for a, b in pairs if isinstance(a, Tensor))


def _form(value: Any) -> str:
    """Describe the result of a function."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{'complex numbers of ' if value.is_complex() else ''}shape {tuple(value.shape)}"


def _of_one(batch: Batch, g: int) -> Batch:
    return lazily(batch, lambda t: t[g])
