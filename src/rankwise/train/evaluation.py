"""Losses and metrics of all adapters of a pack over a data set."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rankwise.pack.losses import PerAdapter
from rankwise.pack.pack import Pack
from rankwise.train.data import Data, count_rows, pick

ROWS_AT_ONCE = 1 << 16
"""Rows, over all adapters, that an evaluation passes through the model at once."""


def evaluate(pack: Pack, data: Data, functions: Sequence[PerAdapter]) -> list[Tensor]:
    """Mean over a data set of each function for every adapter: (K,) each; inside `attached(training=False)`."""
    return [values.mean(1) for values in evaluate_rows(pack, data, functions)]


def evaluate_rows(pack: Pack, data: Data, functions: Sequence[PerAdapter]) -> list[Tensor]:
    """Value of each function for every adapter and row: (K, n) each; inside `attached(training=False)`.

    A function that returns a scalar for a batch counts for each of its rows.
    """
    n = count_rows(data, "evaluation")
    chunk = max(1, ROWS_AT_ONCE // len(pack))
    parts: list[list[Tensor]] = [[] for _ in functions]
    for start in range(0, n, chunk):
        batch = pick(data, lambda t, start=start: t[start : start + chunk])
        rows = min(chunk, n - start)
        for part, values in zip(parts, pack.evaluate(batch, functions), strict=True):
            part.append(values if values.dim() == 2 else values.unsqueeze(1).expand(-1, rows))
    return [torch.cat(part, dim=1) for part in parts]
