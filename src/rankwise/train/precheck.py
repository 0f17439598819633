"""A model, its loss and its metric run once, before anything is trained or written."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankwise.errors import ConfigError, PackError, RankwiseError
from rankwise.lora.base.modes import in_eval
from rankwise.pack.batches import lazily, mapped, selected
from rankwise.pack.groups import Groups
from rankwise.pack.losses import PerAdapter, PerBatch
from rankwise.pack.member import Member
from rankwise.pack.memory import ran_out
from rankwise.pack.model.inspection import Inspections
from rankwise.pack.pack import Pack
from rankwise.pack.resolved import AdapterState
from rankwise.train.data.feed import EXAMPLE_ROWS, Feed
from rankwise.train.data.tensors import Data, count_rows, tensors_of

ROWS, AT_ONCE = 128, 8
"""Rows, at most, on which it is looked whether a scalar is a mean of rows, and how many pass the model at once."""


def check_training(
    model: nn.Module,
    member: Member,
    train: Data,
    validation: Data,
    loss: PerBatch,
    metric: PerBatch,
    feed: Feed,
    batch_size: int,
    inspections: Inspections | None = None,
    start: AdapterState | None = None,
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
        inspections: Those of the packs over this base, which find here what is inspected.
        start: Tensors to start from.

    Raises:
        PackError: The model, the loss or the metric can't be computed on the first rows; the model can't be trained in
            a pack; or a scalar that has to be a mean of rows is none.
    """
    states = {member.name: start or {}}
    pack = Pack(model, [member], loss, states=states, call=feed.call, inspections=inspections)
    for what, data in (("training", train), ("validation", validation)):
        _check_runs(model, what, data, loss, metric, feed)
    example = feed.example_of(train, batch_size)
    with pack.attached(example, training=True):
        pass
    with pack.attached(example, training=False):
        if feed.rows_a_pass is not None:
            _require_mean(pack, PerAdapter(loss, "loss"), train, feed)
        _require_mean(pack, PerAdapter(metric, "metric"), validation, feed)


@torch.no_grad()
def _check_runs(model: nn.Module, what: str, data: Data, loss: PerBatch, metric: PerBatch, feed: Feed) -> None:
    """Run model, loss and metric on a few rows, as a user would, and say in a line what fails.

    Among the rows are those with the smallest and the largest whole number, so that labels out of range are met.
    """
    labels = [t for t in tensors_of(data) if t.dim() == 1 and not t.is_floating_point() and t.dtype != torch.bool]
    extremes = {int(place) for t in labels for place in (t.argmin(), t.argmax())}
    rows = torch.tensor(sorted({*range(min(EXAMPLE_ROWS, count_rows(data, what))), *extremes}))
    batch = feed.prepare(selected(data, rows))
    with in_eval(model), naming_failures(f"The model can't be run on rows of the {what} data, {batch_in_words(batch)}"):
        outputs = feed.call(model, batch)
    for role, function in (("loss", loss), ("metric", metric)):
        takes = ""
        if isinstance(function, nn.Module) or function in (F.cross_entropy, F.mse_loss, F.nll_loss):
            takes = (
                f" A {role} is called with outputs and the whole batch: lambda outputs, batch: "
                'F.cross_entropy(outputs, batch[1], reduction="none").'
            )
        of = f"outputs ({batch_in_words(outputs)}) and the batch, {batch_in_words(batch)}"
        with naming_failures(f"The {role} can't be computed from {of}", takes):
            function(outputs, batch)


@contextmanager
def naming_failures(start: str, end: str = "") -> Generator[None]:
    """Turn a failure of a user's code inside this block into one line.

    Raises:
        PackError: It failed.
    """
    try:
        yield
    except RankwiseError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if ran_out(error):
            raise
        first = " ".join(str(error).split("\n\n")[0].split())[:200].rstrip(".")
        raise PackError(f"{start}: {type(error).__name__}: {first}.{end}") from error


def batch_in_words(batch: Any) -> str:
    """Types and shapes of a batch, in words.

    Examples:
        >>> batch_in_words((torch.ones(2, 3), torch.ones(2, dtype=torch.long)))
        'float32 (2, 3), int64 (2,)'
        >>> batch_in_words({"labels": torch.ones(2, dtype=torch.long)})
        'labels int64 (2,)'
    """
    if isinstance(batch, Tensor):
        return f"{str(batch.dtype).removeprefix('torch.')} {tuple(batch.shape)}"
    if isinstance(batch, Mapping):
        return ", ".join(f"{key} {batch_in_words(part)}" for key, part in batch.items())
    return ", ".join(map(batch_in_words, batch)) if isinstance(batch, tuple | list) else type(batch).__name__


def _require_mean(pack: Pack, function: PerAdapter, data: Data, feed: Feed) -> None:
    """Raise where a scalar is no mean of rows, on rows from all over a data set."""
    n, one = count_rows(data, "evaluation"), Groups([0], 1, pack.device)
    for most in (2, ROWS):
        rows = torch.linspace(0, n - 1, min(n, most)).long().unique().to(pack.device)
        batch = feed.prepare(selected(data, rows))
        parts = [mapped(batch, lambda t, i=i: t[i : i + AT_ONCE]) for i in range(0, len(rows), AT_ONCE)]
        outputs = torch.cat([pack.outputs(part) for part in parts], 1)
        shared = lazily(batch, lambda t: t.unsqueeze(0))
        if function.is_by_row(outputs, shared, one):
            return  # a few rows are enough to see that
        function.require_mean(outputs, shared, one)


def check_model(model: nn.Module, *, mend: str = "convert it first: model.float()") -> None:
    """Refuse a model that can't be trained.

    Args:
        model: The model.
        mend: The remedy for float16 on a CPU, for the message.

    Raises:
        ConfigError: It has no parameters, or is in float16 on a CPU.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"The model is a {type(model).__name__} ({str(model)[:40]!r}); give a torch.nn.Module. Load a hub model "
            "first, with transformers' AutoModel...from_pretrained."
        )
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    if parameter is None:
        raise ConfigError(f"The {type(model).__name__} has no parameters to adapt.")
    if any(p.is_inference() for p in model.parameters()):
        raise ConfigError("The model was made inside torch.inference_mode(), so it can't be trained; make it outside.")
    if parameter.device.type == "cpu" and parameter.dtype == torch.float16:
        raise ConfigError(f"The model is in float16 on the CPU, where float16 is slow and its sums overflow; {mend}.")
