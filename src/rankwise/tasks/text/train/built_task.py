"""A task made ready to train: model, tensors, loss and metric. Each task's file says how; here is what they share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rankwise.pack.losses import PerBatch
from rankwise.sweeps.problem import Splits
from rankwise.tasks.text.encode.batches import bucketed_order, trim
from rankwise.tasks.text.model.models import ModelOptions, TextModel
from rankwise.tasks.text.options import TextOptions
from rankwise.train.data.feed import Feed
from rankwise.train.data.tensors import Data

SPLITS = {"train": "training", "validation": "validation", "test": "test"}
"""Split -> what it is called in messages."""

TOKENS_AT_ONCE = 1 << 14
"""Tokens, over all adapters, that an evaluation passes at once."""


@dataclass(frozen=True, kw_only=True)
class BuiltTask:
    """A task made ready.

    Args:
        loaded: The model.
        splits: Tensors of each split.
        call: (model, batch) -> what loss and metric take.
        loss: Of one adapter.
        metric: Of one adapter.
        metric_name: What it is called.
        higher_is_better: Whether it is.
        task_type: PEFT's word for the task, for adapter files; None where it has none.
        notes: What the user should be told.
        examples: Split -> how many there are, where they are not the rows of its tensors.
        example: One prepared example, to be shown.
        beside: Writes what belongs beside an adapter into its folder.
        constant: The metric of each row for the best constant prediction, as in `Problem`; None where there is none.
        check_start: Refuses the folder of an adapter that was trained for something else.
    """

    loaded: TextModel
    splits: Splits
    call: Callable[[nn.Module, Mapping[str, Tensor]], Tensor]
    loss: PerBatch
    metric: PerBatch
    metric_name: str
    higher_is_better: bool
    task_type: str | None
    notes: Sequence[str]
    examples: Mapping[str, int] = field(default_factory=dict[str, int])
    example: str | None = None
    beside: Callable[[Path], object] | None = None
    constant: Callable[[Data, Data], np.ndarray] | None = None
    check_start: Callable[[Path], object] = lambda folder: None

    def checked_start(self, folder: Path) -> Path:
        """The folder of an adapter to train on, unless it was trained for something else.

        Raises:
            DataError: It was.
        """
        self.check_start(folder)
        return folder

    def feed(self, rows_a_pass: int | None) -> Feed:
        """How its batches reach the model: alike lengths together, cut to their width."""
        width = max(lengths_of(self.splits.validation))
        return Feed(
            call=self.call,
            prepare=trim,
            example=with_gap,
            order=_by_length,
            evaluation_order=_shortest_first,
            rows_at_once=max(1, TOKENS_AT_ONCE // width),
            rows_a_pass=rows_a_pass,
        )


def model_options(options: TextOptions) -> ModelOptions:
    """How the model is loaded."""
    return ModelOptions(
        dtype=options.dtype,
        device=options.device,
        attention=options.attention,
        trust_remote_code=options.trust_remote_code,
        pooling=options.pooling,
    )


def lengths_of(data: Data) -> list[int]:
    """Tokens of each row."""
    if "attention_mask" not in data:
        return [data["input_ids"].shape[1]] * len(data["input_ids"])
    return data["attention_mask"].sum(-1).tolist()


def with_gap(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The batch without the last token of each row.

    Where rows have no gap transformers makes no mask, and a model that has been looked at without one is not known to
    have one.

    Examples:
        >>> with_gap({"attention_mask": torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 0]])})["attention_mask"]
        tensor([[1, 1, 0],
                [0, 1, 0],
                [1, 0, 0]])
    """
    if "attention_mask" not in batch:
        return dict(batch)
    mask = batch["attention_mask"]
    places = torch.arange(mask.shape[-1], device=mask.device)
    last = (mask * places).amax(-1, keepdim=True)
    return {**batch, "attention_mask": mask * ((places != last) | (mask.sum(-1, keepdim=True) < 2))}


def _by_length(data: Data, seeds: Sequence[int], epoch: int, batch_size: int, rows: Tensor | None = None) -> Tensor:
    lengths = lengths_of(data)
    if rows is None:
        return torch.stack([bucketed_order(lengths, batch_size, seed, epoch) for seed in seeds])
    of = torch.tensor(lengths)
    own = zip(rows, seeds, strict=True)
    return torch.stack([rs[bucketed_order(of[rs].tolist(), batch_size, seed, epoch)] for rs, seed in own])


def _shortest_first(data: Data) -> Tensor:
    return torch.tensor(lengths_of(data)).argsort(stable=True)
