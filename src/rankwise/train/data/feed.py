"""The way of data to a model: their order, batches, and rows at once."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rankwise.errors import ConfigError
from rankwise.pack.batches import Batch, batch_tensors, call_model, selected
from rankwise.pack.step.processes import Processes
from rankwise.train.data.tensors import Data, count_rows, shuffled, take

ROWS_AT_ONCE = 1 << 16
"""Rows, over all adapters, that an evaluation passes through a small model at once."""

SIZES = 300
"""Steps whose sizes are looked at, at most."""

EXAMPLE_ROWS = 4
"""Rows of an example, on which it is looked what the model does, at least."""


def random_order(data: Data, seeds: Sequence[int], epoch: int, batch_size: int, rows: Tensor | None = None) -> Tensor:
    """For each seed an order of its rows that depends on (seed, epoch) and nothing else: (G, n)."""
    if rows is not None:
        return torch.stack([own[shuffled(len(own), seed, epoch)] for own, seed in zip(rows, seeds, strict=True)])
    return torch.stack([shuffled(count_rows(data, "training"), seed, epoch) for seed in seeds])


def as_given(data: Data) -> Tensor:
    """The rows in their own order: (n,)."""
    return torch.arange(count_rows(data, "evaluation"))


def unchanged(batch: Batch) -> Batch:
    """The batch itself."""
    return batch


@dataclass(frozen=True, kw_only=True)
class Feed:
    """The way of data to a model.

    Args:
        call: (model, batch) -> outputs.
        prepare: batch -> batch, before it is passed: cutting off columns that no row fills, for example. Tensors are
            (G, B, ...) in training and (B, ...) in evaluation.
        example: batch -> batch, after `prepare`, for the rows on which it is looked what the model does: they
            must take the way that other batches take.
        order: (data, seeds, epoch, batch size, rows) -> (G, n), the rows of an epoch for each seed; `rows` (G, n) are
            those that each seed trains on, None for all.
        evaluation_order: data -> (n,), in which evaluations pass the rows, the smallest first where sizes differ;
            results come in the data's own order.
        rows_at_once: Rows, over all adapters, that an evaluation passes at once.
        rows_a_pass: Rows of each batch that training passes at once, the gradients of the parts being added up; None
            for the whole batch.
        processes: Those that train each pack together, every one with all of the data; None for this one alone.
        precision: In which precision the model computes, one of `rankwise.pack.precision.PRECISIONS`.
        notes: What the user should know of it.
    """

    call: Callable[[nn.Module, Batch], Tensor] = call_model
    prepare: Callable[[Batch], Batch] = unchanged
    example: Callable[[Batch], Batch] = unchanged
    order: Callable[[Data, Sequence[int], int, int, Tensor | None], Tensor] = random_order
    evaluation_order: Callable[[Data], Tensor] = as_given
    rows_at_once: int = ROWS_AT_ONCE
    rows_a_pass: int | None = None
    processes: Processes | None = None
    precision: str = "float32"
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for what, rows in (("rows_at_once", self.rows_at_once), ("rows_a_pass", self.rows_a_pass)):
            if rows is not None and (isinstance(rows, bool) or rows != int(rows) or rows < 1):
                raise ConfigError(f"{what} is {rows!r}; it must be a whole number of rows, at least 1.")

    def size_of(self, data: Data, rows: Tensor) -> int:
        """How many numbers the batches of these rows (G, B) have."""
        return sum(t.numel() for t in batch_tensors(self.prepare(take(data, rows))))

    def largest(self, data: Data, batch_size: int, seeds: Sequence[int]) -> int:
        """`size_of` the largest step of these seeds; 0 where all rows are of one size."""
        if self.evaluation_order is as_given:
            return 0
        rows = self.evaluation_order(data)[-batch_size:]
        return self.size_of(data, rows.to(batch_tensors(data)[0].device).expand(len(seeds), -1))

    def sizes(self, data: Data, steps: Sequence[Tensor]) -> list[int]:
        """`size_of` of the rows of these steps: of some of them from all over, where they are many."""
        return [self.size_of(data, rows) for rows in steps[:: -(-len(steps) // SIZES)]]

    def mean_growth(self, data: Data, rows: Tensor, order: Tensor) -> float:
        """How many times the numbers of a batch of these rows batches as large have, in the mean over rows in this
        order."""
        batches = order[len(order) % len(rows) :].unsqueeze(0).split(len(rows), 1)
        return statistics.mean(self.sizes(data, batches)) / self.size_of(data, rows.unsqueeze(0))

    def example_of(self, data: Data, batch_size: int = 0) -> Batch:
        """Rows of a data set that show what the model does: as many as a step passes at once, since rows may mix from
        some number on, and of middling size, since a few long ones would make each of the many looks as dear."""
        rows = max(EXAMPLE_ROWS, min(batch_size, self.rows_a_pass or batch_size))
        order = self.evaluation_order(data)
        middle = order[max(0, len(order) - rows) // 2 :][:rows]
        return self.example(self.prepare(selected(data, middle)))
