"""Batches: a tensor, or a tuple, list or mapping of tensors, all with the rows first."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.errors import PackError

Batch = Any


def batch_tensors(batch: Batch) -> list[Tensor]:
    """The tensors of a batch."""
    if isinstance(batch, Tensor):
        return [batch]
    return list(batch.values() if isinstance(batch, Mapping) else batch)


def mapped(batch: Batch, pick: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with every tensor passed through `pick`."""
    if isinstance(batch, Tensor):
        return pick(batch)
    if isinstance(batch, Mapping):
        return {key: pick(value) for key, value in batch.items()}
    if isinstance(batch, WithProducts):
        return batch.picked(pick)
    return tuple(pick(value) for value in batch)


def selected(batch: Batch, rows: Tensor) -> Batch:
    """These rows of a batch, in this order; on the batch's device."""
    return mapped(batch, lambda t: t.index_select(0, rows.to(t.device)))


def rows_from(batch: Batch, n: int, start: int = 0) -> Batch:
    """n rows of a batch from a place in it, beginning again at its end."""
    return mapped(batch, lambda t: t[(torch.arange(n) + start) % len(t)])


def chosen_rows(batch: Batch, rows: Sequence[int]) -> Batch:
    """These rows of a batch, in this order, counted on from its first row where it has fewer."""
    return mapped(batch, lambda t: t[torch.tensor(rows) % len(t)])


def stacked(batches: Sequence[Batch]) -> Batch:
    """Batches of one form as one: every tensor (G, rows, ...)."""
    first = batches[0]
    if isinstance(first, Tensor):
        return torch.stack(list(batches))
    if isinstance(first, Mapping):
        return {key: torch.stack([batch[key] for batch in batches]) for key in first}
    return tuple(torch.stack(parts) for parts in zip(*batches, strict=True))


class WithProducts(tuple[Tensor, ...]):
    """The tensors of a data set, or of a batch of it, with what a frozen layer gives for each row.

    Args:
        tensors: The tensors.
        layer: The layer's path.
        products: W x + b of each row, with the rows first.
    """

    def __new__(cls, tensors: Iterable[Tensor], layer: str, products: Tensor) -> "WithProducts":
        made = super().__new__(cls, tensors)
        made.layer, made.products = layer, products
        return made

    layer: str
    products: Tensor

    def picked(self, pick: Callable[[Tensor], Tensor]) -> "WithProducts":
        """The same with every tensor passed through `pick`."""
        return WithProducts(map(pick, self), self.layer, pick(self.products))


def products_of(batch: Batch, layer: str) -> Tensor | None:
    """What a layer gives for the rows of a batch, without its adapters; None where the batch doesn't hold it."""
    if isinstance(batch, _LazySequence):
        return batch.products_of(layer)
    return batch.products if isinstance(batch, WithProducts) and batch.layer == layer else None


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

    def __contains__(self, key: object) -> bool:
        return key in self._batch  # without picking it

    def __getitem__(self, key: str) -> Any:
        return self._pick(self._batch[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._batch)

    def __len__(self) -> int:
        return len(self._batch)


class _LazySequence(Sequence[Any]):
    def __init__(self, batch: Sequence[Any], pick: Callable[[Tensor], Tensor]) -> None:
        self._batch, self._pick = batch, pick

    def products_of(self, layer: str) -> Tensor | None:
        products = products_of(self._batch, layer)
        return None if products is None else self._pick(products)

    def __getitem__(self, i: Any) -> Any:
        return self._pick(self._batch[i])

    def __len__(self) -> int:
        return len(self._batch)


def input_of(batch: Batch) -> Tensor:
    """What a model with one argument is called with: the batch, or the first of its tensors."""
    return batch if isinstance(batch, Tensor) else batch[0]


def call_model(model: nn.Module, batch: Batch) -> Tensor:
    """Run a model on a batch: a tensor as it is, a tuple's or list's first element, a mapping as keywords without
    "labels". Of a model of transformers the logits are taken.

    Raises:
        PackError: It returns something else than a tensor.
    """
    if isinstance(batch, Mapping):
        outputs = model(**{key: batch[key] for key in batch if key != "labels"})
    else:
        outputs = model(input_of(batch))
    outputs = getattr(outputs, "logits", outputs)
    if not isinstance(outputs, Tensor):
        raise PackError(
            f"The model returns a {type(outputs).__name__}; give call=..., a function of (model, batch) that returns "
            "one tensor with the rows first."
        )
    return outputs
