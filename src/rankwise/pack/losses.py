"""A loss or metric written for one adapter, applied to each adapter of a pack.

A function `f(outputs, batch)` sees one adapter's outputs and its batch, as in any training loop. Two kinds:

- it returns one value a row (then the adapter's loss is their mean): it is called once on the rows of all adapters;
- it returns a scalar: it is called under `torch.vmap`, or where vmap can't, in a loop.

Batches are handed out lazily: only the parts that the function reads are repeated for the adapters.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rankwise.errors import PackError
from rankwise.pack.groups import Groups

Batch = Any
"""A tensor, or a tuple, list or mapping of tensors, all with the rows first."""

PerBatch = Callable[[Tensor, Batch], Tensor]


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
        values = self.values(outputs, batch, groups)
        return values.mean(1) if values.dim() == 2 else values

    def values(self, outputs: Tensor, batch: Batch, groups: Groups) -> Tensor:
        """One value a row (K, rows), or (K,) from a function that returns a scalar.

        Args:
            outputs: (K, rows, ...).
            batch: The step's batches; every tensor (G, rows, ...).
            groups: Which batch each adapter reads.

        Raises:
            PackError: The function returns neither a scalar nor one value a row.
        """
        if self._by_row is None:
            self._by_row = self._returns_rows(outputs, batch, groups)
        if self._by_row:
            flat = lazily(batch, lambda t: groups.fan_out(t).flatten(0, 1))
            return self._function(outputs.flatten(0, 1), flat).view(outputs.shape[:2])
        members = range(outputs.shape[0])
        if self._vmap:
            index = torch.tensor(groups.batch_of, device=outputs.device)
            try:
                return torch.vmap(
                    lambda out, g: self._function(out, lazily(batch, lambda t: t.index_select(0, g.view(1)).squeeze(0)))
                )(outputs, index)
            except RuntimeError as error:
                self._vmap = False
                self.notes.append(f"The {self._what} runs adapter by adapter: vmap can't take it ({str(error)[:80]}).")
        alone = [self._function(outputs[k], _of_one(batch, groups.batch_of[k])) for k in members]
        return torch.stack(alone)

    def _returns_rows(self, outputs: Tensor, batch: Batch, groups: Groups) -> bool:
        with torch.no_grad():
            value = self._function(outputs[0], _of_one(batch, groups.batch_of[0]))
        rows = outputs.shape[1]
        if not isinstance(value, Tensor) or tuple(value.shape) not in ((), (rows,)):  # pyright: ignore[reportUnnecessaryIsInstance]
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise PackError(
                f"The {self._what} returned {got} for a batch of {rows} rows; "
                "it must return a scalar tensor, or one value a row."
            )
        return value.dim() == 1


def _of_one(batch: Batch, g: int) -> Batch:
    return lazily(batch, lambda t: t[g])


def lazily(batch: Batch, pick: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with `pick` applied to each tensor when it is read, not before."""
    if isinstance(batch, Tensor):
        return pick(batch)
    if isinstance(batch, Mapping):
        return _LazyMapping(batch, pick)
    return _LazySequence(batch, pick)


class _LazyMapping(Mapping[str, Any]):
    def __init__(self, batch: Mapping[str, Any], pick: Callable[[Tensor], Tensor]) -> None:
        self._batch, self._pick = batch, pick

    def __getitem__(self, key: str) -> Any:
        return self._pick(self._batch[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._batch)

    def __len__(self) -> int:
        return len(self._batch)


class _LazySequence(Sequence[Any]):
    def __init__(self, batch: Sequence[Any], pick: Callable[[Tensor], Tensor]) -> None:
        self._batch, self._pick = batch, pick

    def __getitem__(self, i: Any) -> Any:
        return self._pick(self._batch[i])

    def __len__(self) -> int:
        return len(self._batch)
