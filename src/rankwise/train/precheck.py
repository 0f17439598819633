"""A model, its loss and its metric run once, before anything is trained or written."""

import torch
from torch import nn

from rankwise.pack.batches import lazily
from rankwise.pack.groups import Groups
from rankwise.pack.losses import PerAdapter, PerBatch
from rankwise.pack.member import Member
from rankwise.pack.pack import Pack
from rankwise.train.data.feed import Feed
from rankwise.train.data.tensors import Data, count_rows, pick

ROWS, AT_ONCE = 128, 8
"""Rows, at the most, on which it is looked whether a scalar is a mean of rows, and how many pass the model at once."""


def check_training(
    model: nn.Module,
    member: Member,
    train: Data,
    validation: Data,
    loss: PerBatch,
    metric: PerBatch,
    feed: Feed,
    batch_size: int,
) -> None:
    """Refuse what can't be trained or measured.

    Args:
        model: The base.
        member: One of the adapters.
        train: Training data.
        validation: Validation data.
        loss: The loss.
        metric: The metric.
        feed: How data reach the model.
        batch_size: Rows of a training step.

    Raises:
        PackError: The model can't be trained in a pack, or a scalar that has to be a mean of rows is none.
    """
    pack = Pack(model, [member], loss, call=feed.call)
    example = feed.example_of(train, batch_size)
    with pack.attached(example, training=True):
        pass
    with pack.attached(example, training=False):
        if feed.rows_a_pass is not None:
            _require_mean(pack, PerAdapter(loss, "loss"), train, feed)
        _require_mean(pack, PerAdapter(metric, "metric"), validation, feed)


def _require_mean(pack: Pack, function: PerAdapter, data: Data, feed: Feed) -> None:
    """Raise where a scalar is no mean of rows, on rows from all over a data set."""
    n, one = count_rows(data, "evaluation"), Groups([0], 1, pack.device)
    for most in (2, ROWS):
        rows = torch.linspace(0, n - 1, min(n, most)).long().unique().to(pack.device)
        batch = feed.prepare(pick(data, lambda t, rows=rows: t.index_select(0, rows)))
        parts = [pick(batch, lambda t, i=i: t[i : i + AT_ONCE]) for i in range(0, len(rows), AT_ONCE)]
        outputs = torch.cat([pack.outputs(part) for part in parts], 1)
        shared = lazily(batch, lambda t: t.unsqueeze(0))
        if function.is_by_row(outputs, shared, one):
            return  # a few rows are enough to see that
        function.require_mean(outputs, shared, one)
