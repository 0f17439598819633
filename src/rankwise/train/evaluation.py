"""Losses and metrics of all adapters of a pack over a data set."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from rankwise.pack.batches import selected
from rankwise.pack.losses import PerAdapter
from rankwise.pack.memory import ran_out
from rankwise.pack.pack import Pack
from rankwise.train.data.feed import Feed
from rankwise.train.data.tensors import Data, take
from rankwise.train.machine.memory import peak_bytes

Result = TypeVar("Result")


ROWS_MEASURED = 16
"""Rows on which it is measured what an evaluation takes in memory."""

FEW_ROWS = 4 * ROWS_MEASURED
"""Rows of which no more pass at once than would be measured: it would take as long as a good part of them."""

CPU_BYTES = 1 << 25
"""Bytes of an evaluation on a CPU, unless a step takes more: beyond the caches more rows save no time."""

GPU_SHARE = 0.1
"""The share of a GPU's memory that an evaluation may take."""


def in_parts(
    rows: Tensor,
    at_once: int,
    run: Callable[[Tensor], Result],
    *,
    least: int = 1,
    piece: int = 1,
    measured: dict[str, float] | None = None,
) -> list[Result]:
    """Run a function on the rows in parts that fit into memory, and return its results in the order of the rows.

    What many take is measured on the last rows, which are the largest where sizes differ. Where memory runs out all the
    same, parts are halved. Each row must be evaluated on its own anyway.

    Args:
        rows: Numbers of rows.
        at_once: Rows of a part, at most.
        run: The function.
        least: Rows that fit in any case: those of a training step.
        piece: Rows that belong together, counted from the first; parts hold whole pieces.
        measured: Where the bytes of a row are kept between calls.
    """
    measured = {} if measured is None else measured
    if len(rows) <= FEW_ROWS:
        at_once, measured = min(at_once, max(least, ROWS_MEASURED)), {}
    elif "row" not in measured and len(rows) > least:
        few = rows[-ROWS_MEASURED:]
        try:
            # Its results are dropped: how the rows are cut, and so how values round, may not depend on who has
            # measured.
            measured["row"] = peak_bytes(lambda: run(few), rows.device) / len(few)
        except (RuntimeError, MemoryError) as error:
            if len(few) == 1 or not ran_out(error):
                raise
            at_once = min(at_once, len(few) // 2)
    if "row" in measured:
        on_gpu = rows.device.type == "cuda"
        limit = GPU_SHARE * torch.cuda.get_device_properties(rows.device).total_memory if on_gpu else CPU_BYTES
        at_once = min(at_once, max(least, int(limit / max(1.0, measured["row"]))))
    found: list[Result] = []
    waiting = list(rows.split(max(1, at_once // piece) * piece))
    while waiting:
        part = waiting.pop(0)
        try:
            found.append(run(part))
        except (RuntimeError, MemoryError) as error:
            if len(part) == 1 or not ran_out(error):
                raise
            half = len(part) // 2
            waiting = list(torch.cat([part, *waiting]).split(max(1, half // piece * piece or half)))
    return found


def means(pack: Pack, data: Data, functions: Sequence[PerAdapter], feed: Feed) -> list[Tensor]:
    """Mean over a data set of each function for every adapter: (K,) each; inside `attached(training=False)`."""
    return [values.mean(1) for values in evaluate_rows(pack, data, functions, feed)]


def evaluate_rows(
    pack: Pack, data: Data, functions: Sequence[PerAdapter], feed: Feed, rows: Tensor | None = None
) -> list[Tensor]:
    """Each row's contribution to each function over a data set, for every adapter: (K, n) each; inside
    `attached(training=False)`. The mean over the rows is the function's value for the data set.

    A function that returns a scalar for a batch counts for each of its rows. For one that returns sums and what to
    divide them by (a loss over tokens) see `ratio_rows`, for one of counts `CountMetric`.

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
        batch = feed.prepare(selected(data, rows))
        return pack.evaluate(batch, functions)

    found = in_parts(
        order.to(pack.device),
        chunk,
        run,
        least=pack.step_rows,
        piece=piece_of(functions),
        measured=pack.evaluation_bytes.setdefault(len(pack), {}),
    )
    back = order.argsort().to(pack.device)
    return [f.joined(part)[:, back] for f, part in zip(functions, zip(*found, strict=True), strict=True)]


def piece_of(functions: Sequence[PerAdapter]) -> int:
    """Rows that have to pass together, for values that don't depend on how many pass at once."""
    return math.lcm(*(function.piece for function in functions))


def _by_seed(pack: Pack, data: Data, functions: Sequence[PerAdapter], feed: Feed, rows: Tensor) -> list[Tensor]:
    """`evaluate_rows` of adapters that read the rows of their seeds."""
    n, device = rows.shape[1], rows.device
    places = feed.evaluation_order(data).argsort().to(device)[rows].argsort(1)
    ordered = rows.gather(1, places).to(pack.device)
    chunk = max(1, min(n, feed.rows_at_once // len(pack)))

    def run(columns: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        batch = feed.prepare(take(data, ordered[:, columns]))
        return pack.evaluate(batch, functions, by_seed=True)

    found = in_parts(
        torch.arange(n, device=pack.device),
        chunk,
        run,
        least=pack.step_rows,
        piece=piece_of(functions),
        measured=pack.evaluation_bytes.setdefault(len(pack), {}),
    )
    back = places.argsort(1)[pack.batch_of].to(pack.device)
    return [f.joined(part).gather(1, back) for f, part in zip(functions, zip(*found, strict=True), strict=True)]
