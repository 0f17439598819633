"""A task made ready to train: model, data, loss and metric. Each task's file says how; here is what they share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from rankwise.errors import AdapterFileError
from rankwise.pack.losses import PerBatch
from rankwise.sweeps.model_metric import ModelMetric
from rankwise.sweeps.problem import Splits
from rankwise.sweeps.storage.owned import why_no_adapter
from rankwise.tasks.settings import shared
from rankwise.tasks.text.data.labels import Labels
from rankwise.tasks.text.data.loading import TextData, load_examples
from rankwise.tasks.text.data.seen import checksums
from rankwise.tasks.text.data.splits import ExampleSplits
from rankwise.tasks.text.encode.batches import bucketed_order, trim
from rankwise.tasks.text.model.models import ModelOptions
from rankwise.tasks.text.options import TextOptions
from rankwise.train.data.feed import Feed
from rankwise.train.data.tensors import Data

SPLITS = {"train": "training", "validation": "validation", "test": "test"}
"""Split -> what it is called in messages."""

TOKENS_AT_ONCE = 1 << 14
"""Tokens, over all adapters, that an evaluation passes at once."""


@runtime_checkable
class LoadedModel(Protocol):
    """A model that a task has loaded."""

    @property
    def model(self) -> nn.Module:
        """In eval mode."""
        ...

    @property
    def head(self) -> tuple[str, ...]:
        """Modules that belong to each adapter, for `Member.modules_to_save`."""
        ...

    @property
    def new_head(self) -> tuple[str, ...]:
        """The head modules that are initialised from the adapter's seed."""
        ...

    @property
    def labels(self) -> Labels | None:
        """The labels of a classifier."""
        ...

    def initial_head(self, seed: int) -> dict[str, Tensor]:
        """The head's tensors before training, for an adapter of this seed."""
        ...


@dataclass(frozen=True, kw_only=True)
class BuiltTask:
    """A task made ready.

    Args:
        loaded: The model.
        splits: Tensors of each split.
        inputs: Checksums of the inputs that it trains on.
        feed: How its batches reach the model.
        loss: Of one adapter.
        metric: Of one adapter.
        metric_name: What the one that decides is called.
        higher_is_better: Whether it is.
        task_type: PEFT's word for the task, for adapter files; None where it has none.
        notes: Notes for the user.
        examples: Split -> how many there are, where they are not the rows of its tensors.
        example: One prepared example, to be shown.
        beside: Writes what belongs next to an adapter into its folder.
        constant: The metric of each row for the best constant prediction, as in `Problem`; None where there is none.
        check_start: Refuses the folder of an adapter that was trained for something else.
        pad_token: A token for padding that was chosen, where the tokenizer has none.
        targets: Modules to adapt in place of "all-linear"; None where that will do.
        reads: What its examples are: "texts" or "images".
        model_metric: What decides in place of the metric, as in `Problem`.
        loss_name: What the loss is called.
        loss_constant: As `constant`, for the loss.
    """

    loaded: LoadedModel
    splits: Splits
    inputs: np.ndarray
    feed: Feed
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
    pad_token: str | None = None
    targets: tuple[str, ...] | None = None
    reads: str = "texts"
    model_metric: ModelMetric | None = None
    loss_name: str = "loss"
    loss_constant: Callable[[Data, Data], np.ndarray] | None = None

    def checked_start(self, folder: Path) -> Path:
        """The folder of an adapter to train on, unless it was trained for something else.

        Raises:
            AdapterFileError: It is a run's directory, or the adapter that a run recommends where it recommends none.
            DataError: It was.
        """
        if why := why_no_adapter(folder):
            raise AdapterFileError(why)
        self.check_start(folder)
        return folder


def text_feed(call: Callable[[nn.Module, Mapping[str, Tensor]], Tensor], splits: Splits) -> Feed:
    """Feed texts to the model: similar lengths together, cut to their width.

    Args:
        call: (model, batch) -> what loss and metric take.
        splits: The texts.
    """
    return Feed(
        call=call,
        prepare=trim,
        example=with_gap,
        order=_by_length,
        evaluation_order=_shortest_first,
        rows_at_once=max(1, TOKENS_AT_ONCE // max(lengths_of(splits.validation))),
    )


def texts_of(options: TextOptions) -> tuple[ExampleSplits, dict[str, tuple[str, ...]]]:
    """The texts that the options name, and the names of labels by column where the data gives them in an order.

    Raises:
        DataError: A file is missing, empty, or can't be understood.
    """
    where = TextData(
        **shared(
            options.examples,
            TextData,
            data=options.data,
            columns=dict(options.examples.columns),
            labels=options.form.labels,
        )
    )
    return load_examples(where, options.task)


def trained_inputs(examples: ExampleSplits, splits: Splits) -> np.ndarray:
    """Checksums of the inputs that are trained on.

    Where each seed cuts its own validation rows, those of one seed are trained on by others.
    """
    return checksums((*examples.train, *(examples.validation if splits.rotation else ())))


def model_options(options: TextOptions) -> ModelOptions:
    """The settings that load the model."""
    return ModelOptions(**shared(options.base, ModelOptions, pooling=options.form.pooling))


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
