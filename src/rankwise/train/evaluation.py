"""Losses and metrics of all adapters of a pack over a data set."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from rankwise.pack.losses import PerAdapter
from rankwise.pack.pack import Pack
from rankwise.train.data import Data, pick, take
from rankwise.train.feed import Feed

Found = TypeVar("Found")


def in_parts(rows: Tensor, at_once: int, run: Callable[[Tensor], Found]) -> list[Found]:
    """What `run` gives for so many rows at a time, in order; for fewer from where memory runs out. Each row must be
    evaluated on its own anyway."""
    found: list[Found] = []
    waiting = list(rows.split(at_once))
    while waiting:
        part = waiting.pop(0)
        try:
            found.append(run(part))
        except torch.OutOfMemoryError:
            if len(part) == 1:
                raise
            waiting = list(torch.cat([part, *waiting]).split(len(part) // 2))
    return found


def evaluate(pack: Pack, data: Data, functions: Sequence[PerAdapter], feed: Feed) -> list[Tensor]:
    """Mean over a data set of each function for every adapter: (K,) each; inside `attached(training=False)`."""
    return [values.mean(1) for values in evaluate_rows(pack, data, functions, feed)]


def evaluate_rows(
    pack: Pack, data: Data, functions: Sequence[PerAdapter], feed: Feed, rows: Tensor | None = None
) -> list[Tensor]:
    """What each row of a data set adds to each function, for every adapter: (K, n) each; inside
    `attached(training=False)`. The mean over the rows is the function's value for the data set.

    A function that returns a scalar for a batch counts for each of its rows. For one that returns sums and what to
    divide them by (a loss over tokens) see `ratio_rows`.

    Args:
        pack: The adapters.
        data: The data set.
        functions: Losses or metrics.
        feed: How data reach the model.
        rows: (G, n) rows of the data set for each of the pack's seeds, on which its adapters are evaluated; None for
            all rows.
    """
    if rows is not None:
        return _by_seed(pack, data, functions, feed, rows)
    order = feed.evaluation_order(data)
    chunk = max(1, min(len(order), feed.rows_at_once // len(pack)))

    def run(rows: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        batch = feed.prepare(pick(data, lambda t: t.index_select(0, rows)))
        return pack.evaluate(batch, functions)

    found = in_parts(order.to(pack.device), chunk, run)
    back = order.argsort().to(pack.device)
    return [_joined(part)[:, back] for part in zip(*found, strict=True)]


def _by_seed(pack: Pack, data: Data, functions: Sequence[PerAdapter], feed: Feed, rows: Tensor) -> list[Tensor]:
    """`evaluate_rows` of adapters that read the rows of their seeds."""
    n, device = rows.shape[1], rows.device
    places = feed.evaluation_order(data).argsort().to(device)[rows].argsort(1)
    ordered = rows.gather(1, places).to(pack.device)
    chunk = max(1, min(n, feed.rows_at_once // len(pack)))

    def run(columns: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        batch = feed.prepare(take(data, ordered[:, columns]))
        return pack.evaluate(batch, functions, by_seed=True)

    found = in_parts(torch.arange(n, device=pack.device), chunk, run)
    back = places.argsort(1)[pack.batch_of].to(pack.device)
    return [_joined(part).gather(1, back) for part in zip(*found, strict=True)]


def _joined(parts: Sequence[tuple[Tensor, Tensor | None]]) -> Tensor:
    values = torch.cat([values for values, _ in parts], dim=1)
    counts = [count for _, count in parts if count is not None]
    return ratio_rows(values, torch.cat(counts, dim=1)) if counts else values


def ratio_rows(sums: Tensor, counts: Tensor) -> Tensor:
    r"""What each row adds to a ratio of sums, such as a loss a token: (..., n).

    $$u_i = R + \frac{s_i - R\, n_i}{\bar n}, \qquad R = \frac{\sum s_i}{\sum n_i}$$

    The mean over rows is R, and the spread is that of R itself: long and short rows differ in n as well as in s, which
    s_i alone would count as error of R.

    References:
        Cochran, Sampling Techniques, 3rd edition, 1977, section 6.3 (ratio estimates).

    Examples:
        >>> ratio_rows(torch.tensor([2.0, 6.0]), torch.tensor([1.0, 3.0]))
        tensor([2., 2.])
    """
    mean = counts.mean(-1, keepdim=True)
    ratio = sums.mean(-1, keepdim=True) / mean
    return ratio + (sums - ratio * counts) / mean
