"""A user's data as tensors in memory: what training takes its batches from."""

from collections.abc import Iterable, Mapping
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankwise.errors import DataError
from rankwise.pack.batches import mapped, selected
from rankwise.streams import stream
from rankwise.train.data.tensors import Data, count_rows, tensors_of

ROWS_READ = 256
"""Items of a Dataset that are put together at once."""


def in_memory(data: Any, what: str, device: torch.device) -> Data:
    """Tensors, arrays, a Dataset, a DataLoader or any iterable of batches as tensors with the rows first.

    A loader is read twice, because a seed's order, its noise and a resumed run need rows that stay
    where they are: one that gives other rows the second time (shuffling, random augmentation) is refused.

    Args:
        data: A tensor or array; a tuple, list or mapping of them; a torch Dataset or DataLoader; a list of rows.
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
    for tensor in tensors_of(found):
        if tensor.dim() == 0:
            raise DataError(
                f"The {what} data holds the single number {tensor.item()}; give tensors with the rows first."
            )
        if tensor.is_sparse or tensor.is_nested:
            raise DataError(f"The {what} data holds a sparse or nested tensor; give dense ones: tensor.to_dense().")
        if tensor.is_floating_point() and (wrong := tensor.isnan()).any():
            rows = wrong.flatten(1).any(1) if wrong.dim() > 1 else wrong
            raise DataError(
                f"The {what} data has NaN in {int(rows.sum()):,} of {len(tensor):,} rows, first in row "
                f"{int(rows.nonzero()[0])} (counted from 0); leave those rows out, or fill the gaps."
            )
    count_rows(found, what)
    # Data of a user's own computation would keep its graph; data made in inference mode can't be trained on.
    return mapped(found, lambda t: (t.clone() if t.is_inference() else t.detach()).to(device))


def _tensors(data: Any, what: str) -> Data | None:
    """The data where they are tensors or arrays already."""
    if isinstance(data, Mapping):
        parts = {key: _tensor(value, what) for key, value in data.items()}
        return None if any(part is None for part in parts.values()) else parts
    if isinstance(data, tuple | list):
        parts = [_tensor(value, what) for value in data]
        return None if not parts or any(part is None for part in parts) else tuple(parts)
    return _tensor(data, what)


def _tensor(value: Any, what: str) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    if not hasattr(value, "__array__") or not (hasattr(value, "dtype") or hasattr(value, "dtypes")):
        return None
    array = np.asarray(value)
    if array.dtype.kind == "u" and array.dtype.itemsize in (2, 4):
        array = array.astype(np.int64)
    try:
        # A copy: torch takes no array with negative strides, and warns of one that can't be written to.
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C", copy=True))
    except TypeError as error:
        raise DataError(
            f"The {what} data holds an array of {array.dtype}, which torch has no type for; give numbers."
        ) from error


def _read(data: Any, what: str) -> Data:
    """All batches of a loader, one after another, read twice."""
    try:
        first = list(_batches(data))
    except (RuntimeError, TypeError) as error:
        raise DataError(
            f"The {what} data can't be put together into tensors: {' '.join(str(error).split())[:150]}. All rows must "
            "have one shape; pad them, or give a DataLoader with a collate_fn that does."
        ) from error
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
    for column in zip(*by_place, strict=True):
        if shapes := sorted({tuple(t.shape[1:]) for t in column})[1:]:
            raise DataError(
                f"Batches of the {what} data have rows of shapes {tuple(column[0].shape[1:])} and {shapes[-1]}; all "
                "rows must have one shape. Pad them to one length."
            )
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

    if (isinstance(data, Dataset) and not isinstance(data, IterableDataset)) or _is_list_of_rows(data):
        return DataLoader(data, batch_size=ROWS_READ)  # pyright: ignore[reportUnknownArgumentType]
    return data


def _is_list_of_rows(data: Any) -> bool:
    """Whether a list or tuple holds single rows, not batches: a part of the first one is a number."""
    first: Any = data[0] if isinstance(data, list | tuple) and data else None
    parts: Iterable[Any] = first.values() if isinstance(first, Mapping) else first if isinstance(first, tuple) else ()  # pyright: ignore[reportUnknownVariableType]
    return any(isinstance(part, Number) or getattr(part, "ndim", None) == 0 for part in parts)


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
    rest, part = (selected(data, rows) for rows in parts)
    return rest, part
