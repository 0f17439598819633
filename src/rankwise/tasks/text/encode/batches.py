"""Examples as tensors with the rows first, filled up on either side, and an order in which alike lengths meet."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from rankwise.errors import ConfigError
from rankwise.streams import stream
from rankwise.tasks.text.encode.tokens import IGNORED, Prepared

Shift = Callable[[Tensor], Tensor]
"""An encoder-decoder's `prepare_decoder_input_ids_from_labels`: labels -> what the decoder reads."""

SIDES = ("right", "left")


def fill_up(rows: Sequence[Sequence[int]], filler: int, side: str = "right") -> Int[Tensor, "N T"]:
    """Rows of unequal length as one tensor, as wide as the longest.

    Examples:
        >>> fill_up([[1, 2, 3], [4]], 0, side="left")
        tensor([[1, 2, 3],
                [0, 0, 4]])
    """
    if side not in SIDES:
        raise ConfigError(f'The padding side is "{side}"; it is "right" or "left".')
    width = max(map(len, rows))
    gaps = [[filler] * (width - len(row)) for row in rows]
    padded = [[*row, *gap] if side == "right" else [*gap, *row] for row, gap in zip(rows, gaps, strict=True)]
    return torch.tensor(padded, dtype=torch.long)


def as_tensors(prepared: Prepared, *, side: str = "right", shift: Shift | None = None) -> dict[str, Tensor]:
    """All examples as one batch: what a data set in memory is, and what `trim` cuts batches of to their width.

    Args:
        prepared: The examples.
        side: Where rows are filled up. An encoder is always filled up on the right: its positions count from there.
        shift: For encoder-decoders, see `Shift`.

    Returns:
        input_ids, attention_mask (1 on the example's tokens), labels (not shifted; `IGNORED` where there is no
        loss), and position_ids for causal models (so that either side gives the same outputs) or decoder_input_ids.
    """
    if prepared.encoder_decoder:
        if shift is None:
            raise ConfigError(
                "An encoder-decoder's batches need its `prepare_decoder_input_ids_from_labels` as `shift`."
            )
        labels = fill_up([row.labels for row in prepared.rows], IGNORED)
        return {**_inputs(prepared, "right"), "decoder_input_ids": shift(labels), "labels": labels}
    inputs = _inputs(prepared, side)
    position_ids = (inputs["attention_mask"].cumsum(-1) - 1).clamp_min(0)
    labels = fill_up([row.labels for row in prepared.rows], IGNORED, side)
    return {**inputs, "position_ids": position_ids, "labels": labels}


def _inputs(prepared: Prepared, side: str) -> dict[str, Tensor]:
    return {
        "input_ids": fill_up([row.ids for row in prepared.rows], prepared.pad_id, side),
        "attention_mask": fill_up([[1] * len(row.ids) for row in prepared.rows], 0, side),
    }


def trim(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cut off the columns in which no row has a token.

    It works on any leading dimensions, so also on a step's batches (G, rows, T): they are cut to one width.

    Args:
        batch: Rows of `as_tensors`; joined rows, which have no mask, stay as they are.

    Examples:
        >>> batch = {"input_ids": torch.tensor([[5, 6, 0, 0]]), "attention_mask": torch.tensor([[1, 1, 0, 0]])}
        >>> trim(batch)["input_ids"]
        tensor([[5, 6]])
    """
    used: dict[str, Tensor] = {}
    if "attention_mask" in batch:
        read = batch["attention_mask"].bool()
        used |= dict.fromkeys(("input_ids", "attention_mask", "token_type_ids", "position_ids"), read)
        if _labels_tokens(batch):
            used["labels"] = read
    if "decoder_input_ids" in batch:
        used |= dict.fromkeys(("decoder_input_ids", "labels"), batch["labels"] != IGNORED)
    columns = {id(mask): _columns(mask) for mask in used.values()}
    return {key: value[..., columns[id(used[key])]] if key in used else value for key, value in batch.items()}


def _labels_tokens(batch: Mapping[str, Tensor]) -> bool:
    """Whether there is a label for each token; a classifier has one a row, or real numbers for several."""
    labels = batch.get("labels")
    return labels is not None and labels.shape == batch["input_ids"].shape and not labels.is_floating_point()


def _columns(used: Tensor) -> slice:
    """The columns from the first to the last in which a row has a token."""
    columns = used.flatten(0, -2).any(0).nonzero()
    return slice(int(columns[0]), int(columns[-1]) + 1)


WINDOW = 50
"""Batches whose examples are sorted together. More makes rows more alike in length, and the order less random."""


def bucketed_order(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> Int[Tensor, " n"]:
    """An order of the examples in which every `batch_size` in a row are of alike length.

    Examples are shuffled by (seed, epoch), sorted within windows of 50 batches, and the batches shuffled. The last,
    smaller batch stays the last. Batches are shuffled alike for all seeds, so that those of different seeds that meet
    in one step are of alike width too.

    Examples:
        >>> bucketed_order([9, 1, 8, 2], batch_size=2, seed=0, epoch=0).view(2, 2).sort().values.tolist() in (
        ...     [[0, 2], [1, 3]],
        ...     [[1, 3], [0, 2]],
        ... )
        True
    """
    n = len(lengths)
    order = torch.randperm(n, generator=stream("order", seed, epoch))
    of = torch.tensor(lengths)[order]
    full_batches = n - n % batch_size
    windows = order[:full_batches].split(WINDOW * batch_size)
    ordered = [w[of[i * WINDOW * batch_size :][: len(w)].argsort(stable=True)] for i, w in enumerate(windows)]
    batches = torch.cat(ordered).view(-1, batch_size) if ordered else order[:0].view(0, batch_size)
    shuffled = batches[torch.randperm(len(batches), generator=stream("order of batches", epoch))]
    return torch.cat([shuffled.flatten(), order[full_batches:]])
