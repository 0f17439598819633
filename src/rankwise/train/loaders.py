"""A user's data as tensors in memory: what training takes its batches from."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from rankwise.errors import DataError
from rankwise.pack.batches import mapped
from rankwise.streams import stream
from rankwise.train.data import Data, count_rows, pick, tensors_of

ROWS_READ = 256
"""Items of a Dataset that are put together at once."""


def in_memory(data: Any, what: str, device: torch.device) -> Data:
    """Tensors, arrays, a Dataset, a DataLoader or any iterable of batches as tensors with the rows first.

    A loader is read twice, because a seed's order, its noise and a run that is gone on with need rows that stay
    where they are: one that gives other rows the second time (shuffling, random augmentation) is refused.

    Args:
        data: A tensor or array; a tuple, list or mapping of them; a torch Dataset or DataLoader.
        what: "training", "validation" or "test", for messages.
        device: Where they go.

    Raises:
        DataError: It is none of these, empty, of unequal length, or changes its order.

    Examples:
        >>> data = torch.utils.data.TensorDataset(torch.eye(3), torch.arange(3))
        >>> in_memory(data, "training", torch.device("cpu"))[1]
        tensor([0, 1, 2])
    """
    found = _tensors(data, what)
    if found is None:
        if not isinstance(data, Iterable) and not hasattr(data, "__getitem__"):
            raise DataError(
                f"The {what} data is a {type(data).__name__}; give tensors with the rows first (or a tuple or mapping "
                "of them), a Dataset, or a DataLoader."
            )
        found = _read(data, what)
    count_rows(found, what)
    return pick(found, lambda t: t.to(device))


def _tensors(data: Any, what: str) -> Data | None:
    """The data where they are tensors or arrays already."""
    if isinstance(data, Mapping):
        parts = {key: _tensor(value) for key, value in data.items()}
        return None if any(part is None for part in parts.values()) else parts
    if isinstance(data, tuple | list):
        parts = [_tensor(value) for value in data]
        return None if not parts or any(part is None for part in parts) else tuple(parts)
    return _tensor(data)


def _tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    return torch.as_tensor(value) if hasattr(value, "__array__") and hasattr(value, "dtype") else None


def _read(data: Any, what: str) -> Data:
    """All batches of a loader, one after another, read twice."""
    first = list(_batches(data))
    if not first:
        raise DataError(f"The {what} data is empty.")
    parts = [_tensors(batch, what) for batch in first]
    if any(part is None for part in parts):
        raise DataError(
            f"A batch of the {what} data is a {type(first[0]).__name__} that holds more than tensors; let the loader "
            "give a tensor, or a tuple or mapping of tensors."
        )
    _same_again(parts, data, what)
    by_place = [tensors_of(part) for part in parts]
    joined = iter([torch.cat(column) for column in zip(*by_place, strict=True)])
    return mapped(parts[0], lambda _: next(joined))


def _same_again(parts: list[Data], data: Any, what: str) -> None:
    again = [_tensors(batch, what) for batch in _batches(data)]
    same = len(again) == len(parts) and all(
        torch.equal(a, b)
        for one, other in zip(parts, again, strict=True)
        for a, b in zip(tensors_of(one), tensors_of(other), strict=True)
    )
    if not same:
        raise DataError(
            f"The {what} data gives other rows, or another order, when it is read again. Give a DataLoader with "
            "shuffle=False and without random augmentation: each seed shuffles the rows by itself."
        )


def _batches(data: Any) -> Iterable[Any]:
    from torch.utils.data import DataLoader, Dataset, IterableDataset

    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        return DataLoader(data, batch_size=ROWS_READ)  # pyright: ignore[reportUnknownArgumentType]
    return data


def cut_off(data: Data, share: float, what: str) -> tuple[Data, Data]:
    """Cut a share of the rows off, always the same ones.

    Returns:
        What stays, and what was cut off.

    Raises:
        DataError: There are fewer than two rows.
    """
    n = count_rows(data, "training")
    if n < 2:
        raise DataError(f"The training data has {n} row, so no {what} data can be cut off; give some.")
    order = torch.randperm(n, generator=stream("cut", what))
    # Intervals need two rows.
    cut = min(n - 1, max(2, round(share * n)))
    parts = order[cut:].sort().values, order[:cut].sort().values
    rest, part = (pick(data, lambda t, rows=rows: t.index_select(0, rows.to(t.device))) for rows in parts)
    return rest, part
