"""Losses and metrics of all adapters of a pack over a data set."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rankwise.pack.losses import PerAdapter
from rankwise.pack.pack import Pack
from rankwise.train.data import Data, pick
from rankwise.train.feed import Feed


def evaluate(pack: Pack, data: Data, functions: Sequence[PerAdapter], feed: Feed) -> list[Tensor]:
    """Mean over a data set of each function for every adapter: (K,) each; inside `attached(training=False)`."""
    return [values.mean(1) for values in evaluate_rows(pack, data, functions, feed)]


def evaluate_rows(pack: Pack, data: Data, functions: Sequence[PerAdapter], feed: Feed) -> list[Tensor]:
    """What each row of a data set adds to each function, for every adapter: (K, n) each; inside
    `attached(training=False)`. The mean over the rows is the function's value for the data set.

    A function that returns a scalar for a batch counts for each of its rows. Of one that returns sums and what to
    divide them by (a loss over tokens), a row adds its sum over the mean count of a row: the mean over rows is then
    the mean over all tokens.
    """
    order = feed.evaluation_order(data)
    chunk = max(1, min(len(order), feed.rows_at_once // len(pack)))
    parts: list[list[tuple[Tensor, Tensor | None]]] = [[] for _ in functions]
    waiting = list(order.to(pack.device).split(chunk))
    while waiting:
        rows = waiting.pop(0)
        batch = feed.prepare(pick(data, lambda t, rows=rows: t.index_select(0, rows)))
        try:
            found = pack.evaluate(batch, functions)
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                raise
            # Fewer rows at once from here on: each row is evaluated on its own anyway.
            waiting = list(torch.cat([rows, *waiting]).split(len(rows) // 2))
            continue
        for part, values in zip(parts, found, strict=True):
            part.append(values)
    back = order.argsort().to(pack.device)
    return [_joined(part)[:, back] for part in parts]


def _joined(parts: Sequence[tuple[Tensor, Tensor | None]]) -> Tensor:
    values = torch.cat([values for values, _ in parts], dim=1)
    counts = [count for _, count in parts if count is not None]
    return values / torch.cat(counts, dim=1).mean(1, keepdim=True) if counts else values
